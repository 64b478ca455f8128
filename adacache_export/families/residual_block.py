"""A transformer block as a chain of residual parts, whole or a part by itself."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adacache_engines.bundle.manifest import Term
from adacache_export.costs import total
from adacache_export.families.layers import adaln_single, add_residual, modulate

Parts = tuple[str, ...]
EVERYWHERE = ("patch_frames", "tokens")  # independent axes of what treats every token by itself
ATTENTION_AXES = {"spatial": ("patch_frames",), "temporal": ("tokens",)}  # kind -> independent axes of self-attention


def sites_of(parts: Parts) -> tuple[str, ...]:
    """Where a stage of these parts can be probed: the residual of its first part, and the sum of the others'."""
    return (parts[0], "+".join(parts[1:])) if len(parts) > 1 else parts


class ResidualBlock(nn.Module):
    """hidden' = hidden + r(hidden, ...) for each of ``parts`` in turn.

    A subclass makes the layers of its parts, and says what each part adds and computes.

    Args:
        conditions: part -> what it takes beside the hidden state.
        parts: of this stage: all of the block's, or one.
        sites: residuals that forward also returns as probes, of :func:`sites_of`.
    """

    def __init__(self, conditions: Mapping[str, tuple[str, ...]], parts: Parts, sites: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.parts, self.sites = parts, sites
        self.conditions = tuple(dict.fromkeys(name for part in parts for name in conditions[part]))

    def residual(self, part: str, hidden: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """Return what ``part`` adds to ``hidden`` (B, T, S, D), given the conditions by name."""
        raise NotImplementedError

    def part_flops(self, part: str) -> tuple[Term, ...]:
        """Return the operations of ``part``."""
        raise NotImplementedError

    def part_axes(self, part: str) -> tuple[str, ...]:
        """Axes of :data:`EVERYWHERE` along which the work of ``part`` is independent."""
        raise NotImplementedError

    def independent_axes(self) -> tuple[str, ...]:
        """Axes along which the work of all parts is independent."""
        common = set(EVERYWHERE).intersection(*(self.part_axes(part) for part in self.parts))
        return tuple(axis for axis in EVERYWHERE if axis in common)

    def forward(self, hidden: Tensor, *conditions: Tensor) -> tuple[Tensor, ...]:
        """Add the residual of each part in turn.

        Args:
            hidden: (B, T, S, D).
            conditions: in the order of ``self.conditions``.

        Returns:
            hidden (B, T, S, D), then one (B, T, S, D) tensor a site.
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
    """What the first block's attention begins with, without the block: the probe of TeaCache (arXiv 2411.19108).

    Its table is that block's own, under the same name.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        """Of ``hidden`` (B, T, S, D) and ``modulation`` (B, 6, D) or (B, T, 6, D): (B, T, S, D)."""
        shift, scale, *_ = adaln_single(self.scale_shift_table, modulation)
        return modulate(hidden, shift, scale)
