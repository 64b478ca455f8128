"""What a stage computes: floating-point operations as a polynomial in the sizes of its dynamic axes.

Matrix products, attention and convolutions count, two operations for each product of two numbers. Elementwise work
does not: norms, activations, softmax, modulation, rotations and residual sums are far less.

A module that becomes a stage says its cost next to ``forward`` (:class:`Counted`), read off its own layers::

    def flops(self) -> tuple[Term, ...]:
        return total(layers(self.attn, TOKENS), attention(TOKENS, "tokens", self.width), layers(self.mlp, TOKENS))

What the published model does once a sample, and not once a frame, counts over that sample's axes: keys and values of
Open-Sora's text over ``TEXT``.
"""

from collections import Counter
from typing import Protocol, runtime_checkable

from torch import nn

from adacache_engines.bundle.manifest import Term

Axes = tuple[str, ...]

SAMPLES: Axes = ("batch",)  # all guidance branches of all prompts
TEXT: Axes = ("batch", "text")
TOKENS: Axes = ("batch", "patch_frames", "tokens")


@runtime_checkable
class Counted(Protocol):
    """A module that says what one call of it computes."""

    def flops(self) -> tuple[Term, ...]: ...


def layers(module: nn.Module, positions: Axes) -> Term:
    """All linear layers and convolutions of ``module``, itself included, if each of them is applied at the same
    positions of its output: every weight then multiplies once at each.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return Term(axes=positions, flops=2 * sum(m.weight.numel() for m in module.modules() if isinstance(m, kinds)))


def attention(queries: Axes, keys: str, width: int) -> Term:
    """Scores and weighted values: every query meets the keys on one axis.

    Args:
        queries: axes of the queries, those over which attention goes in parallel included.
        keys: axis of the keys; for self-attention one of ``queries``.
        width: of all heads together; that of queries and keys, which the values share.
    """
    return Term(axes=(*queries, keys), flops=2 * 2 * width)


def total(*terms: Term) -> tuple[Term, ...]:
    """Return the sum of terms, with one term for each product of axes."""
    sums: Counter[Axes] = Counter()
    for term in terms:
        sums[tuple(sorted(term.axes))] += term.flops
    return tuple(Term(axes=axes, flops=flops) for axes, flops in sums.items())
