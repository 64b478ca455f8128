"""Frames that are given and kept, on a model of numpy functions: what moves, what is drawn, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import SamplerDefaults
from adacache_engines.errors import InputError, NonFiniteError, OutOfRangeError
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.caching.policies.wrappers import Extrapolate
from adacache_runtime.conditioning.masks import masking
from adacache_runtime.memory.advice import _fewer_prompts
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.samplers.rflow import rflow, rflow_timesteps
from adacache_runtime.settled import settle
from tests.helpers.model import fake_model
from tests.helpers.model.fake_model import SIZE, WIDTH, fake_pipeline, functions, manifest, request
from tests.helpers.model.not_finite import broken_at
from tests.helpers.model.plain import GROUPS
from tests.helpers.policies.scripted_policy import ADACACHE, EASYCACHE, FBCACHE, INTERVAL, TEACACHE, follows

STEPS = 12
MASK = np.array([[1, 0, 0.45, 1], [0.7, 1, 1, 0]], np.float32)  # of two prompts' four frames
ONES = np.ones_like(MASK)

Floats = NDArray[np.float32]


def drawn(seed: int, *before: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((*before, len(MASK), WIDTH, *SIZE), np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


@pytest.fixture
def pipeline(folder: Path) -> Pipeline:
    return fake_pipeline(folder, functions(), **fake_model.conditioned(manifest()))[0]


def asked(**options: Any) -> Request:
    usual = {"latents": drawn(1), "mask": MASK, "noise": drawn(2, STEPS), "steps": STEPS, "keep_calls": True}
    return request(**{**usual, **options})


CASES: list[tuple[Any, tuple[str, ...]]] = [
    (NeverReuse(), ("stack",)),
    (ADACACHE, tuple(GROUPS)),
    (TEACACHE, ("stack",)),
    (FBCACHE, ("first", "block")),
    (EASYCACHE, tuple(GROUPS)),
    (INTERVAL, tuple(GROUPS)),
    (Extrapolate(policy=INTERVAL), tuple(GROUPS)),
    (Extrapolate(policy=ADACACHE), ("stack", "block")),
]
NAMED = [(policy, granularity) for policy, some in CASES for granularity in some]


@pytest.mark.parametrize(("policy", "granularity"), NAMED, ids=lambda value: getattr(value, "name", value))
def test_latents_are_those_of_a_numpy_loop(pipeline: Pipeline, policy: Any, granularity: str) -> None:
    given = asked()
    chosen = {"latents": given.latents, "mask": given.mask, "noise": given.noise, "steps": STEPS}
    whole = follows(pipeline, granularity, isinstance(policy, Extrapolate), policy=policy, guidance=3.0, **chosen)
    assert sum(whole) == STEPS if isinstance(policy, NeverReuse) else 1 < sum(whole) < STEPS


@pytest.mark.parametrize("policy", [NeverReuse(), EASYCACHE, INTERVAL], ids=["never", "easycache", "interval"])
def test_kept_frames_stay_as_they_are(pipeline: Pipeline, policy: Any) -> None:
    """Those with an edit ratio until they join."""
    given = asked(policy=policy)
    result = pipeline.generate(given)
    assert result.calls is not None
    assert given.latents is not None
    timesteps = rflow_timesteps(STEPS, 1)[:, 0]
    every = np.concatenate([result.calls, result.latents[None]])
    for sample, frame in np.ndindex(*MASK.shape):
        ratio = MASK[sample, frame]
        joined = int((timesteps > 1000 * ratio).sum()) if ratio else STEPS + 1
        moved = [not np.array_equal(call[sample, :, frame], given.latents[sample, :, frame]) for call in every]
        first = 1 if ratio == 1 else joined  # a frame that joins takes noise before the call
        assert moved == [call >= first for call in range(STEPS + 1)]


def test_a_mask_of_ones_is_none(pipeline: Pipeline, folder: Path) -> None:
    """Bit for bit, and in a batch with others, too; and a bundle that may keep frames gives what another one gives."""
    without = pipeline.generate(asked(mask=None, noise=None)).latents
    np.testing.assert_array_equal(pipeline.generate(asked(mask=ONES)).latents, without)
    beside = MASK.copy()
    beside[0] = 1
    result = pipeline.generate(asked(mask=beside)).latents
    np.testing.assert_array_equal(result[0], without[0])
    assert not np.array_equal(result[1], without[1])
    ordinary, _ = fake_pipeline(folder, functions())
    np.testing.assert_array_equal(ordinary.generate(asked(mask=None, noise=None)).latents, without)


def test_noise_is_drawn_of_the_seed(pipeline: Pipeline) -> None:
    """For each step by itself: only frames that join take any."""
    first, again, other = (pipeline.generate(asked(noise=None, seed=seed)).latents for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    ratios = MASK[1, 0], MASK[0, 2]
    assert all(0 < ratio < 1 for ratio in ratios)
    assert not np.array_equal(first, other)
    whole = {"mask": np.where(MASK < 1, 0, 1).astype(np.float32), "noise": None}
    one, two = (pipeline.generate(asked(**whole, seed=seed)).latents for seed in (3, 4))
    np.testing.assert_array_equal(one, two)


def test_noise_of_a_step_is_new() -> None:
    updates = list(rflow(rflow_timesteps(STEPS, len(MASK))))
    schedule = masking(MASK, updates, None, seed=0)
    assert schedule is not None
    made = [schedule.noise_of(call, (4000,)) for call in (1, 2, 1)]
    np.testing.assert_array_equal(made[0], made[2])
    initial = np.random.default_rng(0).standard_normal((4000,), np.float32)
    for one, two in ((made[0], made[1]), (made[0], initial), (made[1], initial)):
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.1
    assert abs(made[0].std() - 1) < 0.05


def test_a_frame_joins_once() -> None:
    updates = list(rflow(rflow_timesteps(STEPS, len(MASK))))
    schedule = masking(MASK, updates, None, seed=0)
    assert schedule is not None
    joins = schedule.joining.sum(axis=0)
    np.testing.assert_array_equal(joins, (MASK > 0) & (MASK < 1))
    assert (np.diff(schedule.generated.astype(int), axis=0) >= 0).all()


def test_memory_is_that_of_the_run(pipeline: Pipeline) -> None:
    plain, kept, joining = (
        pipeline.prepare(asked(mask=mask, noise=None)).memory
        for mask in (None, np.where(MASK < 1, 0, 1).astype(np.float32), MASK)
    )
    flags = MASK.size
    assert kept.latents - plain.latents == flags
    latents = drawn(0).nbytes
    assert joining.latents - kept.latents == latents + flags + 3 * 4 * len(MASK)


def test_fewer_prompts_keep_their_masks(pipeline: Pipeline) -> None:
    given = asked()
    (text, changed), *_ = _fewer_prompts(given, settle(pipeline.bundle, given))
    assert text == "1 prompt at a time"
    settle(pipeline.bundle, changed)
    assert changed.mask is not None
    np.testing.assert_array_equal(changed.mask, MASK[:1])


@pytest.mark.parametrize("call", [2, 9])  # before and after the frames join
def test_a_number_that_is_none_is_found(folder: Path, call: int) -> None:
    """By repeating the calls, noise included."""
    broken = broken_at("final", call, STEPS, np.nan)
    pipeline, _ = fake_pipeline(folder, broken, **fake_model.conditioned(manifest()))
    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteError, match=f"call {call} of {STEPS} .*stage final"):
        pipeline.generate(asked(noise=None))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "frames": ({"mask": MASK[:, :3]}, r"mask has shape \(2, 3\); expected \(prompts, latent frames\), here \(2, 4\)"),
    "prompts": ({"mask": MASK[:1]}, r"mask has shape \(1, 4\)"),
    "axes": ({"mask": MASK[0]}, r"mask has shape \(4,\)"),
    "no latents": ({"latents": None, "noise": None}, "a mask needs latents"),
    "steps": ({"steps": 10}, r"noise has shape \(12, 2, .*one for each of the 10 steps"),
    "noise": ({"noise": drawn(2, STEPS)[..., :2]}, "noise has shape"),
    "noise alone": ({"mask": None}, "noise of each step is for a generation with a mask"),
    "noise's values": ({"noise": np.full((STEPS, *drawn(0).shape), np.inf, np.float32)}, "NaN or infinity"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(pipeline: Pipeline, case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        pipeline.generate(asked(**changes))


@pytest.mark.parametrize("value", [1.5, -0.1, np.nan, np.inf])
def test_values_beyond_are_refused(pipeline: Pipeline, value: float) -> None:
    mask = MASK.copy()
    mask[1, 2] = value
    with pytest.raises(OutOfRangeError, match="outside of 0 to 1"):
        pipeline.generate(asked(mask=mask))


@pytest.mark.parametrize("mask", [MASK, ONES], ids=["mixed", "ones"])
def test_a_bundle_without_it_says_how_to_add_it(folder: Path, mask: Floats) -> None:
    pipeline, _ = fake_pipeline(folder, functions())
    with pytest.raises(InputError, match="export the checkpoint again with --conditioning"):
        pipeline.generate(asked(mask=mask))


@pytest.mark.parametrize("name", ["ddim", "pndm"])
def test_other_samplers_are_refused(pipeline: Pipeline, name: Any) -> None:
    sampler = SamplerDefaults(name=name, steps=STEPS, guidance=2.0)
    other = replace(pipeline.bundle, manifest=pipeline.bundle.manifest.model_copy(update={"sampler": sampler}))
    assert isinstance(other, Bundle)
    with pytest.raises(InputError, match=f"sampled with rflow, euler, unipc; this bundle's is {name}"):
        Pipeline(other, pipeline.backend).generate(asked())


def test_a_sampler_with_a_history_keeps_whole_frames_only(pipeline: Pipeline) -> None:
    """Frames that join midway are refused, and so is nothing else; those that are kept stay as they are."""
    with pytest.raises(
        InputError, match=r"edit ratios between 0 and 1 .*unipc.*an edit ratio of 0, or .*rflow or euler"
    ):
        pipeline.generate(asked(sampler="unipc"))
    kept = np.floor(MASK)
    given = asked(sampler="unipc", mask=kept, noise=None)
    result = pipeline.generate(given)
    assert given.latents is not None
    for sample, frame in np.argwhere(kept == 0):
        np.testing.assert_array_equal(result.latents[sample, :, frame], given.latents[sample, :, frame])
    assert np.abs(result.latents - given.latents)[0, :, 0].max() > 0.1
    chosen = {"latents": given.latents, "mask": kept, "noise": drawn(2, STEPS), "steps": STEPS}
    follows(pipeline, "stack", False, policy=NeverReuse(), sampler="unipc", **chosen)
    pipeline.generate(asked(sampler="euler"))
