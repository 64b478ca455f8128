"""A transformer block as a chain of residual parts; a stage has all of them or a single one."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adacache_engines.bundle.manifest import Term
from adacache_export.costs import total
from adacache_export.families.layers import NORM_EPS, adaln_single, add_residual, modulate

Parts = tuple[str, ...]
EVERYWHERE = ("patch_frames", "tokens")  # independent axes of a part that treats every token by itself
ATTENTION_AXES = {"spatial": ("patch_frames",), "temporal": ("tokens",)}  # kind -> independent axes of self-attention


def sites_of(parts: Parts) -> tuple[str, ...]:
    """Return the sites at which a stage can be probed: its first part's residual, and the sum of the others'."""
    return (parts[0], "+".join(parts[1:])) if len(parts) > 1 else parts


class ResidualBlock(nn.Module):
    """hidden' = hidden + r(hidden, ...) for each of ``parts`` in turn.

    A subclass makes the layers of its parts, and defines each part's residual and operations.

    Args:
        conditions: part -> names of the tensors that it takes beside the hidden state.
        parts: parts of this stage: all of the block's, or one of them.
        sites: sites of :func:`sites_of` whose residuals ``forward`` also returns, as probes.
    """

    def __init__(self, conditions: Mapping[str, tuple[str, ...]], parts: Parts, sites: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.parts, self.sites = parts, sites
        self.conditions = tuple(dict.fromkeys(name for part in parts for name in conditions[part]))

    def residual(self, part: str, hidden: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Return the residual (B, T, S, D) that ``part`` adds to ``hidden``, given the conditions by name."""
        raise NotImplementedError

    def part_flops(self, part: str) -> tuple[Term, ...]:
        """Return the floating-point operations of ``part``."""
        raise NotImplementedError

    def part_axes(self, part: str) -> tuple[str, ...]:
        """Return the axes of :data:`EVERYWHERE` along which the work of ``part`` is independent."""
        raise NotImplementedError

    def independent_axes(self) -> tuple[str, ...]:
        """Return the axes along which the work of all parts is independent."""
        common = set(EVERYWHERE).intersection(*(self.part_axes(part) for part in self.parts))
        return tuple(axis for axis in EVERYWHERE if axis in common)

    def forward(self, hidden: Tensor, *conditions: Tensor) -> tuple[Tensor, ...]:
        """Add the residual of each part in turn.

        Args:
            hidden: hidden state (B, T, S, D).
            conditions: tensors in the order of ``self.conditions``.

        Returns:
            the hidden state (B, T, S, D), then a residual (B, T, S, D) for each site.
        """
        given = dict(zip(self.conditions, conditions, strict=True))
        added: dict[str, Tensor] = {}
        for part in self.parts:
            added[part] = self.residual(part, hidden, given)
            hidden = add_residual(hidden, added[part])
        probes = (sum(added[part] for part in site.split("+")) for site in self.sites)
        return (hidden, *(probe.to(hidden.dtype) for probe in probes))  # type: ignore[union-attr]

    def flops(self) -> tuple[Term, ...]:
        return total(*(term for part in self.parts for term in self.part_flops(part)))


class ModulatedInput(nn.Module):
    """The modulated input of the first block's attention, without the block: the probe of TeaCache (arXiv 2411.19108).

    The table is the first block's own, under the name that it has there.
    """

    def __init__(self, width: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))
        self.eps = eps

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        """Modulate ``hidden`` (B, T, S, D) by ``modulation`` (B, 6, D) or (B, T, 6, D); return (B, T, S, D)."""
        shift, scale, *_ = adaln_single(self.scale_shift_table, modulation)
        return modulate(hidden, shift, scale, self.eps)
