"""The registry of the families that can be exported, which recognises a checkpoint's family."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from adacache_engines.bundle.manifest import ExportGranularity
from adacache_engines.bundle.tensors import DType
from adacache_engines.errors import CheckpointError, InputError
from adacache_export.families.description import Description, PipelineConfigs
from adacache_export.families.latte import family as latte
from adacache_export.families.open_sora import family as open_sora
from adacache_export.families.open_sora_plan import family as open_sora_plan
from adacache_export.families.wan import family as wan
from adacache_export.families.wan import published as wan_published
from adacache_export.stages import Stage

Shape = tuple[int, ...]


class MakeStages(Protocol):
    """The signature of :meth:`Family.stages`."""

    def __call__(
        self,
        config: Any,
        sites: tuple[str, ...] = (),
        precision: DType = "float32",
        granularity: ExportGranularity = "block",
    ) -> list[Stage]: ...


class Family(Protocol):
    """The interface of a family's module; each ``config`` is an instance of the family's own frozen dataclass.

    Attributes:
        NAME: name of the family, as the manifest records it.
        FOLDER: folder of the family, with the presets of its policies.
        SIGNATURE_KEYS: names of tensors by which a checkpoint of the family is recognised: it has all of them.
        OPTIONAL_KEYS: names of tensors that a checkpoint may lack.
        PARTS: kind of a block -> the residual parts of such a block, in order.
    """

    NAME: str
    FOLDER: Path
    SIGNATURE_KEYS: tuple[str, ...]
    OPTIONAL_KEYS: tuple[str, ...]
    PARTS: Mapping[str, tuple[str, ...]]

    def told_by(self, config: Mapping[str, Any] | None) -> bool:
        """Return whether ``config.json`` (None without one) is the family's, where others have the same tensors."""

    def config_from(self, given: Mapping[str, Any] | None, shapes: Mapping[str, Shape]) -> Any:
        """Return the configuration, from ``config.json`` (None without one) and the shapes of the tensors.

        Raises:
            CheckpointError: the two contradict each other, or the model is a variant that cannot be exported.
        """

    def expected(self, config: Any) -> dict[str, Shape]:
        """Return the shape of every tensor of a checkpoint by its name, including the optional tensors."""

    def constants(self, config: Any) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint may have although the stages compute them themselves."""

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
        """Function that makes the stages of a model that may keep frames; None = the model was not trained for it."""

    def describe(
        self,
        config: Any,
        scheduler: Mapping[str, Any] | None,
        precision: DType = "float32",
        pipeline: PipelineConfigs | None = None,
    ) -> Description:
        """Return the rest of the manifest's description of the model.

        Args:
            config: configuration of the model.
            scheduler: content of ``scheduler_config.json``, None without one.
            precision: precision of the weights.
            pipeline: what the folder of a pipeline says of the model; without one, nothing.

        Raises:
            CheckpointError: ``scheduler_config.json`` asks for a sampler or a setting that the family does not have.
        """


FAMILIES: dict[str, Family] = {
    open_sora.NAME: open_sora,
    latte.NAME: latte,
    open_sora_plan.NAME: open_sora_plan,
    wan.NAME: wan,
}

# families whose checkpoints are also published in another layout -> a tensor's name in SIGNATURE_KEYS' layout
LAYOUTS: Mapping[str, Callable[[str], str]] = {wan.NAME: wan_published.own_name}

# parts of names of tensors that change a model's weights and are none themselves: LoRA, LoKr and LoHa
ADAPTERS = ("lora", "lokr_", "hada_")


def maker(family: Family, conditioned: bool) -> MakeStages:
    """Return the function that makes a family's stages; ``conditioned`` asks for stages that may keep frames.

    Raises:
        InputError: the family was not trained to keep frames.
    """
    if not conditioned:
        return family.stages
    if family.conditioned_stages is None:
        able = ", ".join(name for name, other in FAMILIES.items() if other.conditioned_stages is not None)
        raise InputError(
            f"--conditioning: {family.NAME} was not trained to keep frames that are given, as {able} was; leave it out"
        )
    return family.conditioned_stages


def own_name(family: str, name: str) -> str:
    """Return the name that a tensor has in a family's own layout, from its name in any layout."""
    return LAYOUTS[family](name) if family in LAYOUTS else name


def recognise(names: Iterable[str], config: Mapping[str, Any] | None = None, asked: str | None = None) -> Family:
    """Return the family of a checkpoint.

    Args:
        names: names of the checkpoint's tensors.
        config: content of ``config.json``, which decides where several families have these tensors; None without one.
        asked: name of the family that the user asks for; None = any.

    Raises:
        CheckpointError: no family has these tensors, and the message lists the tensors that each known family would
            need, the closest first; or several have them, and ``config`` does not tell which.
        InputError: ``asked`` is no known family.
    """
    if asked is not None and asked not in FAMILIES:
        raise InputError(f"no family is called {asked}; there are {', '.join(FAMILIES)}")
    present = set(names)
    if adapters := sorted(name for name in present if any(part in name.lower() for part in ADAPTERS)):
        raise CheckpointError(
            f"these are the weights of a LoRA ({len(adapters)} tensors such as {adapters[0]}), not of a model; pass the"
            " checkpoint of the model itself"
        )
    lacking = {name: _lacking(family, present) for name, family in FAMILIES.items()}
    fitting = [name for name, keys in lacking.items() if not keys and asked in (None, name)]
    if not fitting and config is not None and "_class_name" in config:
        raise CheckpointError(
            f"config.json describes {config['_class_name']}, and the weights ({len(present)} tensors such as"
            f" {min(present, default='none')}) are those of no known family; there are {', '.join(FAMILIES)}: pass the"
            " video transformer of one of them"
        )
    if not fitting:
        raise CheckpointError(_unknown(present, lacking if asked is None else {asked: lacking[asked]}))
    told = fitting if len(fitting) == 1 else [name for name in fitting if FAMILIES[name].told_by(config)]
    if len(told) != 1:
        raise CheckpointError(
            f"the tensors are those of {' and of '.join(fitting)}, and there is no config.json that tells which: pass"
            " it, in one folder with the weights or with --config FILE, or name the family with --family"
        )
    return FAMILIES[told[0]]


def _lacking(family: Family, present: set[str]) -> list[str]:
    own = {own_name(family.NAME, name) for name in present} if family.NAME in LAYOUTS else present
    return [key for key in family.SIGNATURE_KEYS if key not in own]


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
