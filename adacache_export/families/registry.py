"""The models that can be exported: one module a family, and the registry that recognises a checkpoint's family."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from adacache_engines.bundle.manifest import ExportGranularity
from adacache_engines.bundle.tensors import DType
from adacache_engines.errors import CheckpointError, InputError
from adacache_export.families.description import Description
from adacache_export.families.latte import family as latte
from adacache_export.families.open_sora import family as open_sora
from adacache_export.families.open_sora_plan import family as open_sora_plan
from adacache_export.stages import Stage

Shape = tuple[int, ...]


class MakeStages(Protocol):
    """What :meth:`Family.stages` is."""

    def __call__(
        self,
        config: Any,
        sites: tuple[str, ...] = (),
        precision: DType = "float32",
        granularity: ExportGranularity = "block",
    ) -> list[Stage]: ...


class Family(Protocol):
    """What a family's module provides. ``config`` is the family's own frozen dataclass.

    Attributes:
        NAME: name of the family, as the manifest records it.
        FOLDER: folder of the family, with the presets of its policies.
        SIGNATURE_KEYS: tensors that every checkpoint of the family has, and no other family has all of.
        OPTIONAL_KEYS: tensors that a checkpoint may lack.
        PARTS: kind of a block -> the residual parts of such a block, in order.
    """

    NAME: str
    FOLDER: Path
    SIGNATURE_KEYS: tuple[str, ...]
    OPTIONAL_KEYS: tuple[str, ...]
    PARTS: Mapping[str, tuple[str, ...]]

    def told_by(self, config: Mapping[str, Any] | None) -> bool:
        """Whether ``config.json`` (None without one) is the family's, where others have the same tensors."""

    def config_from(self, given: Mapping[str, Any] | None, shapes: Mapping[str, Shape]) -> Any:
        """Return the configuration, from ``config.json`` (None without one) and the shapes of the tensors.

        Raises:
            CheckpointError: the two contradict each other, or the model is a variant that cannot be exported.
        """

    def expected(self, config: Any) -> dict[str, Shape]:
        """Name and shape of all tensors of a checkpoint, the optional ones included."""

    def constants(self, config: Any) -> dict[str, Tensor]:
        """Tensors that a checkpoint may have and the stages compute themselves."""

    def stages(
        self,
        config: Any,
        sites: tuple[str, ...] = (),
        precision: DType = "float32",
        granularity: ExportGranularity = "block",
    ) -> list[Stage]:
        """Return the model's stages in the order in which a call runs them, with zero weights."""

    @property
    def conditioned_stages(self) -> "MakeStages | None":
        """Makes the same stages for generations that may keep frames; None where the model was not trained for it."""

    def describe(self, config: Any, scheduler: Mapping[str, Any] | None, precision: DType = "float32") -> Description:
        """Return all else that the manifest says about the model.

        Args:
            config: configuration of the model.
            scheduler: ``scheduler_config.json``, None without one.
            precision: precision of the weights.

        Raises:
            CheckpointError: the file asks for what the family has not.
        """


FAMILIES: dict[str, Family] = {
    open_sora.NAME: open_sora,
    latte.NAME: latte,
    open_sora_plan.NAME: open_sora_plan,
}


def maker(family: Family, conditioned: bool) -> MakeStages:
    """Return the function that makes a family's stages, ``conditioned`` those that may keep frames.

    Raises:
        InputError: the family has none that may.
    """
    if not conditioned:
        return family.stages
    if family.conditioned_stages is None:
        able = ", ".join(name for name, other in FAMILIES.items() if other.conditioned_stages is not None)
        raise InputError(
            f"--conditioning: {family.NAME} was not trained to keep frames that are given, as {able} was; leave it out"
        )
    return family.conditioned_stages


def recognise(names: Iterable[str], config: Mapping[str, Any] | None = None, asked: str | None = None) -> Family:
    """Return the family of a checkpoint.

    Args:
        names: of its tensors.
        config: its ``config.json``, which decides where the tensors fit several families.
        asked: the family that the user named, which then decides.

    Raises:
        CheckpointError: none; says which are known and what each would need, the closest first. Or several.
        InputError: the family that was asked for is unknown.
    """
    if asked is not None and asked not in FAMILIES:
        raise InputError(f"no family is called {asked}; there are {', '.join(FAMILIES)}")
    present = set(names)
    lacking = {name: [key for key in family.SIGNATURE_KEYS if key not in present] for name, family in FAMILIES.items()}
    fitting = [name for name, keys in lacking.items() if not keys and asked in (None, name)]
    if not fitting:
        raise CheckpointError(_unknown(present, lacking if asked is None else {asked: lacking[asked]}))
    told = fitting if len(fitting) == 1 else [name for name in fitting if FAMILIES[name].told_by(config)]
    if len(told) != 1:
        raise CheckpointError(
            f"the tensors are those of {' and of '.join(fitting)}, and there is no config.json that tells which: pass"
            " it, in one folder with the weights or with --config FILE, or name the family with --family"
        )
    return FAMILIES[told[0]]


def _unknown(present: set[str], lacking: Mapping[str, list[str]]) -> str:
    closest = sorted(lacking, key=lambda name: len(lacking[name]) / len(FAMILIES[name].SIGNATURE_KEYS))
    lines = [f"  {name}: lacks {', '.join(lacking[name])}" for name in closest]
    some = ", ".join(sorted(present)[:6]) + (", ..." if len(present) > 6 else "")
    return "\n".join(
        [
            f"not a checkpoint of a known family; it has {len(present)} tensors ({some or 'none'}), and the known"
            " families need:",
            *lines,
            "Pass the weights of the video transformer itself, whole.",
        ]
    )
