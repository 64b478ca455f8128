"""Tokens and floating-point operations of a bundle's calls and videos."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from adacache_engines.bundle.manifest import Manifest, VideoDefaults
from adacache_engines.bundle.shape_profiles import video_sizes
from adacache_engines.errors import BundleError, InputError, PolicyError
from adacache_runtime.caching.answers import needs_of
from adacache_runtime.caching.groups import granularities
from adacache_runtime.caching.presets import PRESETS, policy_from
from adacache_runtime.caching.simulate import Unchanged, bounds, simulate
from adacache_runtime.denoising.segments import CONDITIONAL, segments
from adacache_runtime.reports.flops import Work, in_unit, work, work_of_run
from adacache_runtime.samplers.registry import updates
from adacache_runtime.trace import read_trace

NO_COUNTS = "the stages of this model do not count their operations"


@dataclass(frozen=True)
class Computation:
    """The computation of a video of one prompt, which is as long as the model takes.

    Attributes:
        manifest: the bundle's manifest.
        video: the video that is counted for.
        sizes: sizes of the dynamic axes.
        work: operations at stack granularity; None where the bundle's stages do not count them.
    """

    manifest: Manifest
    video: VideoDefaults
    sizes: dict[str, int]
    work: Work | None

    @classmethod
    def of(cls, manifest: Manifest, video: VideoDefaults) -> "Computation":
        """Count the operations of a video.

        Raises:
            OutOfRangeError: the model makes no video of that size or length.
        """
        sizes = video_sizes(manifest, video)
        return cls(manifest, video, sizes, work(manifest, sizes))

    def facts(self) -> dict[str, str]:
        """Return the figures of one video and of its calls by their names."""
        frames, tokens = self.sizes["patch_frames"], self.sizes["tokens"]
        video = f"{self.video.width}x{self.video.height} pixels, {self.video.frames} frames"
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

    def table(self, policies: Sequence[str], traces: Sequence[Path]) -> Table | None:
        """Return a table of what a video takes with each policy, and of what traced runs took.

        Args:
            policies: names or files of policies; none = all presets that suit the bundle's stages.
            traces: files that ``adacache-run --trace`` wrote.

        Returns:
            The table, or None where the bundle's stages do not count their operations and nothing was asked for.

        Raises:
            BundleError: policies or traces are asked for, and the bundle has no counts.
            InputError: a policy is unknown, or a trace is of another bundle.
            PolicyError: a named policy decides for smaller stages than the bundle's.
            OutOfRangeError: the sampler has no timesteps for such a video.
        """
        if self.work is None:
            if policies or traces:
                raise BundleError(f"--policy and --trace need counts of operations: {NO_COUNTS}")
            return None
        called = updates(
            self.manifest, self.manifest.sampler.steps, 1, self.video.height, self.video.width, self.video.frames
        )
        whole = self.work.generation([(True,)] * len(called))
        table = Table("policy", "computed", "a video", "share", title=f"computation of a video, {len(called)} calls")
        own = self.manifest.policies
        for choice in policies or {**own, **PRESETS}:
            policy = policy_from(choice, own)
            limits = bounds(policy)
            if limits is None:
                table.add_row(Path(choice).stem, *["depends on the content"] * 3)
                continue
            wanted = needs_of(policy).granularity
            # a granularity that this bundle lacks is refused by the policy, which names what it needs
            used = wanted if wanted in granularities(self.manifest) else granularities(self.manifest)[-1]
            # a policy begins anew with each expert; branches that it treats apart are counted like the conditional one
            parts = segments(self.manifest, called, used, units=1)
            runs = [replace(part.run, branches=(CONDITIONAL,)) for part in parts]
            try:
                schedules = [
                    [decision for run in runs for decision in simulate(bound, run, Unchanged()).decisions]
                    for bound in limits
                ]
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
        if missing := {"batch", "patch_frames", "tokens"} - trace.sizes.keys():
            raise InputError(f"trace {path} has no size of {', '.join(sorted(missing))}; give one of this bundle")
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
