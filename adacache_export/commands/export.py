"""``adacache-export``: a checkpoint into a bundle, and a look into one."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from adacache_engines.bundle.files import MANIFEST, read_manifest
from adacache_engines.bundle.latent_space import VaePrecision
from adacache_engines.bundle.manifest import DTYPES, ExportGranularity, Graph, Manifest, Precision
from adacache_engines.errors import InputError, require
from adacache_export.commands import computation, plans
from adacache_export.commands.progress import PhaseProgress
from adacache_runtime.commands.process import run
from adacache_runtime.commands.version import add_version

OF_CHECKPOINTS = ("output", "precision", "granularity", "probe", "conditioning", "family", "config", "weights")
OF_BUNDLES = ("text_encoder", "text_precision", "vae", "vae_precision", "profile", "force")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 for an error, 2 for wrong usage, 130 or 143 when stopped."""
    parser = _parser()
    options = parser.parse_args(arguments)
    computation.check_usage(parser, options)
    if options.inspect:
        return run("adacache-export", lambda _: _inspect(options))
    if options.verify:
        return run("adacache-export", lambda check: _verify(options.source, check))
    if options.triton_device and not options.triton_repository:
        parser.error("--triton-device is for --triton-repository DIR: give that, too")
    if options.triton_repository:
        return run("adacache-export", lambda check: _triton(options, check))
    if (options.source / MANIFEST).is_file():
        return run("adacache-export", lambda check: _extend(options, check))
    return run("adacache-export", lambda check: _export(options, check))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "adacache-export",
        description="Turns a video DiT checkpoint into a bundle that adacache-run generates from, without PyTorch.",
    )
    add_version(parser)
    add = parser.add_argument
    add("source", metavar="CHECKPOINT", type=Path, help="file or folder; to extend, inspect or verify, a bundle")
    add("-o", "--output", metavar="BUNDLE", type=Path, help="folder to make (default: CHECKPOINT's name + .adacache)")
    add("--precision", choices=tuple(DTYPES), help="of weights and matrix products (default: fp32)")
    add(
        "--granularity", choices=get_args(ExportGranularity), help="a stage a block, or a module of it (default: block)"
    )
    add(
        "--probe",
        metavar="SITE",
        action="append",
        default=[],
        help="what policies may measure, repeatable: residuals, such as temporal.N.attn or spatial.N.cross+mlp, or for "
        "TeaCache spatial.0.modulated (default: the temporal attention of the middle block)",
    )
    add(
        "--text-encoder",
        metavar="DIR",
        type=Path,
        help="T5 in a Hugging Face folder, to take prompts as text; of a bundle, too",
    )
    add("--text-precision", choices=tuple(DTYPES), help="of the text encoder (default: fp32, as published)")
    add("--vae", metavar="DIR", type=Path, help="folder of the model's VAE, to get videos and not latents; likewise")
    add(
        "--vae-precision",
        metavar="{fp32,bf16}",
        type=_vae_precision,
        help="of the VAE (default: fp32, as published; fp16 overflows)",
    )
    add(
        "--conditioning",
        action="store_true",
        help="generations may start from an image or a clip: some frames are given and kept (Open-Sora)",
    )
    add("--family", metavar="NAME", help="of the checkpoint (default: by its tensors and config.json)")
    add("--config", metavar="FILE.json", type=Path, help="of the model (default: the config.json of its folder)")
    add("--weights", metavar="SET", help="which weights of a checkpoint that has several, such as ema or model")
    add("--force", action="store_true", help="replace an existing bundle, or its plans")
    plans.add_arguments(parser)
    look = parser.add_mutually_exclusive_group()
    look.add_argument("--inspect", action="store_true", help="show what is in a bundle, and stop")
    look.add_argument("--verify", action="store_true", help="check a bundle's hashes and engines again, and stop")
    look.add_argument(
        "--triton-repository", metavar="DIR", type=Path, help="write a bundle into Triton's model repository, and stop"
    )
    add(
        "--triton-device",
        metavar="N",
        action="append",
        default=[],
        help="a GPU, with an instance of the model, repeatable; or cpu (default: every GPU for a bundle with plans, "
        "else cpu)",
    )
    computation.add_arguments(parser)
    return parser


def _export(options: argparse.Namespace, check: Callable[[], None]) -> None:
    _require_exporter()
    from adacache_export.convert import Options, convert

    source: Path = options.source
    _check_part_precisions(options)
    library, build = plans.asked(options)
    output: Path = options.output or Path(f"{source.resolve().stem}.adacache")
    choices = Options(
        precision=options.precision or "fp32",
        granularity=options.granularity or "block",
        probes=tuple(options.probe),
        weights=options.weights,
        force=options.force,
        text_encoder=options.text_encoder,
        text_precision=options.text_precision or "fp32",
        vae=options.vae,
        vae_precision=options.vae_precision or "fp32",
        family=options.family,
        config=options.config,
        conditioning=options.conditioning,
    )
    with PhaseProgress(check=check) as progress:
        if options.backend == "auto":
            progress.note(plans.explain(library))
        manifest = convert(source, output, choices, progress, progress.note)
    console = Console()
    console.print(_errors(manifest.graphs()))
    print(f"{output}: {len(manifest.files)} files, {_gigabytes(manifest)}")
    if library is not None:
        with PhaseProgress(check=check) as progress:
            console.print(plans.plan_table([plans.compile_bundle(output, library, build, options, progress.phase)]))


def _extend(options: argparse.Namespace, check: Callable[[], None]) -> None:
    """Adds a text encoder, a VAE or plans to a bundle."""
    foreign = _given(options, OF_CHECKPOINTS)
    if foreign:
        raise InputError(
            f"{options.source} is a bundle, and {', '.join(foreign)} belongs to the export of a checkpoint; "
            "export that again, or leave it out"
        )
    _check_part_precisions(options)
    library, build = plans.asked(options)
    if options.backend == "auto":
        print(plans.explain(library))
    if not (library or options.text_encoder or options.vae):
        raise InputError(
            f"{options.source} is a bundle already; compile plans with --backend tensorrt-rtx or tensorrt, add parts "
            "with --text-encoder or --vae, or look at it with --inspect"
        )
    console = Console()
    if options.text_encoder or options.vae:
        _require_exporter()
        from adacache_export.parts.add_parts import add_parts

        with PhaseProgress(check=check) as progress:
            precision: Precision = options.text_precision or "fp32"
            added = add_parts(
                options.source, options.text_encoder, options.vae, precision, progress, options.vae_precision or "fp32"
            )
        console.print(_errors(added.graphs))
        manifest = read_manifest(options.source)
        print(f"{options.source}: {len(manifest.files)} files, {_gigabytes(manifest)}")
        if added.dropped:
            print(f"{added.dropped} compiled plans of what was replaced are gone; build them again with --backend")
    if library is not None:
        with PhaseProgress(check=check) as progress:
            made = plans.compile_bundle(options.source, library, build, options, progress.phase)
        console.print(plans.plan_table([made]))


def _given(options: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Those of these options that are there."""
    return [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]


def _triton(options: argparse.Namespace, check: Callable[[], None]) -> None:
    """Writes a bundle into a model repository of Triton Inference Server."""
    foreign = _given(options, (*OF_CHECKPOINTS, *OF_BUNDLES))
    if foreign or options.backend != plans.ONNX_ONLY:
        raise InputError(
            f"--triton-repository writes a bundle as it is; leave {', '.join(foreign) or '--backend'} out, or change "
            "the bundle first"
        )
    from adacache_export.writing.triton_repository import CONFIG, add_to_repository

    with PhaseProgress(check=check) as progress:
        made = add_to_repository(options.triton_repository, options.source, options.triton_device, progress)
    print(f"{made.folder} {'is' if made.new else 'was there, and is'} {options.source}")
    if made.config_differs:
        print(f"{made.folder.parent / CONFIG} was left as it is; to have it made anew, delete it and repeat this")


def _vae_precision(text: str) -> str:
    if text == "fp16":
        raise argparse.ArgumentTypeError(
            "convolutions of a VAE give values beyond 65504, which fp16 cannot hold; choose bf16 or fp32"
        )
    if text not in get_args(VaePrecision):
        raise argparse.ArgumentTypeError(f"{text!r} is unknown; choose bf16 or fp32")
    return text


def _check_part_precisions(options: argparse.Namespace) -> None:
    if options.text_precision and not options.text_encoder:
        raise InputError("--text-precision is that of an encoder that is added: give --text-encoder DIR, too")
    if options.vae_precision and not options.vae:
        raise InputError("--vae-precision is that of a VAE that is added: give --vae DIR, too")


def _require_exporter() -> None:
    """What needs torch is imported after this, so neither --help nor --inspect waits for it."""
    for module in ("torch", "onnx", "onnx_ir", "onnxscript"):
        require(module, "export")
    require("onnxruntime", "cpu")


def _presets(manifest: Manifest) -> dict[str, str]:
    """A row for each note, with the presets that it is about, and one for presets without."""
    names: dict[str, list[str]] = {}
    for name, preset in manifest.policies.items():
        names.setdefault(preset.note, []).append(name)
    plain = names.pop("", [])
    noted = {f"presets {', '.join(some)}": note for note, some in names.items()}
    return {**noted, "presets": ", ".join(plain)} if plain else noted


def _inspect(options: argparse.Namespace) -> None:
    manifest = read_manifest(options.source)
    counted = computation.Computation.of(manifest, options)
    by_policy = counted.table(options.policy, options.trace)
    facts = Table(title=str(options.source), show_header=False)
    video, sampler = manifest.video, manifest.sampler
    rows = {
        "family": manifest.family,
        "made by": manifest.producer,
        "checkpoint": f"{', '.join(manifest.checkpoint.files)}  sha256 {manifest.checkpoint.sha256}",
        "config": ", ".join(f"{key} {value}" for key, value in manifest.config.items()),
        "precision": manifest.precision,
        "granularity": manifest.granularity,
        "sampler": f"{sampler.name}, {sampler.steps} steps, guidance {sampler.guidance:g}",
        "default video": f"{video.height}x{video.width} pixels, {video.frames} frames",
        **counted.facts(),
        "text": f"up to {manifest.text.max_length} tokens, width {manifest.text.width}, "
        + (f"with encoder in {manifest.text.precision}" if manifest.text.encoder_graphs() else "no encoder"),
        "decoder": manifest.latent.decoder + (f" in {manifest.latent.precision}" if manifest.vae_graphs() else ""),
        "conditioning": "frames may be given and kept" if manifest.conditioned() else "none",
        "probes": ", ".join(manifest.probes()) or "none",
        **_presets(manifest),
        "files": f"{len(manifest.files)}, {_gigabytes(manifest)}",
    }
    for profile, axes in manifest.profiles.items():
        rows[f"profile {profile}"] = ", ".join(f"{axis} {low} to {high}" for axis, (low, high) in axes.items())
    for name, value in rows.items():
        facts.add_row(name, value)
    stages = Table("stage", "inputs", "outputs", "error", title="stages, in order")
    for graph in manifest.graphs():
        error = f"{graph.check.error:.1e}" if graph.check else ""
        stages.add_row(graph.name, "\n".join(map(str, graph.inputs)), "\n".join(map(str, graph.outputs)), error)
    console = Console()
    console.print(facts)
    if by_policy:
        console.print(by_policy)
    console.print(stages)
    if manifest.plans:
        console.print(plans.plan_table(manifest.plans.values()))


def _verify(folder: Path, check: Callable[[], None]) -> None:
    _require_exporter()
    from adacache_export.verification.parity import check_errors
    from adacache_export.verification.verify import verify

    with PhaseProgress(check=check) as progress:
        graphs = verify(folder, progress)
    Console().print(_errors(graphs))
    check_errors(graphs)
    print(f"{folder}: every file is unchanged and every engine agrees with its torch stage")


def _errors(graphs: Iterable[Graph]) -> Table:
    table = Table("stage", "error", "allowed", title="engines against torch: max |difference| / max(1, rms)")
    for graph in graphs:
        if graph.check:
            table.add_row(graph.name, f"{graph.check.error:.1e}", f"{graph.check.tolerance:.0e}")
    return table


def _gigabytes(manifest: Manifest) -> str:
    return f"{sum(entry.nbytes for entry in manifest.files.values()) / 1e9:.3f} GB"
