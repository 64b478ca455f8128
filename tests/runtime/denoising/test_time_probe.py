"""The embedding of the timestep as a probe: a policy decides by it before any block runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.errors import InputError
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from tests.helpers.model import fake_model
from tests.helpers.model.fake_model import fake_pipeline, functions, manifest, request
from tests.helpers.model.time_probe import embed, embedding, shows_time
from tests.helpers.originals.teacache_original import teacache_calls

POLICY = TeaCache(coefficients=(1.0, 0.0), threshold=0.3, probe="time")


@pytest.mark.parametrize("scope", ["batch", "prompt"])
@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_teacache_decides_by_the_embedding_of_the_timestep(tmp_path: Path, granularity: Any, scope: Any) -> None:
    pipeline, log = fake_pipeline(tmp_path / "bundle", {**functions(), "embed": embed}, **shows_time(manifest()))
    trace = pipeline.generate(request(policy=POLICY, steps=20, granularity=granularity, scope=scope)).trace
    timesteps = np.array([call.timestep for call in trace.calls], np.float32)
    expected = teacache_calls(embedding(timesteps).astype(np.float64), POLICY.coefficients, POLICY.threshold)
    assert [call.computed for call in trace.calls] == expected
    assert 2 < sum(expected) < len(expected)
    assert log.count("time_change") == len(expected) - 1


def test_without_the_policy_the_probe_changes_nothing(tmp_path: Path) -> None:
    plain, _ = fake_pipeline(tmp_path / "plain", functions())
    shown, _ = fake_pipeline(tmp_path / "shown", {**functions(), "embed": embed}, **shows_time(manifest()))
    np.testing.assert_array_equal(plain.generate(request()).latents, shown.generate(request()).latents)


def test_a_bundle_that_does_not_show_it_refuses(tmp_path: Path) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    with pytest.raises(InputError, match=r"measures time, which this model does not show .*; choose another policy"):
        pipeline.generate(request(policy=POLICY))
    assert fake_model.manifest().sites("time") == ()
