"""Convert a checkpoint to a bundle, in one line of steps: load, check, write weights, trace, verify, publish."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

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
)
from adacache_engines.bundle.tensors import DType
from adacache_engines.bundle.video_sizes import possible_names
from adacache_engines.errors import InputError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_export.arithmetic import arithmetic
from adacache_export.checkpoint import check, open_checkpoint
from adacache_export.checkpoint.formats import read_json
from adacache_export.families.registry import maker, recognise
from adacache_export.families.residual_block import sites_of
from adacache_export.options import Options
from adacache_export.parts.part import SMALL_FILES, weights_nbytes
from adacache_export.parts.text_encoder import add_encoder, open_encoder
from adacache_export.parts.vae import add_decoder, open_decoder
from adacache_export.phases import Progress, running_total
from adacache_export.signals import signal_entry, signal_stages
from adacache_export.stages import MODULATED, Stage, hidden_of
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
        source: file or folder of the checkpoint.
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
    checkpoint = open_checkpoint(source, options.weights)
    for sentence in checkpoint.notes:
        note(sentence)
    given = read_json(options.config) if options.config else checkpoint.config
    family = recognise(checkpoint.tensors, given, options.family)
    make_stages = maker(family, options.conditioning)
    config = family.config_from(given, checkpoint.shapes())
    note(f"family {family.NAME}: " + ", ".join(f"{field} {value}" for field, value in asdict(config).items()))
    dtype = DTYPES[options.precision]
    described = family.describe(config, checkpoint.scheduler, dtype)
    latent, guidance, text = described.latent, described.guidance, described.text
    vae = open_decoder(options.vae, latent, options.vae_precision, progress) if options.vae else None
    own = list(map(signal_from, options.signals))
    check_names(own, {})
    signals = {**SIGNALS, **{signal.name: signal for signal in own}}
    asked = tuple(MODULATED if probe == BLOCK_INPUT else probe for probe in options.probes)
    # the block input's probe comes beside the default probe, not in its place
    probes = asked if {*asked} - {MODULATED} else (described.probe, *asked)
    default = {described.probe} if described.probe in probes else {*probes} - {MODULATED}
    expected = family.expected(config)
    scanned = running_total(progress.phase("checking the checkpoint", checkpoint.file_bytes()))
    check(checkpoint, expected, family.OPTIONAL_KEYS, family.constants(config), scanned)
    encoder = None
    if options.text_encoder:
        encoder = open_encoder(options.text_encoder, text, options.text_precision, progress)

    with torch.device("meta"):  # shapes only: the weights stay in their file until a stage is verified
        stages = make_stages(config, probes, dtype, options.granularity)
        sums = arithmetic(stages, latent, guidance)
        measured = signal_stages(signals.values(), hidden_of(stages), latent)
    _check_probes(probes, stages, family.PARTS, options.granularity)
    keys = [*_keys(stages), *([guidance.null_captions] if guidance.null_captions else [])]
    dtypes: dict[str, DType] = dict.fromkeys(keys, dtype)
    tensors: dict[str, Tensor] = {key: checkpoint.tensors[key] for key in keys}
    nbytes = weights_nbytes(tensors, dtypes)
    read = reader(tensors, dtypes)
    beside = weights_nbytes(encoder.checkpoint.tensors, encoder.dtypes()) if encoder else 0
    beside += weights_nbytes(vae.checkpoint.tensors, vae.dtypes()) if vae else 0

    with building(output, nbytes + beside + SMALL_FILES, options.force) as folder:
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
        part_weights: dict[PartName, str] = {}
        if encoder:
            part, text = add_encoder(folder, encoder, text, options.text_precision, progress)
            part_weights["text_encoder"], files = part.weights, {**files, **part.files}
        if vae:
            part, latent = add_decoder(folder, vae, latent, progress)
            part_weights["vae"], files = part.weights, {**files, **part.files}
        hashed = running_total(progress.phase("hashing the checkpoint", checkpoint.file_bytes()))
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            producer=f"adacache-export {version('adacache-export')}",
            family=family.NAME,
            config=asdict(config),
            precision=options.precision,
            granularity=options.granularity,
            profiles=described.profiles,
            stages=tuple(stage_entry(stage, graphs[stage.name], default) for stage in stages),
            arithmetic={stage.name: graphs[stage.name] for stage in sums},
            signals={name: signal_entry(signal, graphs) for name, signal in signals.items()},
            policies=described.policies,
            sampler=described.sampler,
            video=described.video,
            names=possible_names(described.names, latent, described.profiles),
            guidance=guidance,
            latent=latent,
            text=text,
            weights=WEIGHTS,
            part_weights=part_weights,
            checkpoint=CheckpointEntry(
                files=tuple(path.name for path in checkpoint.files), sha256=checkpoint.sha256(hashed)
            ),
            files=dict(sorted(files.items())),
        )
        (folder / MANIFEST).write_text(dump_manifest(manifest), encoding="utf-8")
    return manifest


def stage_entry(stage: Stage, graph: Graph, default: Collection[str]) -> StageEntry:
    """Return the manifest's entry on a stage; policies measure the sites of ``default`` unless they name others."""
    assert stage.role is not None

    def role(site: str) -> ProbeRole | None:
        return "block_input" if site == MODULATED else "default" if site in default else None

    return StageEntry(
        graph=graph,
        role=stage.role,
        per_generation=stage.per_generation,
        kind=stage.kind,
        index=stage.index,
        part=stage.part,
        probes={site: ProbeEntry(output=output, role=role(site)) for site, output in stage.probes.items()},
        flops=stage.flops,
    )


def _keys(stages: Iterable[Stage]) -> list[str]:
    return [key for stage in stages for key in stage.keys().values()]


def _check_probes(
    wanted: Iterable[str],
    stages: Iterable[Stage],
    parts: Mapping[str, tuple[str, ...]],
    granularity: ExportGranularity,
) -> None:
    made = {site for stage in stages for site in stage.probes}
    unknown = sorted(set(wanted) - made)
    if unknown:
        known = {kind: some if granularity == "module" else sites_of(some) for kind, some in parts.items()}
        forms = ", ".join(f"{kind}.N.{site}" for kind, sites in known.items() for site in sites)
        raise InputError(
            f"no probe site is called {', '.join(unknown)}; this model has {forms}, N a block from 0, such as"
            f" temporal.0.attn, and {MODULATED}, which {BLOCK_INPUT} stands for"
        )
