"""Count a stage's floating-point operations, as a polynomial in the sizes of its dynamic axes.

Matrix products, attention and convolutions count, two operations for each product of two numbers. Elementwise work
does not: norms, activations, softmax, modulation, rotations and residual sums are far less.

A module that becomes a stage says its cost next to ``forward`` (:class:`Counted`), read off its own layers::

    def flops(self) -> tuple[Term, ...]:
        return total(layers(self.attn, TOKENS), attention(TOKENS, "tokens", self.width), layers(self.mlp, TOKENS))

Work that the published model does once for each sample, and not for each frame, counts over the sample's axes: the
keys and values of Open-Sora's text, for example, count over ``TEXT``.
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
    """A module that counts the floating-point operations of one call."""

    def flops(self) -> tuple[Term, ...]: ...


def layers(module: nn.Module, positions: Axes) -> Term:
    """Count the linear layers and convolutions of ``module``, itself included, all applied at the same positions.

    Every weight then multiplies once at each position of the output.

    Args:
        module: the module whose layers are counted.
        positions: axes of the layers' outputs, without the channels.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return Term(axes=positions, flops=2 * sum(m.weight.numel() for m in module.modules() if isinstance(m, kinds)))


def attention(queries: Axes, keys: str | Axes, width: int) -> Term:
    """Count the scores and the weighted values of an attention in which every query meets all keys.

    Args:
        queries: axes of the queries, including those along which separate attentions run in parallel.
        keys: axis or axes of the keys; in self-attention they are some of ``queries``.
        width: width of the queries, of all heads together; keys and values have the same width.
    """
    met = (keys,) if isinstance(keys, str) else keys
    return Term(axes=(*queries, *met), flops=2 * 2 * width)


def total(*terms: Term) -> tuple[Term, ...]:
    """Return the sum of terms, with one term for each product of axes."""
    sums: Counter[Axes] = Counter()
    for term in terms:
        sums[tuple(sorted(term.axes))] += term.flops
    return tuple(Term(axes=axes, flops=flops) for axes, flops in sums.items())
