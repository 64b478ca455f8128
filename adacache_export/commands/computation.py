"""What ``--inspect`` says of a bundle's tokens and floating-point operations."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from adacache_engines.bundle.manifest import Manifest, VideoDefaults
from adacache_engines.bundle.shape_profiles import video_sizes
from adacache_engines.errors import BundleError, InputError, PolicyError
from adacache_runtime.caching.groups import granularities, group_name, group_stages
from adacache_runtime.caching.presets import PRESETS, policy_from
from adacache_runtime.caching.simulate import bounds, replay
from adacache_runtime.commands.options import add_size, video_size
from adacache_runtime.reports.flops import Work, in_unit, work, work_of_run
from adacache_runtime.samplers.registry import updates
from adacache_runtime.trace import read_trace

NO_COUNTS = "this bundle has no counts of operations; export its checkpoint again with this version of adacache-export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``--inspect``."""
    group = parser.add_argument_group("with --inspect, to count for")
    add_size(group)
    add = group.add_argument
    add(
        "--policy",
        metavar="POLICY",
        action="append",
        default=[],
        help=f"to count for, repeatable: a JSON file, or one of {', '.join(PRESETS)} (default: all of these)",
    )
    add(
        "--trace",
        metavar="FILE.json",
        type=Path,
        action="append",
        default=[],
        help="of adacache-run, to count for that run, repeatable",
    )


def check_usage(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the program where such an option is given without ``--inspect``."""
    names = ("size", "aspect", "frames", "duration", "policy", "trace")
    given = [f"--{name}" for name in names if getattr(options, name) not in (None, [])]
    if given and not options.inspect:
        parser.error(f"{', '.join(given)}: only with --inspect")


@dataclass(frozen=True)
class Computation:
    """What one prompt's video takes, the prompt being as long as the model takes.

    Attributes:
        manifest: of the bundle.
        video: that is counted for.
        sizes: of the dynamic axes.
        work: at stack granularity; None where the bundle has no counts.
    """

    manifest: Manifest
    video: VideoDefaults
    sizes: dict[str, int]
    work: Work | None

    @classmethod
    def of(cls, manifest: Manifest, options: argparse.Namespace) -> "Computation":
        """
        Raises:
            BundleError: policies or traces are asked for, and the bundle has no counts.
            OutOfRangeError: the model makes no video of that size or length.
        """
        asked = {name: value for name, value in video_size(options, manifest).items() if value is not None}
        video = manifest.video.model_copy(update=asked)
        sizes = video_sizes(manifest, video)
        counted = work(manifest, sizes)
        if counted is None and (options.policy or options.trace):
            raise BundleError(NO_COUNTS)
        return cls(manifest, video, sizes, counted)

    def facts(self) -> dict[str, str]:
        """Rows for the table of facts."""
        frames, tokens = self.sizes["patch_frames"], self.sizes["tokens"]
        video = f"{self.video.height}x{self.video.width} pixels, {self.video.frames} frames"
        rows = {
            "tokens": f"{video}: {frames} x {tokens} = {frames * tokens} a sample, and {self.sizes['text']} of text"
        }
        if self.work is None:
            return {**rows, "computation": NO_COUNTS}
        branches = len(self.manifest.guidance.order)
        share = f"{100 * self.work.cached / self.work.full:.2g}% of a full one"
        return {
            **rows,
            "full call": f"{_shown(self.work.full)} (one prompt, {branches} branches of guidance)",
            "cached call": f"{_shown(self.work.cached)}, {share}",
        }

    def table(self, policies: Sequence[str], traces: Iterable[Path]) -> Table | None:
        """What a video takes with each policy, and what traced runs took; without ``policies``, with all presets that
        suit the bundle's stages.

        Raises:
            InputError: a policy is unknown, or a trace is none of this bundle.
            PolicyError: a named policy decides for smaller stages than the bundle's.
            OutOfRangeError: the sampler has no timesteps for such a video.
        """
        if self.work is None:
            return None
        called = updates(
            self.manifest, self.manifest.sampler.steps, 1, self.video.height, self.video.width, self.video.frames
        )
        timesteps = [float(update.timestep[0]) for update in called]
        whole = self.work.generation([(True,)] * len(timesteps))
        table = Table("policy", "computed", "a video", "share", title=f"computation of a video, {len(timesteps)} calls")
        own = self.manifest.policies
        for choice in policies or {**own, **PRESETS}:
            policy = policy_from(choice, own)
            limits = bounds(policy)
            if limits is None:
                table.add_row(Path(choice).stem, *["depends on the content"] * 3)
                continue
            wanted = policy.needs.granularity
            # one that this bundle has not is refused by the policy, which names what it needs
            used = wanted if wanted in granularities(self.manifest) else granularities(self.manifest)[-1]
            names = [group_name(group) for group in group_stages(self.manifest, used)]
            try:
                schedules = [replay(bound, timesteps, names) for bound in limits]
            except PolicyError:
                if policies:
                    raise
                continue
            counted = work(self.manifest, self.sizes, used)
            assert counted is not None
            counts = [counted.generation(schedule) for schedule in schedules]
            texts, unit = in_unit(*counts)
            table.add_row(
                Path(choice).stem,
                _span(str(sum(map(any, schedule))) for schedule in schedules),
                f"{_span(texts)} {unit}",
                _span(f"{count / whole:.0%}" for count in counts),
            )
        table.add_section()
        for path in traces:
            table.add_row(*self._run(path))
        return table

    def _run(self, path: Path) -> tuple[str, str, str, str]:
        trace = read_trace(path)
        try:
            counted = work_of_run(self.manifest, trace)
        except InputError as error:
            raise InputError(f"trace {path}: {error}") from error
        assert counted is not None
        run, possible = counted
        frames, tokens = trace.sizes["patch_frames"], trace.sizes["tokens"]
        samples = trace.sizes["batch"] // len(self.manifest.guidance.order)
        many = f"{samples} prompts of " if samples > 1 else ""
        return (
            f"{path.name} ({many}{frames} x {tokens} tokens)",
            f"{len(trace.computed())} of {len(trace.calls)}",
            _shown(run),
            f"{run / possible:.1%}",
        )


def _shown(count: int) -> str:
    (text,), unit = in_unit(count)
    return f"{text} {unit}"


def _span(texts: Iterable[str]) -> str:
    return " to ".join(dict.fromkeys(texts))
