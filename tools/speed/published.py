"""Published models of full size, of which :mod:`tools.speed.checkpoint` writes checkpoints with random weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from adacache_export.families.latte import family as latte
from adacache_export.families.latte_t2v.transformer import LatteT2VConfig
from adacache_export.families.open_sora import family as open_sora
from adacache_export.families.open_sora.transformer import OpenSoraConfig
from adacache_export.families.open_sora_plan import family as open_sora_plan
from adacache_export.families.registry import FAMILIES
from adacache_export.families.wan import family as wan
from adacache_export.families.wan.config import WanConfig


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        family: name of the model's family.
        config: configuration of the transformer.
        depth_field: name of the field of ``config`` that is the number of blocks.
        experts: number of transformers.
        index: entries of the pipeline's ``model_index.json`` beside its components.
    """

    family: str
    config: Any
    depth_field: str = "num_layers"
    experts: int = 1
    index: Mapping[str, Any] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Number of blocks of each kind in a transformer."""
        return int(getattr(self.config, self.depth_field))

    def with_depth(self, depth: int) -> "Published":
        """Return the model cut to its first blocks."""
        return replace(self, config=replace(self.config, **{self.depth_field: depth}))

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of a transformer's tensors by name, without the tables that stages compute themselves."""
        shapes = FAMILIES[self.family].expected(self.config)
        return {name: shape for name, shape in shapes.items() if not name.startswith("rope.")}

    def parameters(self) -> int:
        """Return the number of parameters of all transformers together."""
        return self.experts * sum(_numel(shape) for shape in self.shapes().values())


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


MODELS: Mapping[str, Published] = {
    open_sora.NAME: Published(open_sora.NAME, OpenSoraConfig(), depth_field="depth"),
    latte.NAME: Published(latte.NAME, LatteT2VConfig()),
    open_sora_plan.NAME: Published(open_sora_plan.NAME, open_sora_plan.RELEASED),
    "wan2.1-1.3b": Published(wan.NAME, WanConfig(num_attention_heads=12, ffn_dim=8960, num_layers=30)),
    "wan2.1-14b": Published(wan.NAME, WanConfig()),
    "wan2.2-5b": Published(
        wan.NAME,
        WanConfig(num_attention_heads=24, ffn_dim=14336, num_layers=30, in_channels=48, out_channels=48),
        index={"expand_timesteps": True},
    ),
    "wan2.2-a14b": Published(wan.NAME, WanConfig(), experts=2, index={"boundary_ratio": 0.875}),
}
