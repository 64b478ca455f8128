"""What a stage computes: floating-point operations as a polynomial in the sizes of its dynamic axes.

Matrix products, attention and convolutions count, two operations for each product of two numbers. Elementwise work
does not: norms, activations, softmax, modulation, rotations and residual sums are far less.

A module that becomes a stage says its cost next to ``forward``, read off its own layers::

    def flops(self) -> tuple[Term, ...]:
        return total(linear(self.qkv, TOKENS), attention(TOKENS, "tokens", self.width), linear(self.proj, TOKENS))

and the costs of modules add up with ``total(*self.attn.flops(), *self.mlp.flops(TOKENS))``. What a family does once a
sample, and not once a frame, it counts over that sample's axes: keys and values of the text over ``TEXT``.
"""

from collections import Counter

from torch import nn

from adacache_engines.bundle import Term

Axes = tuple[str, ...]

SAMPLES: Axes = ("batch",)  # all guidance branches of all prompts
TEXT: Axes = ("batch", "text")
TOKENS: Axes = ("batch", "patch_frames", "tokens")


def linear(layer: nn.Module, positions: Axes) -> Term:
    """A linear layer, or a convolution such as a patch embedding: at each position of its output, every weight of
    ``layer`` multiplies once.
    """
    return Term(axes=positions, flops=2 * layer.get_parameter("weight").numel())


def attention(queries: Axes, keys: str, width: int) -> Term:
    """Scores and weighted values: every query meets the keys on one axis.

    Args:
        queries: axes of the queries, those over which attention goes in parallel included.
        keys: axis of the keys; for self-attention one of ``queries``.
        width: of all heads together; that of queries and keys, which the values share.
    """
    return Term(axes=(*queries, keys), flops=2 * 2 * width)


def total(*terms: Term) -> tuple[Term, ...]:
    """The sum, with one term for each product of axes."""
    sums: Counter[Axes] = Counter()
    for term in terms:
        sums[tuple(sorted(term.axes))] += term.flops
    return tuple(Term(axes=axes, flops=flops) for axes, flops in sums.items())
