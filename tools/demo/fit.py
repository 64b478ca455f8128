"""Fit AdaCache's constants to a model that draws the demo world; the published ones are for Open-Sora's distances.

Every call is computed and measured once for a set of prompts. The pure policies are replayed on these numbers, run, and
corrected, because reused residuals change what is measured later:

- ``slow`` and ``fast``: a published codebook with all thresholds scaled so that as many calls are computed on average
  as the paper's FLOPs say (arXiv 2411.02397, table 1);
- ``fast-moreg``: motion regularisation on the fast codebook, without the factors that are not in the paper (exponent
  and gradient 1), and h0 such that the paper's number of calls is computed.

    python -m tools.demo.fit [--bundle FOLDER]

The constants go to ``tools/demo/policies`` for the demo model, and into the families for Latte-1 and Open-Sora-Plan,
which are fitted to the LatteT2V of ``tools/demo/latte`` because their own weights are not at hand::

    adacache-export tools/demo/latte --family FAMILY --text-encoder tools/demo/model/text_encoder -o FOLDER
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.progress import track

from adacache_export.families.description import PRESETS
from adacache_export.families.latte import family as latte
from adacache_export.families.open_sora import family as open_sora
from adacache_export.families.open_sora_plan import family as open_sora_plan
from adacache_export.families.registry import FAMILIES
from adacache_runtime.caching.policies.measured.adacache import AdaCache, MoReg
from adacache_runtime.caching.policy import Measure, Measurement, Needs, Run
from adacache_runtime.caching.presets import FAST_30, FAST_100, SLOW_30
from adacache_runtime.caching.signals.signal import at_stride
from adacache_runtime.caching.simulate import simulate
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.trace import Trace
from tools.demo import world

POLICIES = Path(__file__).parent / "policies"
SEED = 7001  # other prompts than those of the table
ROUNDS = 3  # of runs with each policy
NOTE = (
    "for this model no thresholds are published; these were fitted to a small LatteT2V on synthetic videos "
    "(tools/demo/latte) such that {computed} of {calls} calls are computed there, as the paper's FLOPs suggest; with "
    "the released weights, check the videos"
)
# computes and measures every call, and shows distance and raw motion as they are
MEASURE_ALL = AdaCache(codebook=((0.0, 1),), moreg=MoReg(window=(1, 1000), h0=1, exponent=1, gradient=0))


@dataclass(frozen=True)
class Goal:
    """The policies of a family before they are fitted, and the numbers that they are fitted to.

    Attributes:
        fast, slow: published codebooks, whose thresholds are scaled.
        computed: mean number of computed calls to reach, by policy.
        window: first and last call of motion regularisation.
        prompts: number of prompts that are measured.
    """

    fast: Sequence[tuple[float, int]]
    slow: Sequence[tuple[float, int]]
    computed: Mapping[str, float]
    window: tuple[int, int]
    prompts: int = 24


GOALS: Mapping[str, Goal] = {
    open_sora.NAME: Goal(FAST_30, SLOW_30, {"slow": 20, "fast": 12, "fast-moreg": 13}, (4, 26)),
    latte.NAME: Goal(FAST_30, SLOW_30, {"slow": 29, "fast": 15, "fast-moreg": 17}, (6, 44)),
    open_sora_plan.NAME: Goal(FAST_100, SLOW_30, {"slow": 62, "fast": 41, "fast-moreg": 43}, (16, 142), prompts=12),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("out/demo.adacache"))
    options = parser.parse_args()
    pipeline = Pipeline.open(options.bundle)
    family = pipeline.bundle.manifest.family
    goal = GOALS[family]
    traces = record(pipeline, goal.prompts)
    fitted = {name: plain(policy) for name, policy in fit(pipeline, traces, goal).items()}
    if family == open_sora.NAME:
        for name, policy in fitted.items():
            (POLICIES / f"{name}.json").write_text(json.dumps(policy) + "\n")
        return
    counts = ", ".join(f"{count:g} ({name})" for name, count in goal.computed.items())
    note = NOTE.format(computed=counts, calls=len(traces[0].calls))
    replace_presets(FAMILIES[family].FOLDER / PRESETS, fitted, note)


def replace_presets(path: Path, fitted: Mapping[str, object], note: str) -> None:
    """Write fitted policies into a family's file; its other presets stay as they are."""
    presets = json.loads(path.read_text(encoding="utf-8"))["presets"]
    presets |= {f"adacache-{name}": {"policy": policy, "note": note} for name, policy in fitted.items()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(preset)}" for name, preset in presets.items())
    path.write_text(f'{{\n "presets": {{\n{lines}\n }}\n}}\n', encoding="utf-8")


def plain(policy: AdaCache) -> dict[str, object]:
    """Return the policy as a JSON file describes it."""
    return policy.model_dump(mode="json", exclude={"probe"}, exclude_none=True)


def record(pipeline: Pipeline, prompts: int, policy: AdaCache = MEASURE_ALL, what: str = "measuring") -> list[Trace]:
    """Return the traces of generations that compute and measure every call, or of generations with a policy."""
    return [
        pipeline.generate(Request(prompts=(prompt,), seed=seed, policy=policy)).trace
        for seed, prompt in enumerate(track(world.prompts(prompts, SEED), what), SEED)
    ]


def fit(pipeline: Pipeline, traces: Sequence[Trace], goal: Goal) -> dict[str, AdaCache]:
    """Return the three fitted policies."""

    def scaled(codebook: Sequence[tuple[float, int]]) -> Callable[[float], AdaCache]:
        return lambda scale: AdaCache(codebook=tuple((round(bound * scale, 5), rate) for bound, rate in codebook))

    def settled(name: str, make: Callable[[float], AdaCache]) -> AdaCache:
        wanted = aim = goal.computed[name]
        tried: list[tuple[float, AdaCache]] = []
        for number in range(1, ROUNDS + 1):
            policy = search(make, aim, traces)
            if policy in [other for _, other in tried]:
                break
            runs = record(pipeline, goal.prompts, policy, f"{name}, run {number} of {ROUNDS}")
            mean = fmean(len(run.computed()) for run in runs)
            print(f"{name}: {mean:.1f} of {len(traces[0].calls)} calls computed, {wanted:g} wanted", flush=True)
            tried.append((abs(mean - wanted), policy))
            aim += wanted - mean
        return min(tried, key=lambda entry: entry[0])[1]

    slow, fast = settled("slow", scaled(goal.slow)), settled("fast", scaled(goal.fast))

    def regularised(h0: float) -> AdaCache:
        moreg = MoReg(window=goal.window, h0=round(h0, 5), exponent=1, gradient=1)
        return AdaCache(codebook=fast.codebook, moreg=moreg)

    return {"slow": slow, "fast": fast, "fast-moreg": settled("fast-moreg", regularised)}


def search(make: Callable[[float], AdaCache], computed: float, traces: Sequence[Trace]) -> AdaCache:
    """Return the policy ``make(x)`` whose mean number of computed calls is nearest to ``computed``; it falls with x."""
    grid = [10 ** (exponent / 100) for exponent in range(-200, 101)]
    return min(map(make, grid), key=lambda policy: abs(mean_computed(policy, traces) - computed))


def mean_computed(policy: AdaCache, traces: Sequence[Trace]) -> float:
    """Return the mean number of calls that a policy computes, by replay."""
    return fmean(len(replay(policy, trace)) for trace in traces)


@dataclass(frozen=True)
class Measured:
    """Return the distances a call and the motion of a run that computed every call.

    A policy would see them if the distance grew evenly with the calls in between.
    """

    trace: Trace

    def measures(self, needs: Needs) -> Sequence[Measure]:
        return needs.measures

    def measurement(self, measure: Measure, earlier: int, call: int) -> Measurement:
        seen = self.trace.calls[call - 1].observation
        numbers = {"change": seen["distance"] * (call - earlier), "magnitude": 1.0}
        for stride in measure.strides:
            numbers |= {at_stride("motion", stride): seen["motion"], at_stride("motion_magnitude", stride): 1.0}
        return Measurement(measure.site, {name: (number,) for name, number in numbers.items()})


def replay(policy: AdaCache, trace: Trace) -> list[int]:
    """Return the calls that a policy would compute."""
    timesteps = tuple(record.timestep for record in trace.calls)
    return simulate(policy, Run(len(timesteps), 1, 1, (), timesteps), Measured(trace)).computed()


if __name__ == "__main__":
    main()
