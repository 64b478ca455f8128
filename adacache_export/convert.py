"""Convert a checkpoint to a bundle, in one line of steps: load, check, write weights, trace, verify, publish."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from adacache_engines.bundle.files import MANIFEST, dump_manifest
from adacache_engines.bundle.manifest import (
    DTYPES,
    SCHEMA_VERSION,
    CheckpointEntry,
    ExportGranularity,
    Graph,
    Manifest,
    PartName,
    ProbeEntry,
    ProbeRole,
    StageEntry,
    conditioning_of,
)
from adacache_engines.bundle.tensors import DType
from adacache_engines.bundle.video_sizes import possible_names
from adacache_engines.errors import CheckpointError, InputError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.arithmetic import arithmetic
from adacache_export.checkpoint import Checkpoint, check
from adacache_export.checkpoint.formats import read_json
from adacache_export.checkpoint.hub import open_published
from adacache_export.checkpoint.pipeline_folder import merged
from adacache_export.families.registry import Family, maker, own_name, recognise
from adacache_export.families.residual_block import sites_of
from adacache_export.options import Options
from adacache_export.parts.opened import Rules, open_parts
from adacache_export.parts.part import SMALL_FILES, weights_nbytes
from adacache_export.phases import Progress, running_total
from adacache_export.signals import signal_entry, signal_stages
from adacache_export.stages import OF_TIMESTEP, Stage, hidden_of, key_prefixes, of_experts, shown_of_timestep
from adacache_export.tracing.graphs import export_graphs
from adacache_export.verification.sizes import check_sizes
from adacache_export.writing.folder import building, check_destination, file_entries
from adacache_export.writing.weights_file import reader, write_weights
from adacache_runtime.caching.policy import BLOCK_INPUT
from adacache_runtime.caching.signals.registry import SIGNALS, check_names, signal_from

WEIGHTS = "onnx/weights.safetensors"


def convert(
    source: Path,
    output: Path,
    options: Options,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Export a checkpoint.

    Args:
        source: file or folder of the checkpoint, folder of a whole pipeline, or id of a Hugging Face repository that is
            in the local cache.
        output: folder of the bundle, which must not exist unless ``options.force`` is set.
        options: choices of the user.
        progress: object that is told of every phase.
        note: function that gets sentences about the checkpoint, such as which of several sets of weights is taken.

    Raises:
        CheckpointError: the checkpoint cannot be read, is of no known family, or is damaged.
        ExportError: a stage cannot be traced, or an engine disagrees with its stage; no bundle is left.
        InputError: the destination exists, an unknown probe was asked for, the family takes no conditioning, or a VAE
            or text encoder does not fit.
    """
    progress = progress or Progress()
    check_destination(output, options.force)
    given_parts: dict[PartName, Path | None] = {part: getattr(options, part) for part in get_args(PartName)}
    replaced = [part for part, folder in given_parts.items() if folder]
    opened = open_published(source, options.revision, options.weights, replaced)
    transformers = opened.transformers
    for sentence in (*opened.notes, *transformers[0].notes):
        note(sentence)
    given = read_json(options.config) if options.config else transformers[0].config
    family = recognise(transformers[0].tensors, given, options.family)
    transformers = tuple(in_own_names(family, one) for one in transformers)
    config = family.config_from(given, transformers[0].shapes())
    note(f"family {family.NAME}: " + ", ".join(f"{field} {value}" for field, value in asdict(config).items()))
    dtype = DTYPES[options.precision]
    described = family.describe(config, transformers[0].scheduler, dtype, opened.configs)
    experts = described.experts
    _check_alike(family, transformers, len(experts), config)
    if options.conditioning and described.conditioned == "never":
        raise InputError(
            f"--conditioning: this model of {family.NAME} was not trained to keep frames that are given; leave it out"
        )
    make_stages = maker(family, options.conditioning or described.conditioned == "always")
    latent, guidance = described.latent, described.guidance
    own_parts = dict(opened.parts)
    if described.image is None and "image_encoder" in own_parts:
        del own_parts["image_encoder"]
        note("left out the image encoder, because this model attends to no states of an image")
    folders = {**own_parts, **{part: folder for part, folder in given_parts.items() if folder}}
    rules = Rules(latent, described.text, described.image)
    parts = open_parts(folders, rules, options, progress)
    own = list(map(signal_from, options.signals))
    check_names(own, {})
    signals = {**SIGNALS, **{signal.name: signal for signal in own}}
    block_input = described.block_input
    asked = tuple(block_input if probe == BLOCK_INPUT else probe for probe in options.probes)
    # the block input's probe comes beside the default probe, not in its place
    probes = asked if {*asked} - {block_input} else (described.probe, *asked)
    default = {described.probe} if described.probe in probes else {*probes} - {block_input}
    prefixes = key_prefixes(experts)
    checkpoint = merged(dict(zip(prefixes, transformers, strict=True)))
    expected = {prefix + name: shape for prefix in prefixes for name, shape in family.expected(config).items()}
    optional = [prefix + name for prefix in prefixes for name in family.OPTIONAL_KEYS]
    scanned = running_total(progress.phase("checking the checkpoint", checkpoint.file_bytes()))
    check(checkpoint, expected, optional, family.constants(config), scanned)

    with torch.device("meta"):  # shapes only: the weights stay in their file until a stage is verified
        stages = of_experts(make_stages(config, probes, dtype, options.granularity), experts)
        sums = arithmetic(stages, latent, guidance)
        measured = signal_stages(signals.values(), hidden_of(stages), latent, shown_of_timestep(stages))
    _check_probes(probes, stages, family.PARTS, options.granularity, block_input)
    keys = [*_keys(stages), *([guidance.null_captions] if guidance.null_captions else [])]
    dtypes: dict[str, DType] = {
        key: "float32" if any(part in key for part in described.float32) else dtype for key in keys
    }
    tensors: dict[str, Tensor] = {key: checkpoint.tensors[key] for key in keys}
    nbytes = weights_nbytes(tensors, dtypes)
    read = reader(tensors, dtypes)

    with building(output, nbytes + parts.nbytes() + SMALL_FILES, options.force, note) as folder:
        weights = folder / WEIGHTS
        weights.parent.mkdir()
        written = progress.phase("writing the weights", nbytes)
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        locations = write_weights(weights, shapes, dtypes, read, written)
        graphs = export_graphs(
            [*stages, *sums, *measured],
            options.precision,
            weights,
            locations,
            read,
            check_sizes(latent),
            OrtBackend(folder),
            progress,
        )
        files = file_entries(folder, progress.phase("hashing the bundle", nbytes))
        written_parts, rules = parts.write(folder, progress)
        for part in written_parts.values():
            files |= part.files
        entries = tuple(stage_entry(stage, graphs[stage.name], default) for stage in stages)
        left_out = described.conditioned == "asked" and family.conditioned_stages and not options.conditioning
        hashed = running_total(progress.phase("hashing the checkpoint", checkpoint.file_bytes()))
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            producer=f"adacache-export {version('adacache-export')}",
            family=family.NAME,
            config=asdict(config),
            precision=options.precision,
            granularity=options.granularity,
            profiles=described.profiles,
            stages=entries,
            experts=experts,
            conditioning="not-exported" if left_out else conditioning_of(entries),
            arithmetic={stage.name: graphs[stage.name] for stage in sums},
            signals={name: signal_entry(signal, graphs) for name, signal in signals.items()},
            policies=described.policies,
            sampler=described.sampler,
            video=described.video,
            names=possible_names(described.names, rules.latent, described.profiles),
            guidance=guidance,
            **rules.entries(),
            weights=WEIGHTS,
            part_weights={name: part.weights for name, part in written_parts.items()},
            checkpoint=CheckpointEntry(files=checkpoint.file_names(), sha256=checkpoint.sha256(hashed)),
            files=dict(sorted(files.items())),
        )
        (folder / MANIFEST).write_text(dump_manifest(manifest), encoding="utf-8")
    return manifest


def stage_entry(stage: Stage, graph: Graph, default: Collection[str]) -> StageEntry:
    """Return the manifest's entry on a stage; policies measure the sites of ``default`` unless they name others."""
    assert stage.role is not None

    def role(site: str) -> ProbeRole | None:
        if stage.block:
            return "default" if site in default else None
        return next((own for own in OF_TIMESTEP if own == site), "block_input")

    return StageEntry(
        graph=graph,
        role=stage.role,
        per_generation=stage.per_generation,
        kind=stage.kind,
        index=stage.index,
        part=stage.part,
        expert=stage.expert,
        probes={site: ProbeEntry(output=output, role=role(site)) for site, output in stage.probes.items()},
        flops=stage.flops,
    )


def in_own_names(family: Family, checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with the tensors' names in the family's own layout."""
    return replace(
        checkpoint, tensors={own_name(family.NAME, name): tensor for name, tensor in checkpoint.tensors.items()}
    )


def _check_alike(family: Family, transformers: Sequence[Checkpoint], experts: int, config: Any) -> None:
    """Check that a family's model has so many transformers, and that they differ in their weights only.

    Raises:
        CheckpointError: there are more transformers than the family's models have, or of another family or
            configuration.
    """
    if len(transformers) != experts:
        raise CheckpointError(
            f"the pipeline has {len(transformers)} transformers, and a model of {family.NAME} has {experts}; pass the"
            " folder of one of them"
        )
    for other in transformers[1:]:
        try:
            recognise(other.tensors, other.config, family.NAME)
        except CheckpointError as error:
            raise CheckpointError(f"{other.files[0].parent}: {error}") from error
        if family.config_from(other.config, other.shapes()) != config:
            raise CheckpointError(
                f"{other.files[0].parent} and {transformers[0].files[0].parent} have different configurations; expected"
                " two transformers that differ in their weights only: download them again"
            )


def _keys(stages: Iterable[Stage]) -> list[str]:
    return [key for stage in stages for key in stage.keys().values()]


def _check_probes(
    wanted: Iterable[str],
    stages: Iterable[Stage],
    parts: Mapping[str, tuple[str, ...]],
    granularity: ExportGranularity,
    block_input: str,
) -> None:
    made = {site for stage in stages for site in stage.probes}
    unknown = sorted(set(wanted) - made)
    if unknown:
        known = {kind: some if granularity == "module" else sites_of(some) for kind, some in parts.items()}
        forms = ", ".join(f"{kind}.N.{site}" for kind, sites in known.items() for site in sites)
        example = next(f"{kind}.0.{some[0]}" for kind, some in [*parts.items()][-1:])
        raise InputError(
            f"no probe site is called {', '.join(unknown)}; this model has {forms}, N a block from 0, such as"
            f" {example}, and {block_input}, which {BLOCK_INPUT} stands for"
        )
