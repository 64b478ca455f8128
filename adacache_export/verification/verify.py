"""The verification of a finished bundle: every hash, and every engine against its torch stage."""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from adacache_engines.bundle.files import open_bundle, read_manifest
from adacache_engines.bundle.manifest import DTYPES, Graph, Manifest, Precision
from adacache_engines.errors import BundleError
from adacache_engines.onnxruntime.backend import OrtBackend
from adacache_engines.tensorrt.plans import check_plans
from adacache_export.arithmetic import arithmetic
from adacache_export.checkpoint.mapped import taken
from adacache_export.families.registry import FAMILIES, maker
from adacache_export.image_encoders import registry as image_encoders
from adacache_export.phases import Progress
from adacache_export.signals import signal_stages
from adacache_export.stages import Stage, hidden_of, key_prefixes, of_experts, shown_of_timestep
from adacache_export.text_encoders.registry import reopened
from adacache_export.vaes.registry import coding_of
from adacache_export.verification.parity import verified
from adacache_export.verification.sizes import check_sizes, decoder_sizes, encoder_sizes, vae_encoder_sizes
from adacache_runtime.caching.signals.registry import SIGNALS
from adacache_runtime.caching.signals.signal import Signal


def verify(folder: Path, progress: Progress, own: Sequence[Signal] = ()) -> list[Graph]:
    """Check a bundle again, and return its graphs, each with the result of the new check.

    Torch stages get the bundle's own weights. Signals from outside the project are compared with their reference where
    that is given; else their files' hashes are checked only.

    Args:
        folder: folder of the bundle.
        progress: object that is told of every phase.
        own: signals from outside the project.

    Raises:
        BundleError: a file or a plan is missing or changed, or the family is not known to this version.
        EngineError: an engine cannot be loaded or run.
    """
    size = sum(entry.nbytes for entry in read_manifest(folder).files.values())
    bundle = open_bundle(folder, progress.phase("hashing", size))
    manifest = bundle.manifest
    for plans in manifest.plans.values():
        check_plans(bundle, plans)
    if manifest.family not in FAMILIES:
        raise BundleError(f"{folder} is of family {manifest.family}; this version knows {', '.join(FAMILIES)}")
    backend = OrtBackend(folder)
    with contextlib.ExitStack() as stack:
        paths = {path: bundle.path(path) for path in {*manifest.weight_files().values()}}
        opened = {path: stack.enter_context(safe_open(str(file), framework="pt")) for path, file in paths.items()}
        model = opened[manifest.weights]
        shapes = {name: tuple(model.get_slice(name).get_shape()) for name in model.keys()}  # noqa: SIM118
        jobs = _jobs(manifest, shapes, own)
        step = progress.phase("verifying", len(jobs))
        graphs = []
        for stage, graph, precision, sizes in jobs:
            read = functools.partial(_read, opened[manifest.weight_files()[graph.name]])
            graphs.append(verified(stage, graph, precision, backend, read, sizes))
            step(1)
    return graphs


def _read(file: Any, key: str) -> Tensor:
    tensor: Tensor = file.get_tensor(key)
    return taken(tensor, tensor.dtype)


def _jobs(
    manifest: Manifest, shapes: dict[str, tuple[int, ...]], own: Sequence[Signal]
) -> list[tuple[Stage, Graph, Precision, list[dict[str, int]]]]:
    """Return every graph with the stage that it was made from, its precision, and sizes to compare both at."""
    family = FAMILIES[manifest.family]
    first = key_prefixes(manifest.experts)[0]
    config = family.config_from(
        manifest.config, {name.removeprefix(first): shape for name, shape in shapes.items() if name.startswith(first)}
    )
    with torch.device("meta"):
        make_stages = maker(family, manifest.conditioning == "kept-frames")
        stages = make_stages(config, tuple(manifest.probes()), DTYPES[manifest.precision], manifest.granularity)
        stages = of_experts(stages, manifest.experts)
        sums = arithmetic(stages, manifest.latent, manifest.guidance)
        known = [signal for signal in (*SIGNALS.values(), *own) if signal.name in manifest.signals]
        sums += signal_stages(known, hidden_of(stages), manifest.latent, shown_of_timestep(stages))
    graphs = {graph.name: graph for graph in manifest.loop_graphs()}
    sizes = check_sizes(manifest.latent)
    jobs = [(stage, graphs[stage.name], manifest.precision, sizes) for stage in (*stages, *sums)]
    if manifest.text.encoder_config is not None:
        text_precision = manifest.text.precision
        encoder, text_stages = reopened(manifest.text.encoder_config, DTYPES[text_precision])
        text_sizes = encoder_sizes(manifest.text.max_length, encoder.vocab_size)
        jobs += [
            (stage, graph, text_precision, text_sizes)
            for stage, graph in zip(text_stages, manifest.text.encoder_stages, strict=True)
        ]
    if manifest.image is not None and manifest.image.encoder_config is not None:
        image_stages = image_encoders.reopened(manifest.image.encoder_config)
        encoders = zip(image_stages, manifest.image.encoder_stages, strict=True)
        jobs += [(stage, graph, "fp32", [{}]) for stage, graph in encoders]
    if vae := {graph.name: graph for graph in manifest.vae_graphs()}:
        coding = coding_of(manifest.latent)
        for some, vae_sizes in ((coding.decoders, decoder_sizes), (coding.encoders, vae_encoder_sizes)):
            jobs += [(stage, vae[stage.name], manifest.latent.precision, vae_sizes(manifest.latent)) for stage in some]
    return jobs
