"""From a checkpoint to a bundle, in one line: load, check, write weights, trace, write graphs, verify, publish."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from adacache_engines.bundle import (
    DTYPES,
    MANIFEST,
    SCHEMA_VERSION,
    Check,
    CheckpointEntry,
    Graph,
    Manifest,
    Precision,
    StageEntry,
    dump_manifest,
)
from adacache_engines.errors import ExportError, InputError
from adacache_engines.ort import OrtBackend
from adacache_export.arithmetic import arithmetic
from adacache_export.bundle_writer import building, check_destination, file_entries
from adacache_export.checkpoint import Checkpoint, check, open_checkpoint
from adacache_export.families import recognise
from adacache_export.onnx_export import trace, write_graph
from adacache_export.parity import TOLERANCES, check_sizes, compare, example_sizes
from adacache_export.stages import Stage
from adacache_export.weights_file import TORCH_DTYPES, write_weights

WEIGHTS = "onnx/weights.safetensors"
SMALL_FILES = 1 << 24  # bytes; graphs and manifest, generously


@dataclass(frozen=True)
class Options:
    """What the user chose.

    Attributes:
        precision: of weights and matrix products.
        probes: sites; the family's default if empty.
        weights: which set of a checkpoint that holds several.
        force: replace an existing bundle.
        text_encoder: a Hugging Face folder with a T5 encoder.
    """

    precision: Precision = "fp32"
    probes: tuple[str, ...] = ()
    weights: str | None = None
    force: bool = False
    text_encoder: Path | None = None


class Progress:
    """Where conversion reports to; this one says nothing."""

    def phase(self, name: str, total: int) -> Callable[[int], None]:
        """Begins a phase of ``total`` units; the result is called with units done since its last call."""
        return lambda _: None


def convert(source: Path, output: Path, options: Options, progress: Progress | None = None) -> Manifest:
    """Exports a checkpoint.

    Args:
        source: a checkpoint file or folder.
        output: the bundle's folder.
        options: what the user chose.
        progress: told of every phase.

    Raises:
        CheckpointError: the checkpoint cannot be read, is of no known family, or is damaged.
        ExportError: a stage cannot be traced, or an engine disagrees with its stage; no bundle is left.
        InputError: the destination exists, or an unknown probe was asked for.
    """
    progress = progress or Progress()
    check_destination(output, options.force)
    checkpoint = open_checkpoint(source, options.weights)
    family = recognise(checkpoint.tensors)
    config = family.config_from(checkpoint.config, checkpoint.shapes())
    sampler = family.sampler(checkpoint.scheduler)
    expected = family.expected(config)
    scanned = _since(progress.phase("checking the checkpoint", _nbytes(checkpoint)))
    check(checkpoint, expected, family.OPTIONAL_KEYS, family.constants(config), scanned)

    dtype, latent, guidance = DTYPES[options.precision], family.latent_space(config), family.guidance(config)
    usual = family.default_probe(config)
    probes = options.probes or (usual,)
    with torch.device("meta"):  # shapes only: the weights stay in their file until a stage is verified
        stages = family.stages(config, probes, dtype)
        sums = arithmetic(stages, latent, guidance)
    _check_probes(probes, stages)
    shapes = {key: expected[key] for stage in stages for key in stage.keys().values()}
    shapes[guidance.null_captions] = expected[guidance.null_captions]
    nbytes = sum(torch.Size(shape).numel() for shape in shapes.values()) * TORCH_DTYPES[dtype].itemsize

    def read(key: str) -> Tensor:
        tensor = checkpoint.tensors[key].to(TORCH_DTYPES[dtype])
        if options.precision == "fp16" and not tensor.isfinite().all():
            raise ExportError(f"{key} has values beyond 65504, which fp16 cannot hold: use --precision bf16 or fp32")
        return tensor

    with building(output, nbytes + SMALL_FILES) as folder:
        weights = folder / WEIGHTS
        weights.parent.mkdir()
        locations = write_weights(
            weights, shapes, dict.fromkeys(shapes, dtype), read, progress.phase("writing the weights", nbytes)
        )
        every = [*stages, *sums]
        kinds = {stage.kind: stage for stage in every}
        step = progress.phase("tracing", len(kinds))
        traced = {}
        for kind, stage in kinds.items():
            stage.module.to(TORCH_DTYPES[dtype])
            traced[kind] = trace(stage, example_sizes(latent))
            step(1)

        backend = OrtBackend(folder)
        step = progress.phase("verifying each engine against its torch stage", len(every))
        graphs = []
        for stage in every:
            graph = Graph(name=stage.name, path=f"onnx/{stage.name}.onnx", inputs=stage.inputs, outputs=stage.outputs)
            write_graph(folder / graph.path, traced[stage.kind], stage, weights, locations)
            error = compare(stage, graph, backend, read, check_sizes(latent))
            verdict = Check(error=error, tolerance=TOLERANCES[options.precision], engine=backend.name)
            graphs.append(graph.model_copy(update={"check": verdict}))
            step(1)
        _check_errors(graphs)

        hashed = _since(progress.phase("hashing the checkpoint", checkpoint.file_bytes()))
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            producer=f"adacache-export {version('adacache-export')}",
            family=family.NAME,
            config=asdict(config),
            precision=options.precision,
            profiles=family.profiles(config),
            stages=tuple(
                StageEntry(graph=graph, block=stage.block, probes=dict(stage.probes))
                for stage, graph in zip(stages, graphs, strict=False)
            ),
            arithmetic={graph.name: graph for graph in graphs[len(stages) :]},
            default_probes=(usual,) if usual in probes else probes,
            sampler=sampler,
            guidance=guidance,
            latent=latent,
            text=family.text_rule(config),
            weights=WEIGHTS,
            checkpoint=CheckpointEntry(
                files=tuple(path.name for path in checkpoint.files), sha256=checkpoint.sha256(hashed)
            ),
            files=file_entries(folder, progress.phase("hashing the bundle", nbytes)),
        )
        (folder / MANIFEST).write_text(dump_manifest(manifest), encoding="utf-8")
    return manifest


def _nbytes(checkpoint: Checkpoint) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in checkpoint.tensors.values())


def _since(step: Callable[[int], None]) -> Callable[[int], None]:
    """Turns totals so far into what came since."""
    before = 0

    def report(total: int) -> None:
        nonlocal before
        step(total - before)
        before = total

    return report


def _check_probes(wanted: Iterable[str], stages: Iterable[Stage]) -> None:
    made = {site for stage in stages for site in stage.probes}
    unknown = sorted(set(wanted) - made)
    if unknown:
        raise InputError(
            f"no probe site is called {', '.join(unknown)}; sites are KIND.N.SITE with KIND spatial or temporal, "
            "N a block from 0, SITE attn or cross+mlp, such as temporal.0.attn"
        )


def _check_errors(graphs: Iterable[Graph]) -> None:
    wrong = [graph for graph in graphs if graph.check and not graph.check.error <= graph.check.tolerance]
    if wrong:
        lines = [f"  {g.name}: {g.check.error:.2e}, at most {g.check.tolerance:.0e} expected" for g in wrong if g.check]
        raise ExportError(
            "these engines disagree with their torch stages, so no bundle was written:\n"
            + "\n".join(lines)
            + "\nTry --precision fp32; if it persists, the installed onnxruntime or torch is at fault."
        )
