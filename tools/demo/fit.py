"""Fits AdaCache's constants to the demo model: the published ones are for another model's distances and motion.

Every call is computed and measured once for a set of prompts; then the pure policies are replayed on these numbers:

- ``slow`` and ``fast``: the published codebook with all thresholds scaled so that 20 and 12 of 30 calls are computed
  on average, as in the paper (arXiv 2411.02397, table 1, from its FLOPs);
- ``fast-moreg``: motion regularisation on the fast codebook, without the factors that are not in the paper (exponent
  and gradient 1), and h0 such that 13 calls are computed.

    python -m tools.demo.fit [--bundle FOLDER]
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from adacache_runtime.pipeline import Pipeline
from adacache_runtime.policies import FAST_30, SLOW_30
from adacache_runtime.policies.adacache import AdaCache, MoReg
from adacache_runtime.policy import Context, Measurement, Run
from adacache_runtime.request import Request
from adacache_runtime.trace import Trace
from tools.demo import world

POLICIES = Path(__file__).parent / "policies"
PROMPTS, SEED = 24, 7001  # others than those of the table
COMPUTED = {"slow": 20.0, "fast": 12.0, "fast-moreg": 13.0}
WINDOW = (4, 26)  # steps, as published for 30
# computes and measures every call, and shows distance and raw motion as they are
MEASURE_ALL = AdaCache(codebook=((0.0, 1),), moreg=MoReg(window=(1, 1000), h0=1, exponent=1, gradient=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("out/demo.adacache"))
    options = parser.parse_args()
    traces = record(Pipeline.open(options.bundle))
    for name, policy in fit(traces).items():
        path = POLICIES / f"{name}.json"
        path.write_text(json.dumps(policy.model_dump(mode="json", exclude={"probe"}, exclude_none=True)) + "\n")
        print(f"{path}: {mean_computed(policy, traces):.1f} calls computed on average, replayed")


def record(pipeline: Pipeline) -> list[Trace]:
    """What every call of full generations measures."""
    return [
        pipeline.generate(Request(prompts=(prompt,), seed=seed, policy=MEASURE_ALL)).trace
        for seed, prompt in enumerate(world.prompts(PROMPTS, SEED), SEED)
    ]


def fit(traces: Sequence[Trace]) -> dict[str, AdaCache]:
    """The three policies."""

    def scaled(codebook: Sequence[tuple[float, int]], scale: float) -> AdaCache:
        return AdaCache(codebook=tuple((round(threshold * scale, 5), rate) for threshold, rate in codebook))

    def regularised(h0: float) -> AdaCache:
        return AdaCache(codebook=fast.codebook, moreg=MoReg(window=WINDOW, h0=round(h0, 5), exponent=1, gradient=1))

    slow = search(lambda scale: scaled(SLOW_30, scale), COMPUTED["slow"], traces)
    fast = search(lambda scale: scaled(FAST_30, scale), COMPUTED["fast"], traces)
    return {"slow": slow, "fast": fast, "fast-moreg": search(regularised, COMPUTED["fast-moreg"], traces)}


def search(make: Callable[[float], AdaCache], computed: float, traces: Sequence[Trace]) -> AdaCache:
    """The policy ``make(x)`` that comes closest to ``computed`` calls on average; more x, fewer calls."""
    grid = [10 ** (exponent / 100) for exponent in range(-200, 101)]
    return min(map(make, grid), key=lambda policy: abs(mean_computed(policy, traces) - computed))


def mean_computed(policy: AdaCache, traces: Sequence[Trace]) -> float:
    """How many calls a policy computes on average, by replay."""
    return fmean(len(replay(policy, trace)) for trace in traces)


def replay(policy: AdaCache, trace: Trace) -> list[int]:
    """The calls that a policy would compute if distances a step were those of a trace that computed every call."""
    run = Run(calls=len(trace.calls), groups=1, units=1)
    state, computed = policy.start(run), []
    for record in trace.calls:
        context = Context(run, record.call, record.timestep)
        decision, state = policy.decide(state, context)
        if not all(decision.compute):
            continue
        computed.append(record.call)
        distance, motion = record.observation.distance, record.observation.motion
        if distance is not None and motion is not None:
            over_gap = distance * state.rate  # the policy divides by its rate
            frames = ((motion,),) * len(policy.strides), ((1.0,),) * len(policy.strides)
            _, state = policy.observe(state, context, [Measurement("probe", (over_gap,), (1.0,), *frames)])
    return computed


if __name__ == "__main__":
    main()
