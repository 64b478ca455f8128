"""``adacache-profile``: measure the engines of a bundle and a whole generation, or check whether two backends agree."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adacache_engines.backends import BACKENDS
from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.errors import EngineError, InputError
from adacache_runtime.caching.policy import GRANULARITIES
from adacache_runtime.caching.presets import POLICY_HELP, policy_file, policy_from
from adacache_runtime.commands.destinations import check_apart
from adacache_runtime.commands.options import (
    add_backend,
    add_expert_offload,
    add_size,
    backend_from,
    backend_texts,
    video_size,
)
from adacache_runtime.commands.process import Check, run
from adacache_runtime.commands.progress import call_progress
from adacache_runtime.commands.ranges import check_ranges
from adacache_runtime.commands.version import add_version
from adacache_runtime.denoising.experts import check_offload
from adacache_runtime.media.files import check_writable, writing
from adacache_runtime.request import Request
from adacache_runtime.settled import settle
from adacache_tune.commands.engine_progress import engine_progress
from adacache_tune.commands.tables import show
from adacache_tune.machine import machine, versions
from adacache_tune.profiling import comparison
from adacache_tune.profiling.backends import PLAIN, compared_backends, open_target, use_library
from adacache_tune.profiling.engine_latency import EngineLatency, measure_engine
from adacache_tune.profiling.memory import memory_nbytes
from adacache_tune.profiling.page import page
from adacache_tune.profiling.profile import Profile, to_json
from adacache_tune.profiling.subjects import Subject, captions, sizes_of, subjects, text_length
from adacache_tune.profiling.tables import comparison_table, profile_tables
from adacache_tune.profiling.targets import Target
from adacache_tune.profiling.timeline import Timeline, measure_generation

RANGES = {"iterations": (1, 10**6), "warm_up": (0, 10**6)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 for an error, 2 for wrong usage, 130 or 143 when stopped.

    A difference between two compared backends is an error.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = shlex.join(["adacache-profile", *given])
    return run(
        "adacache-profile", lambda: _parser().parse_args(given), lambda options, check: _run(options, command, check)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "adacache-profile",
        description="Measures a bundle's engines one by one and a whole generation, or compares two backends.",
    )
    add_version(parser)
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that adacache-export made")
    add_expert_offload(add_backend(parser))
    group = parser.add_argument_group("generation")
    add_size(group)
    video = group.add_argument
    video("--steps", type=int, help="(default: the bundle's)")
    video("--policy", default="never", metavar="POLICY", help=POLICY_HELP)
    video("--granularity", choices=GRANULARITIES, help="of cached residuals (default: the policy's)")
    video("--prompt", metavar="TEXT", help="for a bundle with a text encoder, which is profiled then, too")
    video("--text-length", type=int, metavar="L", help="tokens of random embeddings (default: the model's most)")
    known = ", ".join((*BACKENDS, f"onnxruntime{PLAIN}"))
    measuring = parser.add_argument_group("measuring").add_argument
    measuring("--iterations", type=int, default=20, metavar="N", help="of each engine that are counted (default: 20)")
    measuring("--warm-up", type=int, default=3, metavar="N", help="that are not, after the first call (default: 3)")
    measuring("--only", nargs="+", default=[], metavar="STAGE", help="these engines alone, and no generation")
    measuring("--layers", action="store_true", help="the time of each layer, too")
    measuring("--compare", metavar="A,B", help=f"check instead whether two of these backends agree: {known}")
    output = parser.add_argument_group("output").add_argument
    output("--json", metavar="FILE", type=Path, help="all numbers")
    output("--html", metavar="FILE", type=Path, help="one page with plots, which opens without a network")
    return parser


@dataclass(frozen=True)
class _Work:
    """A checked request to profile."""

    bundle: Bundle
    request: Request
    sizes: Mapping[str, int]
    subjects: Sequence[Subject]
    text: str


def _run(options: argparse.Namespace, command: str, check: Check) -> None:
    outputs = [("--json", options.json), ("--html", options.html)]
    check_apart(outputs, [("--policy", policy_file(options.policy))], [options.bundle])
    for _, path in outputs:
        if path:
            check_writable(path)
    check_ranges(options, RANGES)
    if options.compare:
        _compare(options, command, check)
        return
    backend = backend_from(options)
    use_library([backend])
    work = _work(options)
    target = open_target(work.bundle, backend, work.sizes)
    engines = _measure(options, work, target, check)
    generation, skipped = _generation(options, work, target)
    profile = Profile(
        command=command,
        bundle=work.bundle,
        backend=target.name,
        machine=machine(target.on_gpu),
        versions=versions(),
        request=_described(options, work),
        sizes=work.sizes,
        engines=engines,
        generation=generation,
        generation_skipped=skipped,
        memory=memory_nbytes(
            work.bundle.manifest, work.sizes, target.plan_nbytes(), generation.memory if generation else None
        ),
    )
    show(profile_tables(profile))
    if options.json:
        _write(options.json, to_json(profile))
    if options.html:
        _write(options.html, page(profile))


def _work(options: argparse.Namespace) -> _Work:
    """Check the request.

    Raises:
        AdaCacheError: the bundle, or what is asked of it, is not possible.
    """
    if options.prompt is not None and options.text_length is not None:
        raise InputError("--prompt has a length of its own: leave out --text-length")
    bundle = open_bundle(options.bundle)
    manifest = bundle.manifest
    if options.expert_offload:
        check_offload(bundle.folder, manifest)
    if options.prompt is not None:
        length = text_length(bundle, options.prompt)
        text, given = f"{length} tokens of a prompt", None
    else:
        length = manifest.text.max_length if options.text_length is None else options.text_length
        text, given = f"{length} random embeddings", captions(manifest, length)
    black = np.zeros((manifest.latent.spatial_factor, manifest.latent.spatial_factor, 3), np.uint8)
    request = Request(
        **video_size(options, manifest),
        prompts=() if given else (options.prompt,),
        captions=given,
        steps=options.steps,
        policy=policy_from(options.policy, manifest.policies),
        granularity=options.granularity,
        images=(black,) if manifest.conditioning == "encoded-video" else (),
    )
    sizes = sizes_of(bundle, request, length)
    return _Work(bundle, request, sizes, subjects(manifest, options.only, given is None), text)


def _measure(options: argparse.Namespace, work: _Work, target: Target, check: Check) -> list[EngineLatency]:
    engines = []
    with engine_progress(len(work.subjects)) as progress:
        for subject in work.subjects:
            progress(subject.name)
            manifest, counts = work.bundle.manifest, (options.iterations, options.warm_up)
            engines.append(measure_engine(target, manifest, subject, work.sizes, *counts, options.layers))
            check()
    return engines


def _generation(options: argparse.Namespace, work: _Work, target: Target) -> tuple[Timeline | None, str | None]:
    """Return the measured generation, or why there is none."""
    if options.only:
        return None, "--only measures single engines"
    with call_progress(len(settle(work.bundle, work.request).updates)) as progress:
        measured = measure_generation(
            work.bundle, target.backend(), work.request, progress, expert_offload=options.expert_offload
        )
        return measured, None


def _described(options: argparse.Namespace, work: _Work) -> dict[str, str | int | float]:
    settled = settle(work.bundle, work.request)
    return {
        "height": settled.height,
        "width": settled.width,
        "frames": settled.frames,
        "steps": settled.steps,
        **settled.guidance_scales(),
        "policy": Path(options.policy).stem,
        "granularity": settled.granularity,
        "text": work.text,
    }


def _compare(options: argparse.Namespace, command: str, check: Check) -> None:
    """Compare two backends.

    Raises:
        EngineError: an engine differs by more than its tolerance.
    """
    choices = options.compare.split(",")
    if len(choices) != 2 or len(set(choices)) != 2:
        raise InputError(f"--compare {options.compare} is not two backends, such as onnxruntime-plain,onnxruntime")
    if options.html or options.layers:
        raise InputError("--html and --layers are of a profile; a comparison can be written with --json")
    backends = compared_backends(choices, backend_texts(options))
    use_library([*backends.values()])
    work = _work(options)
    targets = {choice: open_target(work.bundle, backend, work.sizes) for choice, backend in backends.items()}
    found: list[comparison.Difference] = []
    with engine_progress(len(work.subjects)) as progress:
        for subject in work.subjects:
            progress(subject.name)
            found += comparison.compare_engine(targets, work.bundle.manifest, subject, work.sizes)
            check()
    names = {choice: target.name for choice, target in targets.items()}
    show(comparison_table(" against ".join(names.values()), found))
    if options.json:
        _write(options.json, comparison.to_json(command, names, found))
    over = list(dict.fromkeys(difference.name for difference in found if not difference.passed))
    if over:
        raise EngineError(f"{choices[0]} differs from {choices[1]} by more than rounding in {', '.join(over)}")


def _write(path: Path, text: str) -> None:
    with writing(path) as file:
        file.write(text.encode())
    print(path)
