"""Options of ``adacache-run``, and the request that they make."""

import argparse
from pathlib import Path
from typing import Any

from adacache_engines.bundle.manifest import Manifest
from adacache_engines.errors import InputError
from adacache_runtime.caching.policy import GRANULARITIES
from adacache_runtime.caching.presets import POLICY_HELP, policy_from
from adacache_runtime.commands.array_files import read_captions, read_latents
from adacache_runtime.commands.options import add_opening, add_size, video_size
from adacache_runtime.commands.version import add_version
from adacache_runtime.request import Request
from adacache_runtime.samplers.registry import SAMPLERS


def run_parser() -> argparse.ArgumentParser:
    """Return the parser of ``adacache-run``."""
    parser = argparse.ArgumentParser("adacache-run", description="Generates a video from a bundle, without PyTorch.")
    add_version(parser)
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that adacache-export made")
    text = parser.add_argument_group("text").add_argument
    text(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="repeat it to generate several in one batch; |0|TEXT|8|TEXT changes it at a loop",
    )
    text("--aesthetic", type=float, metavar="SCORE", help="append a score that some models read, such as 6.5")
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
        "channels, frames, height, width), what the sampler would draw at each step. For a model that starts from an "
        "image, optional video_condition (channels, frames, height, width) instead of it: mask and latents of the "
        "video that begins with it; and, where the model also attends to states of the image, image_states (states, "
        "width) of an encoder of your own",
    )
    _add_given(parser)
    sampling = parser.add_argument_group("sampling and caching").add_argument
    sampling("--steps", type=int, help="(default: the bundle's)")
    sampling("--guidance", type=float, help="(default: the bundle's)")
    sampling(
        "--guidance-2", type=float, help="that of the second of two experts (default: --guidance, or the bundle's)"
    )
    sampling("--sampler", choices=tuple(SAMPLERS), help="one that fits what the model predicts (default: the bundle's)")
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
        help="decode larger frames, and encode those that are given, by blended tiles of this side, to save memory "
        "(default: as the VAE asks, or whole)",
    )
    output("--zoom", type=int, default=1, help="side of the square that a pixel becomes (default: 1)")
    output("--save-latents", metavar="FILE.npz", type=Path, help="the final latents")
    output("--save-every-call", action="store_true", help="with --save-latents: also calls, the latents before each")
    output("--trace", metavar="FILE.json", type=Path, help="what happened at each call")
    output("--plot", metavar="FILE.png", type=Path, help="distance, motion, rate and time a step")
    backend = add_opening(parser).add_argument
    backend("--estimate-memory", action="store_true", help="print what the run would take, by kind, and stop")
    return parser


def _add_given(parser: argparse.ArgumentParser) -> None:
    """Add the options for images and clips, for a bundle that can keep frames or starts from an image."""
    add = parser.add_argument_group("images and clips").add_argument
    add(
        "--image",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="an image in the video, repeatable; or the one that the video starts from, where the model needs it",
    )
    add(
        "--image-at",
        metavar="FRAME",
        type=int,
        action="append",
        default=[],
        help="frame of the video for each image, from 0, or from -1 at the end (default: 0); a model that "
        "codes frames in chunks can have one where a chunk begins, and takes the nearest",
    )
    add("--video", metavar="FILE", type=Path, help="a clip to continue: the video begins with its last frames")
    add(
        "--edit",
        metavar="RATIO",
        type=float,
        default=0.0,
        help="0 = keep images and clip as they are; the nearer to 1, the more of them may change (default: 0)",
    )
    add(
        "--loops",
        metavar="N",
        type=int,
        default=1,
        help="number of clips that continue one another, as one video; the seed counts up (default: 1)",
    )


def request_from(options: argparse.Namespace, manifest: Manifest) -> Request:
    """Return the request that the options make.

    Raises:
        InputError: a file cannot be read, or a name is unknown.
        OutOfRangeError: the model makes no video of that duration.
    """
    arrays: dict[str, Any] = read_latents(options.latents) if options.latents else {}
    if "mask" in arrays and (options.image or options.video):
        raise InputError("the mask in --latents says already what is given: leave it out, or the images and the clip")
    return Request(
        **video_size(options, manifest, options.fps[0] if options.fps else None),
        prompts=tuple(options.prompt),
        negative_prompts=tuple(options.negative_prompt),
        captions=read_captions(options.text_embeddings) if options.text_embeddings else None,
        aesthetic=options.aesthetic,
        motion=options.motion,
        camera=options.camera,
        fps=tuple(options.fps) if options.fps else None,
        steps=options.steps,
        guidance=options.guidance,
        guidance_2=options.guidance_2,
        sampler=options.sampler,
        seed=options.seed,
        images=tuple(options.image),
        image_at=tuple(options.image_at),
        clip=options.video,
        edit_ratio=options.edit,
        loops=options.loops,
        **arrays,
        policy=policy_from(options.policy, manifest.policies),
        granularity=options.granularity,
        scope=options.scope,
        keep_calls=options.save_every_call,
        idle_call=options.idle_call,
        tile=options.tile,
    )
