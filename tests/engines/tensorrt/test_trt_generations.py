"""Whole generations on TensorRT plans, through fakes that fail like the library and check what CUDA would."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import SamplerDefaults
from adacache_engines.contract.device import Array
from adacache_engines.errors import NonFiniteError
from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.events import Denoised
from tests.helpers.gpu.fake_tensorrt import Machine, write_plans
from tests.helpers.gpu.host_generations import ADACACHE, POLICIES, WITHIN, expected, same
from tests.helpers.model import fake_model
from tests.helpers.model.fake_model import SIZE, fake_pipeline, functions, request, write_bundle


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("granularity", ["stack", "block"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ["tensorrt-rtx", "tensorrt"])
def test_generations_are_the_hosts_to_the_bit(
    machine: Callable[..., Machine], tmp_path: Path, name: str, policy: str, granularity: str, graphs: bool
) -> None:
    made = machine(graphs, name)
    options = {"steps": 12, "policy": POLICIES[policy], "granularity": granularity, "keep_calls": True}
    result = made.pipeline.generate(request(**options))
    whole = expected(tmp_path, **options)
    same(result, whole)
    np.testing.assert_array_equal(result.calls, whole.calls)
    if policy != "never":
        assert 2 < len(result.trace.computed()) < 12
    paths = {call.compute for call in result.trace.calls}
    # where a call is measured, its update comes apart
    apart = bool(POLICIES[policy].needs.measures)
    assert made.cuda.captures == (len(paths) + apart if graphs else 0)


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("policy", WITHIN)
def test_policies_that_look_into_a_call(
    machine: Callable[..., Machine], tmp_path: Path, policy: str, graphs: bool
) -> None:
    """Each with its own groups and residuals."""
    made = machine(graphs)
    options = {"steps": 12, "policy": WITHIN[policy], "keep_calls": True}
    result = made.pipeline.generate(request(**options))
    whole = expected(tmp_path, **options)
    same(result, whole)
    np.testing.assert_array_equal(result.calls, whole.calls)
    assert 2 < sum(all(call.compute) for call in result.trace.calls) < 12


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("policy", ["never", *WITHIN])
def test_kept_frames_are_the_hosts_to_the_bit(
    machine: Callable[..., Machine], folder: Path, tmp_path: Path, policy: str, graphs: bool
) -> None:
    changes = fake_model.conditioned(fake_model.manifest())
    made = machine(graphs, bundle=write_plans(write_bundle(folder, **changes)))
    shape = (2, fake_model.WIDTH, *SIZE)
    options: dict[str, Any] = {
        "latents": np.random.default_rng(1).standard_normal(shape, np.float32),
        "mask": np.array([[0, 1, 0.45, 1], [1, 0.7, 0, 1]], np.float32),
        "policy": {**POLICIES, **WITHIN}[policy],
        "steps": 12,
        "keep_calls": True,
    }
    result = made.pipeline.generate(request(**options))
    whole = fake_pipeline(tmp_path / "host", functions(), **changes)[0].generate(request(**options))
    same(result, whole)
    np.testing.assert_array_equal(result.calls, whole.calls)


@pytest.mark.parametrize(("name", "calls"), [("ddim", 12), ("pndm", 20)])
def test_samplers_of_noise_predictions(machine: Callable[..., Machine], tmp_path: Path, name: str, calls: int) -> None:
    """PNDM combines up to six predictions, most of which are not there at first."""
    sampler = SamplerDefaults(name=name, steps=12, guidance=2.0)
    bundle = write_plans(write_bundle(tmp_path / "bundle"))
    made = machine(bundle=Bundle(bundle.folder, bundle.manifest.model_copy(update={"sampler": sampler})))
    host, _ = fake_pipeline(tmp_path / "host", functions(), sampler=sampler)
    options = {"policy": ADACACHE, "keep_calls": True}
    result, whole = (pipeline.generate(request(**options)) for pipeline in (made.pipeline, host))
    same(result, whole)
    np.testing.assert_array_equal(result.calls, whole.calls)
    assert len(result.trace.calls) == calls
    assert np.isfinite(result.latents).all()


def test_every_path_is_replayed(machine: Callable[..., Machine]) -> None:
    """Run once, recorded once, launched from then on."""
    made = machine()
    result = made.pipeline.generate(request(steps=9, policy=FixedInterval(every=3)))
    assert len(result.trace.computed()) == 4
    assert made.cuda.launches == 9 - 2


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
def test_generations_in_turn(machine: Callable[..., Machine], tmp_path: Path, graphs: bool) -> None:
    """They have other sizes and numbers of prompts, call by call: each has its own buffers, contexts and graphs."""
    made = machine(graphs)
    several = [
        {"steps": 7, "policy": ADACACHE, "seed": 1},
        {"steps": 7, "policy": FixedInterval(every=2), "seed": 2, "granularity": "block", "frames": 7},
        {"steps": 7, "policy": NeverReuse(), "seed": 3, "prompts_count": 1, "height": 3},
    ]
    running = [made.pipeline.calls(request(**options)) for options in several]
    for _ in range(7):
        for calls in running:
            next(calls)
    for index, calls in enumerate(running):
        with pytest.raises(StopIteration) as end:
            next(calls)
        same(end.value.value, expected(tmp_path / str(index), **several[index]))


def test_generations_on_two_threads(machine: Callable[..., Machine], tmp_path: Path) -> None:
    made = machine()
    made.cuda.pause_s = 0.002
    several = [
        {"steps": 8, "policy": ADACACHE, "seed": 1},
        {"steps": 8, "policy": FixedInterval(every=2), "seed": 2, "granularity": "block"},
    ]
    results: dict[int, Denoised] = {}
    start = threading.Barrier(2)

    def work(index: int) -> None:
        start.wait()
        for _ in range(2):
            results[index] = made.pipeline.generate(request(**several[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, options in enumerate(several):
        same(results[index], expected(tmp_path / str(index), **options))


def test_a_number_that_is_none_is_found_behind_graphs(machine: Callable[..., Machine]) -> None:
    every, count = functions(), [0]

    def broken(given: Mapping[str, Array]) -> Mapping[str, Array]:
        count[0] += 1
        outputs = every["spatial.01"](given)
        return {**outputs, "hidden_out": outputs["hidden_out"] * np.float32(np.nan if count[0] > 3 else 1)}

    made = machine(functions={**every, "spatial.01": broken})
    with pytest.raises(NonFiniteError, match=r"call 4 of 6 .* first in stage spatial.01"):
        made.pipeline.generate(request(policy=AdaCache(codebook=[(1.0, 1)])))
