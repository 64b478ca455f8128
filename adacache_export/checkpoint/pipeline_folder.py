"""The source of an export: the weights of a transformer, or the folder of a whole pipeline in diffusers' layout.

The folder of a pipeline has a ``model_index.json``, which names a library and a class for each component, and a folder
for each component. The original repository of a model of two transformers has a folder for each instead.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from adacache_engines.bundle.manifest import PartName
from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint.formats import read_json
from adacache_export.checkpoint.layout import CONFIG, SCHEDULER, weights_files
from adacache_export.checkpoint.opened import Checkpoint, open_checkpoint

INDEX = "model_index.json"
TRANSFORMERS = ("transformer", "transformer_2")
PARTS: tuple[PartName, ...] = get_args(PartName)
# component of a pipeline -> the one beside it that it needs
BESIDE = {"text_encoder": "tokenizer", "image_encoder": "image_processor"}
COMPONENTS = (*TRANSFORMERS, *PARTS, *BESIDE.values(), "scheduler")  # others are not needed for an export
EXPERTS = ("high_noise_model", "low_noise_model")  # folders of two transformers in original repositories
# beginnings of files of the same weights in another format, precision or number of shards
OWN_NAMES = tuple(f"{stem}{end}" for stem in ("diffusion_pytorch_model", "model", "pytorch_model") for end in ".-")


@dataclass(frozen=True)
class PipelineConfigs:
    """The files of a pipeline's folder that describe the model beside the transformer's own configuration.

    Attributes:
        index: content of ``model_index.json``; empty where the transformer is published alone.
        vae: content of the VAE's ``config.json``; empty without one.
        unnamed_experts: whether there are two transformers although there is no ``model_index.json``.
    """

    index: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)
    unnamed_experts: bool = False

    @property
    def two_experts(self) -> bool:
        """Whether the model has two transformers."""
        return self.unnamed_experts or self.has(TRANSFORMERS[1])

    def has(self, component: str) -> bool:
        """Return whether the pipeline has a component, such as ``transformer_2``."""
        named = self.index.get(component)
        return isinstance(named, list) and len(named) == 2 and all(isinstance(name, str) for name in named)


@dataclass(frozen=True, eq=False)
class Source:
    """An opened source of an export.

    Attributes:
        transformers: the transformer's checkpoint, or those of two experts: for high noise, then for low noise.
        configs: what the folder of a pipeline says of the model.
        parts: folders of the pipeline's other components that become parts of a bundle.
        notes: sentences for people on what is left out.
    """

    transformers: tuple[Checkpoint, ...]
    configs: PipelineConfigs = PipelineConfigs()
    parts: Mapping[PartName, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def open_source(path: Path, weights: str | None = None, replaced: Collection[str] = ()) -> Source:
    """Open the folder of a pipeline, or a checkpoint of any layout; run no code from it and read no values.

    Args:
        path: folder with a ``model_index.json``, or what :func:`open_checkpoint` takes.
        weights: name of the set of weights to take, where a file holds several.
        replaced: components that are not taken from the folder, and need not be there.

    Raises:
        CheckpointError: it cannot be opened, or a component is missing.
    """
    if not (path / INDEX).is_file():
        experts = [path / name for name in EXPERTS]
        if all(folder.is_dir() for folder in experts):
            opened = tuple(open_checkpoint(folder, weights) for folder in experts)
            return Source(opened, PipelineConfigs(unnamed_experts=True), notes=_left_out(path, opened))
        opened = (open_checkpoint(path, weights),)
        return Source(opened, notes=_left_out(path, opened))
    index = read_json(path / INDEX)
    configs = PipelineConfigs(index)
    named = [name for name in COMPONENTS if configs.has(name)]
    unneeded = {*replaced, *(BESIDE[name] for name in replaced if name in BESIDE)}
    lacking = [f"folder {name}" for name in named if name not in unneeded and not (path / name).is_dir()]
    if "scheduler" in named and not lacking and not (path / "scheduler" / SCHEDULER).is_file():
        lacking = [f"file scheduler/{SCHEDULER}"]
    if lacking:
        raise CheckpointError(
            f"{path} has no {', '.join(lacking)}, which its {INDEX} names; expected the whole pipeline: download"
            " it again"
        )
    if TRANSFORMERS[0] not in named:
        raise CheckpointError(
            f"{path / INDEX} names no {TRANSFORMERS[0]}; expected the pipeline of a video transformer"
        )

    def read(component: str, file: str) -> dict[str, Any]:
        place = path / component / file
        return read_json(place) if component in named and place.is_file() else {}

    scheduler = read("scheduler", SCHEDULER)
    transformers = tuple(
        replace(open_checkpoint(path / name, weights), scheduler=scheduler or None)
        for name in TRANSFORMERS
        if name in named
    )
    parts, notes = {name: path / name for name in PARTS if name in named}, []
    for name, beside in BESIDE.items():
        if name in parts and beside not in named:
            del parts[name]
            notes.append(f"left out the {name.replace('_', ' ')}, because {INDEX} names no {beside}")
    return Source(transformers, replace(configs, vae=read("vae", CONFIG)), parts, tuple(notes))


def _left_out(path: Path, opened: tuple[Checkpoint, ...]) -> tuple[str, ...]:
    """Return a sentence on the weights of other models beside those of a folder, as original repositories have them."""
    own = {file for checkpoint in opened for file in checkpoint.files}
    if not path.is_dir() or path not in {folder for file in own for folder in file.parents[:2]}:
        return ()
    beside = [file.name for file in weights_files(path) if file not in own and not file.name.startswith(OWN_NAMES)]
    if not beside:
        return ()
    return (
        f"left out {', '.join(beside)}: encoders and a VAE are taken from folders as transformers and diffusers save"
        " them, with --text-encoder DIR, --image-encoder DIR and --vae DIR",
    )


def merged(transformers: Mapping[str, Checkpoint]) -> Checkpoint:
    """Return one checkpoint with the tensors of several, each under a prefix, such as ``low.``, and its own name."""
    first = next(iter(transformers.values()))
    if len(transformers) == 1:
        return first
    return replace(
        first,
        tensors={prefix + name: value for prefix, one in transformers.items() for name, value in one.tensors.items()},
        files=tuple(path for one in transformers.values() for path in one.files),
        notes=tuple(dict.fromkeys(note for one in transformers.values() for note in one.notes)),
    )
