"""``adacache-run``: a video from a bundle."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from adacache_engines.backends import open_backend, open_text_backend
from adacache_engines.base import Backend
from adacache_engines.bundle import Bundle, open_bundle
from adacache_engines.errors import InputError
from adacache_engines.manifest import LatentSpace, TextRule
from adacache_runtime import start
from adacache_runtime.clips import generate_clips, joined_frames
from adacache_runtime.command import run
from adacache_runtime.decode import stream, without_decoder
from adacache_runtime.files import check_folder, writing
from adacache_runtime.memory import table
from adacache_runtime.options import add_engine, add_size, video_size
from adacache_runtime.pipeline import Pipeline, Result
from adacache_runtime.policies import POLICY_HELP, policy_from
from adacache_runtime.policy import GRANULARITIES
from adacache_runtime.progress import call_progress, frame_progress
from adacache_runtime.prompt_loops import prompts_by_loop
from adacache_runtime.raw_frames import STANDARD_OUTPUT, check_standard_output, write_raw
from adacache_runtime.report import summary
from adacache_runtime.request import Captions, Request, Settled, settle
from adacache_runtime.schedule_plot import check_plot, plot_schedule
from adacache_runtime.text_cleaning import with_scores
from adacache_runtime.video import check_video, writing_video
from adacache_runtime.windows import video_frames


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 for an error, 2 for wrong usage, 130 or 143 when stopped."""
    options = _parser().parse_args(arguments)
    return run("adacache-run", lambda _: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("adacache-run", description="Generates a video from a bundle, without PyTorch.")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that adacache-export made")
    text = parser.add_argument_group("text").add_argument
    text(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="repeat it to generate several in one batch; |0|TEXT|8|TEXT changes it at a loop",
    )
    text("--aesthetic", type=float, metavar="SCORE", help="append a score that Open-Sora was trained with, such as 6.5")
    text("--motion", type=float, metavar="SCORE", help="likewise for the amount of motion")
    text("--camera", metavar="MOTION", help="likewise for the camera, such as 'pan right'")
    text(
        "--negative-prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="what to lead away from, one for all prompts or one each, for a model that takes it (default: empty)",
    )
    text(
        "--text-embeddings",
        metavar="FILE.npz",
        type=Path,
        help="instead of prompts: embeddings (n, length, width), optional mask (n, length) and negative (n, length, "
        "width), of the negative prompts",
    )
    group = parser.add_argument_group("video")
    add_size(group)
    video = group.add_argument
    video("--fps", type=float, nargs="+", metavar="f", help="one, or one a prompt (default: the bundle's)")
    video("--seed", type=int, default=0, help="of the initial noise (default: 0)")
    video(
        "--latents",
        metavar="FILE.npz",
        type=Path,
        help="initial noise: latents (n, channels, frames, height, width); optional mask (n, latent frames): 1 = "
        "generate, 0 = keep the frame that is in latents, in between the edit ratio; with it optional noise (steps, n, "
        "channels, frames, height, width), what the sampler would draw at each step",
    )
    start.add_arguments(parser)
    sampling = parser.add_argument_group("sampling and caching").add_argument
    sampling("--steps", type=int, help="(default: the bundle's)")
    sampling("--guidance", type=float, help="(default: the bundle's)")
    sampling("--idle-call", action="store_true", help="PNDM: also make its last call, which changes nothing")
    sampling("--policy", default="never", metavar="POLICY", help=POLICY_HELP)
    sampling("--granularity", choices=GRANULARITIES, help="of cached residuals (default: what the policy asks for)")
    sampling(
        "--scope",
        choices=("batch", "prompt"),
        default="batch",
        help="decide by the whole batch, or by the most cautious prompt (default: batch)",
    )
    output = parser.add_argument_group("output").add_argument
    output(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help=".mp4, .png (one frame) or .npz; several get -1, -2, ...; latents as .npz where the bundle has no decoder"
        "; - = raw RGB frames to standard output",
    )
    output(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="decode larger frames by blended tiles of this side, which take less memory (default: whole)",
    )
    output("--zoom", type=int, default=1, help="side of the square that a pixel becomes (default: 1)")
    output("--save-latents", metavar="FILE.npz", type=Path, help="the final latents")
    output("--save-every-call", action="store_true", help="with --save-latents: also calls, the latents before each")
    output("--trace", metavar="FILE.json", type=Path, help="what happened at each call")
    output("--plot", metavar="FILE.png", type=Path, help="distance, motion, rate and time a step")
    engine = add_engine(parser).add_argument
    engine("--weight-budget", type=int, metavar="MB", help="TensorRT: GPU memory for weights (default: all of them)")
    engine("--no-cuda-graphs", action="store_true", help="TensorRT: launch each engine by itself")
    engine("--plan-memory", action="store_true", help="print what the run would take, by kind, and stop")
    return parser


def _run(options: argparse.Namespace) -> None:
    bundle = open_bundle(options.bundle)
    request = Request(
        **video_size(options, bundle.manifest, options.fps[0] if options.fps else None),
        prompts=_prompts(options, bundle.manifest.text),
        negative_prompts=tuple(options.negative_prompt),
        captions=_captions(options.text_embeddings) if options.text_embeddings else None,
        fps=tuple(options.fps) if options.fps else None,
        steps=options.steps,
        guidance=options.guidance,
        seed=options.seed,
        **(_latents(options.latents) if options.latents else {}),
        policy=policy_from(options.policy, bundle.manifest.policies),
        granularity=options.granularity,
        scope=options.scope,
        keep_calls=options.save_every_call,
        idle_call=options.idle_call,
        tile=options.tile,
    )
    settled = settle(bundle, request)
    begins_with = start.read_start(options, bundle, settled)
    outputs = _outputs(options, settled.samples)
    if not options.plan_memory:
        _check_outputs(options, outputs, bundle.manifest.latent, settled)
    opened = open_backend(
        bundle,
        options.backend,
        options.provider,
        options.threads,
        cuda_graphs=not options.no_cuda_graphs,
        weight_budget=None if options.weight_budget is None else options.weight_budget * 10**6,
    )
    if (preset := bundle.manifest.policies.get(options.policy.partition("+")[0])) and preset.note:
        print(f"policy {options.policy}: {preset.note}", file=sys.stderr)
    with closing(opened) as backend:
        if begins_with is not None:
            for note in begins_with.notes:
                print(note, file=sys.stderr)
            request = start.begin(begins_with, request, settled, bundle, backend)
        text_backend = open_text_backend(bundle, backend, options.text_device, options.threads)
        pipeline = Pipeline(bundle, backend, text_backend=text_backend, embedding_cache=options.embedding_cache)
        if options.plan_memory:
            Console().print(table(pipeline.memory(request), backend.device.free_nbytes(), backend.name))
            return
        memory = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in pipeline.residual_nbytes(request).items())
        print(f"memory of cached residuals by granularity: {memory}; chosen: {settled.granularity}", file=sys.stderr)
        clips = [
            replace(request, seed=request.seed + loop, prompts=_prompts(options, bundle.manifest.text, loop))
            for loop in range(options.loops)
        ]
        with call_progress(len(clips) * len(settled.updates)) as progress:
            result = generate_clips(pipeline, clips, progress)
        _write_reports(options, result)  # first: there may be no memory to decode in, and the run was long
        if bundle.manifest.latent.decoder == "none":
            _write_latents(outputs, bundle, result)
        else:
            _write_videos(options, outputs, bundle, backend, settled, result)
    Console(stderr=True).print(summary(result.trace, bundle.manifest))


def _prompts(options: argparse.Namespace, rule: TextRule, loop: int = 0) -> tuple[str, ...]:
    """Those of one of the clips that make the video."""
    scores = (options.aesthetic, options.motion, options.camera)
    if rule.cleaning != "open-sora" and any(score is not None for score in scores):
        raise InputError("--aesthetic, --motion and --camera are for models that were trained with them: Open-Sora's")
    return tuple(with_scores(prompts_by_loop(text, loop + 1)[loop], *scores) for text in options.prompt)


def _captions(path: Path) -> Captions:
    arrays = _arrays(path)
    embeddings = _number(path, arrays, "embeddings")
    mask = arrays["mask"] != 0 if "mask" in arrays else np.ones(embeddings.shape[:2], np.bool_)
    return Captions(embeddings, mask, _number(path, arrays, "negative") if "negative" in arrays else None)


def _latents(path: Path) -> dict[str, NDArray[np.float32]]:
    """Those of a file, and what else of a generation's beginning it has, under the names of a request."""
    arrays = _arrays(path)
    if "mask" in arrays and arrays["mask"].dtype == np.bool_:
        arrays["mask"] = arrays["mask"].astype(np.float32)
    names = ["latents", *(name for name in ("mask", "noise") if name in arrays)]
    return {name: _number(path, arrays, name) for name in names}


def _number(path: Path, arrays: dict[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    if name not in arrays:
        raise InputError(f"{path} has no array {name}; it has {', '.join(arrays) or 'none'}")
    if arrays[name].dtype.kind not in "fiu":
        raise InputError(f"{path}: {name} is {arrays[name].dtype}; expected numbers")
    return arrays[name].astype(np.float32)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file.items())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        raise InputError(f"{path} is not a .npz file of numbers ({error}); write it with numpy.savez") from error


def _outputs(options: argparse.Namespace, samples: int) -> list[Path]:
    path: Path | None = options.output
    if path is None:
        return []
    if path == STANDARD_OUTPUT and samples > 1:
        raise InputError(f"-o - is one video, and there are {samples} prompts; give one, or name a file")
    return [path] if samples == 1 else [path.with_stem(f"{path.stem}-{index + 1}") for index in range(samples)]


def _check_outputs(options: argparse.Namespace, outputs: list[Path], latent: LatentSpace, settled: Settled) -> None:
    """What can be known before the long work."""
    wanted = (options.output, options.save_latents, options.trace, options.plot)
    if not any(wanted):
        raise InputError("nothing would be written: give -o FILE, --save-latents, --trace or --plot")
    if options.save_every_call and not options.save_latents:
        raise InputError("--save-every-call adds to --save-latents FILE.npz: give that, too")
    frames, height, width = _video_shape(latent, settled, options.loops)
    raw = outputs == [STANDARD_OUTPUT]
    if raw:
        check_standard_output()
        if latent.decoder == "none":
            raise InputError(f"-o - writes frames, and this bundle has no decoder; {without_decoder(latent)}")
    for path, rate in zip(outputs, settled.fps.tolist(), strict=False):
        # raw frames may be as many and as large as those of an array
        check_video(Path("frames.npz") if raw else path, frames, (height, width), rate, options.zoom)
    files = [] if raw else outputs if latent.decoder != "none" else [_instead(path) for path in outputs]
    if options.save_latents and options.save_latents.resolve() in [path.resolve() for path in files]:
        raise InputError(
            f"-o and --save-latents would both write {options.save_latents}: give one of them another name"
        )
    if options.plot:
        check_plot(options.plot)
    for path in (*files, options.save_latents, options.trace):
        if path:
            check_folder(path)


def _instead(video: Path) -> Path:
    """The file for latents that cannot become a video."""
    return video.with_suffix(".npz")


def _write_latents(outputs: list[Path], bundle: Bundle, result: Result) -> None:
    files = [_instead(path) for path in outputs]
    for index, path in enumerate(files):
        with writing(path) as file:
            np.savez(file, latents=result.latents[index : index + 1])
        print(path)
    if files:
        space = bundle.manifest.latent
        print(
            f"adacache-run: this bundle has no decoder, so latents were written to {', '.join(map(str, files))} "
            f"instead of a video; {without_decoder(space)}",
            file=sys.stderr,
        )


def _write_videos(
    options: argparse.Namespace, outputs: list[Path], bundle: Bundle, backend: Backend, settled: Settled, result: Result
) -> None:
    if not outputs:
        return
    count, height, width = _video_shape(bundle.manifest.latent, settled, options.loops)
    pixels = bundle.manifest.latent.decoder == "pixels"
    with nullcontext(lambda: None) if pixels else frame_progress(len(outputs) * count) as progress:
        for path, latents, fps in zip(outputs, result.latents, settled.fps.tolist(), strict=True):
            frames = stream(bundle, backend, latents, count, options.tile, progress)
            if path == STANDARD_OUTPUT:
                for some in frames:
                    write_raw(some, options.zoom)
                continue
            with writing_video(path, count, (height, width), fps, options.zoom) as write:
                for some in frames:
                    write(some)
    if outputs == [STANDARD_OUTPUT]:
        size = f"{options.zoom * width}x{options.zoom * height}"
        rate = f"{settled.fps.tolist()[0]:g} a second"
        print(f"standard output: {count} frames rgb24 {size} (width x height), {rate}", file=sys.stderr)
        return
    for path in outputs:
        print(path)


def _video_shape(latent: LatentSpace, settled: Settled, clips: int) -> tuple[int, int, int]:
    """Frames, height and width in pixels of a video of several clips."""
    latent_frames, height, width = settled.latents.shape[2:]
    factor = latent.spatial_factor
    frames = video_frames(latent, *joined_frames(latent, latent_frames, settled.frames, clips))
    return frames, height * factor, width * factor


def _write_reports(options: argparse.Namespace, result: Result) -> None:
    if options.save_latents:
        arrays: dict[str, Any] = {"latents": result.latents}
        if result.calls is not None:
            arrays["calls"] = result.calls
        with writing(options.save_latents) as file:
            np.savez(file, **arrays)
    if options.trace:
        with writing(options.trace) as file:
            file.write(result.trace.to_json().encode())
    if options.plot:
        plot_schedule(result.trace, options.plot, f"{options.bundle.name}, policy {Path(options.policy).stem}")
    for path in (options.save_latents, options.trace, options.plot):
        if path:
            print(path, file=sys.stderr if options.output == STANDARD_OUTPUT else sys.stdout)
