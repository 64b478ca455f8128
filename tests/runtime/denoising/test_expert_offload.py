"""Experts that take turns on a device: the same videos, the engines of one at a time, and switches in the trace."""

import io
import itertools
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from adacache_engines.bundle.files import Bundle
from adacache_engines.errors import EngineError, InputError, NonFiniteError
from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.measured.easycache import EasyCache
from adacache_runtime.caching.policies.measured.fbcache import FBCache
from adacache_runtime.caching.policies.scheduled.guidance_every import GuidanceEvery
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.reports.summary import summary
from adacache_runtime.trace import Trace, read_trace
from tests.helpers.model import fake_model
from tests.helpers.model.experts import LOW, functions_of_experts, offloading, two_experts
from tests.helpers.model.fake_model import BLOCKS, fake_pipeline, request
from tests.helpers.model.opened import Opens

STEPS, FIRST_OF_LOW = 8, 5  # calls; timesteps 1000, 875, 750, 625, and from 500 on the second expert's
POLICIES = {
    "never": NeverReuse(),
    "interval": FixedInterval(every=3),
    "adacache": AdaCache(codebook=[(0.5, 3), (1.0, 2)], probe=("temporal.0.attn",)),
    "fbcache": FBCache(threshold=0.5),
    "easycache": EasyCache(threshold=0.5),
    "guidance-every": GuidanceEvery(every=2),
}


def told(trace: Trace) -> str:
    """Return the summary of a trace as text."""
    out = io.StringIO()
    Console(file=out, width=200).print(summary(trace))
    return out.getvalue()


@pytest.mark.parametrize("policy", POLICIES)
def test_videos_are_equal_with_and_without_it(tmp_path: Path, policy: str) -> None:
    """Those of the next generation, too, which switches back before its first call."""
    asked = request(steps=STEPS, policy=POLICIES[policy], keep_calls=True)
    both, _ = fake_pipeline(tmp_path / "bundle", functions_of_experts(), **two_experts())
    one, backend = offloading(tmp_path / "bundle")
    expected = both.generate(asked)
    assert expected.trace.switches() == {}
    for calls in ([FIRST_OF_LOW], [1, FIRST_OF_LOW]):
        result = one.generate(asked)
        np.testing.assert_array_equal(result.latents, expected.latents)
        np.testing.assert_array_equal(result.calls, expected.calls)
        for mine, theirs in zip(result.trace.calls, expected.trace.calls, strict=True):
            assert mine.compute == theirs.compute
            assert (mine.observation, mine.rebuilt) == (theirs.observation, theirs.rebuilt)
        assert list(result.trace.switches()) == calls
        assert backend.experts() == {1}


def test_an_expert_is_loaded_when_its_first_call_comes(tmp_path: Path) -> None:
    """An expert's engines are closed before the other's are opened; engines that both share are loaded once."""
    pipeline, backend = offloading(tmp_path / "bundle")
    stages = [stage.graph.name for stage in fake_model.manifest().stages]
    assert backend.loads[: len(stages)] == stages
    shared = len(backend.loads)
    assert not {name for name in backend.loads if name.startswith(LOW)}
    for number, _record in enumerate(pipeline.calls(request(steps=STEPS)), 1):
        # a call's record comes when the next one has begun, or all are over
        assert backend.experts() == {int(number >= FIRST_OF_LOW)}
    assert backend.loads[shared:] == [LOW + name for name in stages]
    pipeline.generate(request(steps=STEPS))
    assert backend.loads[shared + len(stages) :] == [*stages, *(LOW + name for name in stages)]


def test_generations_in_turn_never_have_both(tmp_path: Path) -> None:
    """A generation whose expert another one has closed has it loaded and bound again, in the middle of its calls."""
    pipeline, _ = offloading(tmp_path / "bundle")
    policies = [NeverReuse(), FixedInterval(every=3), POLICIES["adacache"]]
    requests = [request(steps=STEPS, seed=seed, policy=policy) for seed, policy in enumerate(policies)]
    alone = [pipeline.generate(asked) for asked in requests]
    running = [pipeline.prepare(asked).denoise() for asked in requests]
    last: list[Any] = [None] * len(running)
    for place, events in enumerate(running):  # each is at another call, so that every step switches
        for _ in range(3 * place):
            next(events)
    for step in itertools.count():
        place = step % len(running)
        last[place] = next(running[place], last[place])
        if step > len(running) * 3 * STEPS:
            break
    for expected, result in zip(alone, last, strict=True):
        np.testing.assert_array_equal(result.latents, expected.latents)
        assert result.trace.computed() == expected.trace.computed()
        assert len(result.trace.switches()) >= 2


def test_threads_never_have_both(tmp_path: Path) -> None:
    pipeline, _ = offloading(tmp_path / "bundle")
    requests = [request(steps=STEPS, seed=seed, policy=FixedInterval(every=2)) for seed in range(3)]
    alone = [pipeline.generate(asked).latents for asked in requests]
    made: dict[int, Any] = {}

    def make(seed: int) -> None:
        made[seed] = pipeline.generate(requests[seed]).latents

    threads = [threading.Thread(target=make, args=(seed,)) for seed in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, latents in enumerate(alone):
        np.testing.assert_array_equal(made[seed], latents)


def test_an_expert_that_cannot_be_loaded_ends_the_generation(tmp_path: Path) -> None:
    pipeline, backend = offloading(tmp_path / "bundle")
    asked = request(steps=STEPS, policy=FixedInterval(every=2))
    expected = pipeline.generate(asked).latents
    backend.broken = {LOW + BLOCKS[1]}
    with pytest.raises(EngineError) as raised:
        pipeline.generate(asked)
    assert str(raised.value) == (
        f"the engines of expert low cannot be loaded: {LOW}{BLOCKS[1]} is broken; no expert is loaded now, and the "
        "next generation loads its own again"
    )
    del raised
    assert backend.experts() == set()
    backend.broken = set()
    np.testing.assert_array_equal(pipeline.generate(asked).latents, expected)


def test_a_first_expert_that_cannot_be_loaded(tmp_path: Path) -> None:
    """After a failure no expert is loaded, and a request cannot be prepared until one is."""
    pipeline, backend = offloading(tmp_path / "bundle")
    asked = request(steps=STEPS)
    expected = pipeline.generate(asked).latents
    backend.broken = {BLOCKS[0]}
    for _ in range(2):
        with pytest.raises(EngineError, match="engines of expert high cannot be loaded"):
            pipeline.generate(asked)
    backend.broken = set()
    np.testing.assert_array_equal(pipeline.generate(asked).latents, expected)


def test_a_bundle_of_one_transformer_is_refused(tmp_path: Path) -> None:
    """Before the backend is opened."""
    bundle = fake_model.write_bundle(tmp_path / "bundle")
    with pytest.raises(InputError) as raised:
        Pipeline.open(bundle, Opens(), expert_offload=True)
    assert str(raised.value) == (
        f"{bundle.folder} has one transformer, which has to be loaded all the time; --expert-offload is for models of "
        "two experts: leave it out"
    )


def test_nan_of_the_second_expert_is_found(tmp_path: Path) -> None:
    """Also where another generation has closed its engines meanwhile, and the calls are repeated to find the stage."""

    def broken(given: Any) -> Any:
        return {"hidden_out": given["hidden"] * np.nan, "attn": given["hidden"]}

    for policy in (NeverReuse(), POLICIES["adacache"]):
        pipeline, backend = offloading(tmp_path / "bundle")
        backend.functions = {**functions_of_experts(), LOW + BLOCKS[2]: broken}
        with pytest.raises(NonFiniteError, match=f"call {FIRST_OF_LOW} of {STEPS}.*first in stage {LOW}{BLOCKS[2]}"):
            pipeline.generate(request(steps=STEPS, policy=policy))


def test_the_switch_is_in_the_trace_and_in_no_other_time(tmp_path: Path) -> None:
    pipeline, _ = offloading(tmp_path / "bundle")
    trace = pipeline.generate(request(steps=STEPS)).trace
    content = json.loads(trace.to_json())
    assert [call["call"] for call in content["calls"] if "switch_ms" in call] == [FIRST_OF_LOW]
    (tmp_path / "trace.json").write_text(trace.to_json())
    read = read_trace(tmp_path / "trace.json")
    assert read.switches() == trace.switches()
    assert [record.wall_ms for record in read.calls] == [record.wall_ms for record in trace.calls]
    assert f"beside these, before call {FIRST_OF_LOW}" in told(trace)


def test_a_switch_is_no_part_of_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only loading moves: calls take no time, and the switch takes all of it."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    pipeline, backend = offloading(tmp_path / "bundle")
    load = backend.load

    def slow(graph: Any) -> Any:
        now[0] += 0.5
        return load(graph)

    monkeypatch.setattr(backend, "load", slow)
    trace = pipeline.generate(request(steps=STEPS)).trace
    stages = len(fake_model.manifest().stages)
    assert trace.switches() == {FIRST_OF_LOW: 500.0 * stages}
    assert trace.wall_ms() == trace.engine_ms() == 0


def test_a_generation_goes_on_after_others_closed_its_engines(tmp_path: Path) -> None:
    """An abandoned generation keeps no engine alive, and one that goes on later is what it would have been."""
    pipeline, backend = offloading(tmp_path / "bundle")
    asked = request(steps=STEPS, seed=3)
    expected = pipeline.generate(asked).latents
    paused, abandoned = (pipeline.prepare(asked).denoise() for _ in range(2))
    for _ in range(4):
        next(paused), next(abandoned)
    pipeline.generate(request(steps=STEPS, seed=4))
    assert backend.experts() == {1}
    abandoned.close()
    *_, denoised = paused
    np.testing.assert_array_equal(denoised.latents, expected)


def test_a_range_of_one_expert_never_loads_the_other(tmp_path: Path) -> None:
    """Where all timesteps are the first expert's, nothing is switched."""
    pipeline, backend = offloading(tmp_path / "bundle")
    before = len(backend.loads)
    assert pipeline.generate(request(steps=1)).trace.switches() == {}
    assert len(backend.loads) == before


def test_a_closed_pipeline_holds_no_engines(tmp_path: Path) -> None:
    pipeline, backend = offloading(tmp_path / "bundle")
    pipeline.generate(request(steps=STEPS))
    assert isinstance(pipeline.bundle, Bundle)
    pipeline.close()
    assert backend.experts() == set()
