"""Recorded generations on the fake model, against numpy on all the tensors that were there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import SamplerDefaults
from adacache_engines.contract.device import Array
from adacache_engines.contract.fake import Function
from adacache_engines.errors import InputError
from adacache_runtime.caching.policies.measured.adacache import AdaCache, MoReg
from adacache_runtime.caching.policies.measured.easycache import EasyCache
from adacache_runtime.caching.policies.measured.fbcache import FBCache
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policy import BLOCK_INPUT, DEFAULT, FIRST, LATENTS, VELOCITY, Measure, Needs, Policy
from adacache_runtime.caching.presets import PRESETS
from adacache_runtime.caching.simulate import simulate
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.samplers.registry import updates
from adacache_runtime.text.prompts import null_captions
from adacache_tune.calibration.recorder import record
from adacache_tune.calibration.records import Record, load_record, ratios, record_of, save_record
from tests.helpers.model import fake_model
from tests.helpers.model.fake_model import BLOCKS, captions, fake_pipeline, functions, request
from tests.helpers.model.plain import entry
from tests.helpers.policies.calibration_records import without_probes
from tests.helpers.policies.policy_runs import places

SITE, MODULATED = "temporal.0.attn", "spatial.0.modulated"
STEPS, GAPS = 7, 3
SAMPLERS = {name: SamplerDefaults(name=name, steps=STEPS, guidance=2.0) for name in ("rflow", "ddim", "pndm", "unipc")}


def one(**options: Any) -> Request:
    """Return a request of one prompt, as a calibration records it."""
    return request(prompts_count=1, steps=STEPS, **options)


def full_compute(pipeline: Pipeline, asked: Request) -> tuple[list[dict[str, Array]], Array]:
    """Every tensor of every call, and the final latents, by a loop written out by hand."""
    manifest, given = pipeline.bundle.manifest, captions(1)
    shape = (1, fake_model.WIDTH, *fake_model.SIZE)
    z = np.random.default_rng(asked.seed).standard_normal(shape, np.float32)
    null = np.broadcast_to(null_captions(pipeline.bundle), given.embeddings.shape)
    text = {"text": np.concatenate([given.embeddings, null]) / 2, "text_mask": np.concatenate([given.mask] * 2)}
    guidance = np.array([manifest.sampler.guidance], np.float32)
    history: Any = None
    seen = []
    for update in updates(manifest, STEPS, 1, *fake_model.SIZE[1:], frames=fake_model.SIZE[0]):
        inputs = {"latents": np.concatenate([z, z]), "timestep": np.tile(update.timestep, 2)}
        tensors: dict[str, Any] = {**text, **inputs, **fake_model.run_embed(inputs)}
        embedded = tensors["hidden"]
        for name in BLOCKS:
            made = fake_model.run_block(name, tensors)
            tensors["hidden"] = made["hidden_out"]
            tensors[name] = made["attn"]
        prediction = fake_model.run_final(tensors)["prediction"]
        velocity = fake_model.run_guide({"prediction": prediction, "guidance": guidance})["velocity"]
        history = np.zeros((len(update.weights), *shape), np.float32) if history is None else history
        history[update.slot] = entry(update, z, velocity)
        following = fake_model.run_combine(
            {"latents": z, "history": history, "scale": update.scale, "weights": update.weights}
        )["latents_out"]
        seen.append(
            {
                SITE: tensors["temporal.00"],
                MODULATED: tensors["modulated"],
                FIRST: tensors[BLOCKS[0]],
                LATENTS: z,
                VELOCITY: velocity,
                "residual": tensors["hidden"] - embedded,
                "embedded": embedded,
                "history": history.copy(),
                "following": following,
            }
        )
        z = following
    return seen, z


def changes(seen: list[dict[str, Array]], site: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Sum |earlier - new| and sum |earlier|; (gaps, calls)."""
    change, magnitude = np.full((2, GAPS, len(seen)), np.nan)
    for gap in range(1, GAPS + 1):
        for call in range(gap, len(seen)):
            earlier, new = (seen[index][site].astype(np.float64) for index in (call - gap, call))
            change[gap - 1, call] = np.abs(earlier - new).sum()
            magnitude[gap - 1, call] = np.abs(earlier).sum()
    return change, magnitude


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_recording_changes_nothing(tmp_path: Path, sampler: str) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions(), sampler=SAMPLERS[sampler])
    told = []
    _, result = record(pipeline, one(policy=PRESETS["interval-2"]), GAPS, on_call=told.append)
    plain = pipeline.generate(one())
    np.testing.assert_array_equal(result.latents, plain.latents)
    np.testing.assert_array_equal(result.latents, full_compute(pipeline, one())[1])
    assert list(result.trace.calls) == told
    assert result.trace.computed() == plain.trace.computed() == list(range(1, len(told) + 1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_changes_at_every_gap(tmp_path: Path, sampler: str) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions(), sampler=SAMPLERS[sampler])
    made, _ = record(pipeline, one(), GAPS)
    seen, _ = full_compute(pipeline, one())
    assert made.roles == {DEFAULT: (SITE,), BLOCK_INPUT: (MODULATED,)}
    assert set(made.sites) == {SITE, MODULATED, FIRST, LATENTS, VELOCITY, "residual"}
    for name, site in made.sites.items():
        change, magnitude = changes(seen, name)
        np.testing.assert_allclose(site["change"], change, rtol=2e-4, err_msg=name)
        np.testing.assert_allclose(site["magnitude"], magnitude, rtol=2e-5, err_msg=name)
    output = [np.abs(call[VELOCITY].astype(np.float64)).sum() for call in seen]
    np.testing.assert_allclose(made.sites[VELOCITY]["new_magnitude"], [[np.nan, *output[1:]]], rtol=2e-5)
    schedule = updates(pipeline.bundle.manifest, STEPS, 1, *fake_model.SIZE[1:], frames=fake_model.SIZE[0])
    assert made.timesteps == tuple(float(update.timestep[0]) for update in schedule)


def test_motion_at_strides(tmp_path: Path) -> None:
    """Motion is that of each call's own tensor, whatever the gap; among 4 frames, none are 4 apart."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    made, _ = record(pipeline, one(), GAPS, strides=(1, 2, 4))
    seen, _ = full_compute(pipeline, one())
    for name in (SITE, MODULATED, FIRST, "residual"):
        site = made.sites[name]
        for stride in (1, 2):
            frames = [call[name].astype(np.float64) for call in seen]
            moved = [np.abs(now[:, stride:] - now[:, :-stride]).sum() for now in frames]
            size = [(np.abs(now[:, stride:]) + np.abs(now[:, :-stride])).sum() for now in frames]
            np.testing.assert_allclose(site[f"motion/{stride}"][0, 1:], moved[1:], rtol=1e-5)
            np.testing.assert_allclose(site[f"motion_magnitude/{stride}"][0, 1:], size[1:], rtol=1e-5)
        assert np.isnan(site["motion/1"][0, 0])
        assert np.isnan(site["motion/4"]).all()
    assert set(made.sites[LATENTS]) == {"change", "magnitude", "new_magnitude"}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_error_of_a_reuse_is_that_of_the_latents(tmp_path: Path, sampler: str) -> None:
    """The update with an older residual of the stack, less the true one; the latents are small: all places are kept."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions(), sampler=SAMPLERS[sampler])
    made, _ = record(pipeline, one(), GAPS)
    seen, _ = full_compute(pipeline, one())
    schedule = updates(pipeline.bundle.manifest, STEPS, 1, *fake_model.SIZE[1:], frames=fake_model.SIZE[0])
    assert made.error.shape == (GAPS, len(seen), seen[0][LATENTS].size)
    guidance = np.array([pipeline.bundle.manifest.sampler.guidance], np.float32)
    for call, (now, update) in enumerate(zip(seen, schedule, strict=True)):
        for gap in range(1, GAPS + 1):
            if gap > call:
                assert np.isnan(made.error[gap - 1, call]).all()
                continue
            hidden = now["embedded"] + seen[call - gap]["residual"]
            both = np.concatenate([now[LATENTS]] * 2)
            prediction = fake_model.run_final({"hidden": hidden, "latents": both})["prediction"]
            history = now["history"].copy()
            velocity = fake_model.run_guide({"prediction": prediction, "guidance": guidance})["velocity"]
            history[update.slot] = entry(update, now[LATENTS], velocity)
            reused = fake_model.run_combine(
                {"latents": now[LATENTS], "history": history, "scale": update.scale, "weights": update.weights}
            )["latents_out"]
            off = (reused - now["following"]).reshape(-1)
            np.testing.assert_allclose(made.error[gap - 1, call], off, atol=2e-5)
            assert np.abs(off).max() > 1e-4 or not update.weights[update.slot].any()


def test_many_latents_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    whole, _ = record(pipeline, one(), GAPS)
    monkeypatch.setattr("adacache_tune.calibration.recorder.PLACES", 50)
    some, _ = record(pipeline, one(), GAPS)
    assert some.error.shape == (GAPS, STEPS, 50)
    kept = [np.flatnonzero((whole.error[0, 1:] == column[:, None]).all(0)) for column in some.error[0, 1:].T]
    assert len({place for (place,) in kept}) == 50
    again, _ = record(pipeline, one(seed=1), GAPS)  # the same places for all, or errors could not be compared
    assert again.error.shape == some.error.shape


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_fewer_calls_than_gaps(tmp_path: Path, steps: int) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    made, _ = record(pipeline, replace(one(), steps=steps), 5)
    assert made.error.shape[:2] == made.sites[SITE]["change"].shape == (max(1, steps - 1), steps)


def test_without_a_probe_of_the_modulated_input(tmp_path: Path) -> None:
    manifest = fake_model.manifest()
    stages = tuple(without_probes(stage) if stage.graph.name == "embed" else stage for stage in manifest.stages)
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions(), stages=stages)
    made, _ = record(pipeline, one(), GAPS)
    assert set(made.sites) == {SITE, FIRST, LATENTS, VELOCITY, "residual"}


# files


@pytest.fixture
def made(tmp_path: Path) -> Record:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    return record(pipeline, one(), GAPS, strides=(1, 2))[0]


def test_a_record_comes_back_from_its_file(made: Record, tmp_path: Path) -> None:
    path = tmp_path / "record.npz"
    save_record(path, made)
    loaded = load_record(path)
    assert (loaded.timesteps, loaded.roles) == (made.timesteps, made.roles)
    assert list(loaded.sites) == list(made.sites)
    for name, site in made.sites.items():
        assert list(loaded.sites[name]) == list(site)
        for number, values in site.items():
            np.testing.assert_array_equal(loaded.sites[name][number], values)
    np.testing.assert_array_equal(loaded.error, made.error)
    assert loaded.error.dtype == np.float32
    assert loaded.runs == made.runs


@pytest.mark.parametrize("damage", ["torn", "text", "empty", "array", "foreign"])
def test_damaged_files_are_refused(made: Record, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "record.npz"
    save_record(path, made)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif damage == "foreign":
        np.savez(path, z=np.zeros(3))
    else:
        path.write_bytes(b"no record" if damage == "text" else b"")
    with pytest.raises(InputError, match=r"record\.npz is no record of adacache-calibrate .*remove it to record anew"):
        load_record(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_record(tmp_path / "record.npz")


# what a record answers


def test_beyond_the_recorded_gaps_changes_grow_on(made: Record) -> None:
    site = made.sites[SITE]
    for gap in (1, 3, 5):
        seen = made.measurement(Measure(SITE, signals=("change", "motion"), strides=(2,)), STEPS - gap, STEPS)
        known = min(gap, GAPS)
        assert seen["change"] == pytest.approx((site["change"][known - 1, -1] * gap / known,))
        assert seen["magnitude"] == (site["magnitude"][known - 1, -1],)
        assert seen["motion/2"] == (site["motion/2"][0, -1],)
        assert seen["motion_magnitude/2"] == (site["motion_magnitude/2"][0, -1],)
        np.testing.assert_allclose(made.reuse_error(STEPS - gap, STEPS), made.error[known - 1, -1] * gap / known)
    assert made.measures(Needs(measures=(Measure(),)))[0].site == SITE


def test_what_was_not_recorded(made: Record) -> None:
    with pytest.raises(InputError, match=r"nothing was recorded at spatial\.9\.attn; recorded: latents, spatial"):
        made.measures(Needs(measures=(Measure("spatial.9.attn"),)))
    with pytest.raises(InputError, match=rf"motion/3, motion_magnitude/3 was not recorded at {SITE}; recorded: change"):
        made.measurement(Measure(SITE, signals=("motion",), strides=(1, 3)), 1, 2)


def test_the_ratios_of_magcache(tmp_path: Path) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    asked = [one(seed=seed) for seed in (0, 1)]
    found = ratios([record(pipeline, each, GAPS)[0] for each in asked])
    magnitudes = [[np.abs(call["residual"]).sum() for call in full_compute(pipeline, each)[0]] for each in asked]
    expected = np.mean([np.array(one[1:]) / one[:-1] for one in magnitudes], axis=0)
    assert len(found) == STEPS
    assert found[0] == 1
    assert found[1:-1] == pytest.approx(expected[:-1], abs=2e-5)
    assert found[-1] == found[-2]


def test_a_trace_is_a_record_of_adacaches_distances(tmp_path: Path) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    always = AdaCache(codebook=((1.0, 1),), moreg=MoReg(window=(1, STEPS)))
    trace = pipeline.generate(one(policy=always)).trace
    read, full = record_of(trace, SITE), record(pipeline, one(), GAPS)[0]
    for policy in (PRESETS["adacache-fast"], AdaCache(codebook=((0.05, 4), (0.2, 3), (0.4, 2), (1.0, 1)))):
        one_way, other = (simulate(policy, source.runs[0], source) for source in (read, full))
        assert one_way.decisions[:3] == other.decisions[:3]
    distances = [call.observation.get("distance") for call in trace.calls[1:]]
    assert read.sites[SITE]["change"][0, 1:].tolist() == distances
    assert read.sites[SITE]["motion/1"][0, 1:].tolist() == [call.observation.get("motion") for call in trace.calls[1:]]
    assert read.reuse_error(1, STEPS).shape == (0,)


def test_between_measured_calls_a_trace_is_interpolated(tmp_path: Path) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    trace = pipeline.generate(one(policy=AdaCache(codebook=((9.0, 2), (9.0, 2))))).trace
    seen = {
        call.call: call.observation.get("distance")
        for call in trace.calls
        if call.observation.get("distance") is not None
    }
    assert 0 < len(seen) < STEPS - 1
    change = record_of(trace).sites["default"]["change"][0]
    for call, distance in seen.items():
        assert change[call - 1] == distance
    inner = [call for call in range(min(seen), max(seen)) if call not in seen]
    for call in inner:
        assert change[call - 1] == pytest.approx((seen[call - 1] + seen[call + 1]) / 2)
    assert inner


def test_a_trace_that_measures_nothing_is_no_record(tmp_path: Path) -> None:
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    with pytest.raises(InputError, match="no call of the trace has a distance; trace a run whose policy measures"):
        record_of(pipeline.generate(one(policy=PRESETS["never"])).trace)


# a simulation is the real run where reuse does not change what is measured


def apart_from_the_latents() -> dict[str, Function]:
    """The fake model, but what it computes depends on the timestep and the text alone, and on no latents."""

    def embed(given: Any) -> dict[str, Array]:
        time = given["timestep"][:, None]
        ramp = np.linspace(0.5, 1.5, given["latents"][0].size, dtype=np.float32).reshape(given["latents"].shape[1:])
        curve = np.sin(time[:, :, None, None, None] / 90) + 1.5
        return fake_model.run_embed({**given, "latents": (curve * ramp).astype(np.float32)})

    return {**functions(), "embed": embed}


FIRST_AND_OTHERS = ("spatial.00", "temporal.00 to temporal.01")
EXACT: dict[str, Policy[Any]] = {
    "adacache": AdaCache(codebook=((0.03, 4), (0.06, 3), (0.09, 2), (1.0, 1))),
    "adacache-moreg": AdaCache(
        codebook=((0.03, 4), (0.06, 3), (0.09, 2), (1.0, 1)), moreg=MoReg(window=(2, 18), h0=0.1, exponent=1.0)
    ),
    "adacache at another probe": AdaCache(codebook=((0.1, 4), (0.2, 2), (1.0, 1)), probe=(MODULATED,)),
    "teacache": TeaCache(coefficients=(1.0, 0.0), threshold=0.2),
    "fbcache": FBCache(threshold=0.05),
    "interval": FixedInterval(every=3),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_simulation_is_the_real_run(tmp_path: Path, name: str) -> None:
    """All gaps are recorded, and nothing that is measured depends on the latents, which reuse changes."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", apart_from_the_latents())
    asked, policy = replace(one(), steps=20), EXACT[name]
    made, _ = record(pipeline, asked, 19)
    trace = pipeline.generate(replace(asked, policy=policy, granularity=None)).trace
    run = replace(made.runs[0], groups=2, places=places(*FIRST_AND_OTHERS)) if name == "fbcache" else made.runs[0]
    simulated = simulate(policy, run, made)
    assert simulated.decisions == tuple(call.compute for call in trace.calls)
    assert 3 < sum(map(all, simulated.decisions)) < 18
    for expected, call in zip(simulated.observations, trace.calls, strict=True):
        assert call.observation == pytest.approx(expected, rel=1e-4, nan_ok=True)


def test_a_simulation_is_the_real_run_up_to_what_the_first_reuse_changes(tmp_path: Path) -> None:
    """On a model that looks at the latents: the call that is decided by the first reuse's own measurements."""
    pipeline, _ = fake_pipeline(tmp_path / "bundle", functions())
    asked, policy = replace(one(), steps=20), EasyCache(threshold=0.2)
    made, _ = record(pipeline, asked, 19)
    trace = pipeline.generate(replace(asked, policy=policy, granularity=None)).trace
    simulated = simulate(policy, made.runs[0], made)
    first = next(index for index, compute in enumerate(simulated.decisions) if not all(compute))
    assert 1 < first < 19
    assert simulated.decisions[: first + 1] == tuple(call.compute for call in trace.calls[: first + 1])
