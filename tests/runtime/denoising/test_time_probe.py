"""The embedding of the timestep as a probe: a policy decides by it before any block runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.bundle.manifest import Manifest, ProbeEntry, StageEntry
from adacache_engines.errors import InputError
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from adacache_runtime.caching.signals.registry import SIGNALS
from tests.helpers import fake_model
from tests.helpers.fake_model import WIDTH, fake_pipeline, functions, manifest, request, run_embed, signal_entry, spec
from tests.helpers.teacache_original import teacache_calls

POLICY = TeaCache(coefficients=(1.0, 0.0), threshold=0.3, probe="time")


def embedding(timestep: Any) -> Any:
    """Return embeddings (batch, width) of timesteps (batch,)."""
    return np.stack([np.cos(timestep / 300), np.sin(timestep / 200), timestep / 1000], axis=1).astype(np.float32)


def embed(given: Any) -> Any:
    return {**run_embed(given), "time_embedding": embedding(given["timestep"])}


def shows_time(plain: Manifest) -> dict[str, Any]:
    """Return the changes of a manifest whose model shows the embedding of the timestep."""

    def changed(entry: StageEntry) -> StageEntry:
        if entry.role != "embed":
            return entry
        shown = spec("time_embedding", "batch", WIDTH)
        graph = entry.graph.model_copy(update={"outputs": (*entry.graph.outputs, shown)})
        probes = {**entry.probes, "time": ProbeEntry(output="time_embedding", role="time")}
        return entry.model_copy(update={"graph": graph, "probes": probes})

    spaces = ("hidden", "latents", "time")
    signals = {name: signal_entry(signal, spaces) for name, signal in SIGNALS.items()}
    return {"stages": tuple(map(changed, plain.stages)), "signals": signals}


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
