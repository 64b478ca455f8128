"""The models that can be exported: one module a family, and the registry that recognises a checkpoint's family."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor

from adacache_engines.bundle import GuidanceRule, LatentSpace, SamplerDefaults, TextRule, VideoDefaults
from adacache_engines.errors import CheckpointError
from adacache_engines.tensors import DType
from adacache_export.families import open_sora
from adacache_export.stages import Stage

Shape = tuple[int, ...]


class Family(Protocol):
    """What a family's module provides. ``config`` is the family's own frozen dataclass.

    Attributes:
        NAME: of the family, as the manifest records it.
        SIGNATURE_KEYS: tensors that every checkpoint of the family has, and no other family has all of.
        OPTIONAL_KEYS: tensors that a checkpoint may lack.
    """

    NAME: str
    SIGNATURE_KEYS: tuple[str, ...]
    OPTIONAL_KEYS: tuple[str, ...]

    def config_from(self, given: Mapping[str, Any] | None, shapes: Mapping[str, Shape]) -> Any:
        """The configuration, from ``config.json`` (None without one) and the shapes of the checkpoint's tensors.

        Raises:
            CheckpointError: the two contradict each other, or the model is a variant that cannot be exported.
        """

    def expected(self, config: Any) -> dict[str, Shape]:
        """Name and shape of all tensors of a checkpoint, the optional ones included."""

    def constants(self, config: Any) -> dict[str, Tensor]:
        """Tensors that a checkpoint may have and the stages compute themselves."""

    def stages(self, config: Any, sites: tuple[str, ...] = (), precision: DType = "float32") -> list[Stage]:
        """The model's stages in the order in which a call runs them, with zero weights."""

    def default_probe(self, config: Any) -> str:
        """The site that is probed where the user asks for none."""

    def video(self, config: Any) -> VideoDefaults:
        """What a generation makes unless it is told otherwise."""

    def sampler(self, scheduler: Mapping[str, Any] | None) -> SamplerDefaults:
        """The sampler and its published settings, or those of ``scheduler_config.json``.

        Raises:
            CheckpointError: the file asks for what the family has not.
        """

    def guidance(self, config: Any) -> GuidanceRule:
        """How the two branches of guidance are made."""

    def latent_space(self, config: Any) -> LatentSpace:
        """What the latents are, and how they become pixels."""

    def text_rule(self, config: Any) -> TextRule:
        """What text the model takes."""

    def profiles(self, config: Any) -> dict[str, dict[str, tuple[int, int]]]:
        """Profile -> axis -> smallest and largest size."""


FAMILIES: dict[str, Family] = {open_sora.NAME: open_sora}


def recognise(names: Iterable[str]) -> Family:
    """The family that a checkpoint with tensors of these names belongs to.

    Raises:
        CheckpointError: none; says which are known and what each would need, the closest first.
    """
    present = set(names)
    lacking = {name: [key for key in family.SIGNATURE_KEYS if key not in present] for name, family in FAMILIES.items()}
    for name, keys in lacking.items():
        if not keys:
            return FAMILIES[name]
    closest = sorted(lacking, key=lambda name: len(lacking[name]) / len(FAMILIES[name].SIGNATURE_KEYS))
    lines = [f"  {name}: lacks {', '.join(lacking[name])}" for name in closest]
    some = ", ".join(sorted(present)[:6]) + (", ..." if len(present) > 6 else "")
    raise CheckpointError(
        "\n".join(
            [
                f"not a checkpoint of a known family; it has {len(present)} tensors ({some or 'none'}), and the known"
                " families need:",
                *lines,
                "Pass the weights of the video transformer itself, whole.",
            ]
        )
    )
