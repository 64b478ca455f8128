"""The loop on a model of numpy functions: order of engine calls, residuals, measurements, errors, isolation."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from adacache_engines.contract.device import Array
from adacache_engines.contract.fake import Function
from adacache_engines.errors import EngineError, InputError, NonFiniteError, OutOfRangeError, PolicyError
from adacache_runtime.caching.policies.measured.adacache import AdaCache, MoReg
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.policies.scheduled.never import NeverReuse
from adacache_runtime.caching.policies.wrappers import Extrapolate
from adacache_runtime.caching.policy import Context, Decision, Measure, Measurement, Needs, Observation, Run
from adacache_runtime.denoising import denoiser
from adacache_runtime.events import Denoised
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Captions
from adacache_runtime.samplers.rflow import rflow, rflow_timesteps
from adacache_runtime.text.prompts import null_captions
from adacache_runtime.trace import CallRecord
from tests.helpers.model import fake_model
from tests.helpers.model.fake_model import BLOCKS, SIZE, WIDTH, captions, fake_pipeline, functions, request
from tests.helpers.model.not_finite import broken_at
from tests.helpers.policies.policy_runs import places

SITE = "temporal.0.attn"
EMBED, FINAL, UPDATE = ["embed"], ["final"], ["guide", "combine"]
FULL = [*EMBED, *BLOCKS, *FINAL]


@dataclass(frozen=True)
class Scripted:
    """Decides what it was told, and writes down what it is asked and shown."""

    decisions: tuple[tuple[bool, ...], ...]
    sites: tuple[str, ...] = (SITE,)
    strides: tuple[int, ...] = ()
    residuals: int = 1
    signals: tuple[str, ...] = ("change",)
    events: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def needs(self) -> Needs:
        return Needs(
            self.residuals,
            measures=tuple(Measure(site, signals=self.signals, strides=self.strides) for site in self.sites),
        )

    def start(self, run: Run) -> int:
        self.events.append(("start", run))
        return 0

    def decide(self, state: int, context: Context) -> tuple[Decision, int]:
        self.events.append(("decide", context.call, state))
        return Decision(self.decisions[context.call - 1]), state

    def observe(self, state: int, context: Context, measurements: Sequence[Measurement]) -> tuple[Observation, int]:
        self.events.append(("observe", context.call, tuple(measurements)))
        return {"metric": float(context.call)}, context.call


def script(text: str, granularity: str = "stack", **options: Any) -> dict[str, Any]:
    """``"CR"``: compute, reuse; with granularity block a word a call, such as ``"CCCC CRRC"``."""
    words = text.split() if granularity == "block" else list(text)
    decisions = tuple(tuple(letter == "C" for letter in word) for word in words)
    return {"policy": Scripted(decisions, **options), "granularity": granularity, "steps": len(words)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


@pytest.fixture
def fake(folder: Path) -> tuple[Pipeline, list[str]]:
    return fake_pipeline(folder, functions())


def start_noise(seed: int = 0, prompts: int = 2) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((prompts, WIDTH, *SIZE), np.float32)


def plain_loop(pipeline: Pipeline, steps: int, guidance: float) -> list[Array]:
    """The latents before each call and at the end, by a loop written out by hand."""
    given, z = captions(), start_noise()
    null = np.broadcast_to(null_captions(pipeline.bundle), given.embeddings.shape)
    text = np.concatenate([given.embeddings, null]) / 2
    rest = {"text": text, "text_mask": np.concatenate([given.mask] * 2)}
    seen: list[Array] = [z]
    for update in rflow(rflow_timesteps(steps, 2)):
        inputs = {"latents": np.concatenate([z, z]), "timestep": np.tile(update.timestep, 2)}
        tensors = {**rest, **inputs, **fake_model.run_embed(inputs)}
        for name in BLOCKS:
            tensors["hidden"] = fake_model.run_block(name, tensors)["hidden_out"]
        prediction = fake_model.run_final(tensors)["prediction"]
        scale = np.array([guidance], np.float32)
        velocity = fake_model.run_guide({"prediction": prediction, "guidance": scale})["velocity"]
        z = z + velocity * update.weights[0][:, None, None, None, None]
        seen.append(z)
    return seen


@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_never_reusing_is_the_plain_loop_to_the_bit(fake, granularity: str) -> None:
    pipeline, _ = fake
    expected = plain_loop(pipeline, 7, 3.0)
    result = pipeline.generate(request(steps=7, guidance=3.0, granularity=granularity, keep_calls=True))
    assert result.calls is not None
    np.testing.assert_array_equal(result.latents, expected[-1])
    np.testing.assert_array_equal(result.calls, np.stack(expected[:-1]))
    assert not np.array_equal(result.latents, expected[0])


@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_a_policy_that_always_computes_is_the_plain_loop_to_the_bit(fake, granularity: str) -> None:
    pipeline, _ = fake
    always = AdaCache(codebook=[(1.0, 1)], moreg=MoReg(strides=(1, 2, 9)))
    result = pipeline.generate(request(steps=7, guidance=3.0, policy=always, granularity=granularity))
    np.testing.assert_array_equal(result.latents, plain_loop(pipeline, 7, 3.0)[-1])


@pytest.mark.parametrize("inside", [NeverReuse(), FixedInterval(every=1)])
def test_there_is_nothing_to_extrapolate_where_nothing_is_reused(fake, inside: Any) -> None:
    pipeline, _ = fake
    result = pipeline.generate(request(steps=7, guidance=3.0, policy=Extrapolate(policy=inside)))
    np.testing.assert_array_equal(result.latents, plain_loop(pipeline, 7, 3.0)[-1])


def test_the_null_captions_take_the_prompts_mask(fake) -> None:
    """And the text is cut to the longest prompt: what is beyond no prompt's mask cannot matter."""
    pipeline, _ = fake
    short = captions()
    short.mask[:, 3] = False
    changed = Captions(short.embeddings.copy(), short.mask)
    changed.embeddings[:, 3] = 99
    changed.embeddings[1, 2:] = -99
    one, other = (pipeline.generate(request(steps=2, captions=given)).latents for given in (short, changed))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("dtype", "rounded"), [("bfloat16", True), ("float32", False)])
def test_conditions_are_rounded_as_the_manifest_says(folder: Path, dtype: str, rounded: bool) -> None:
    """The model gets timesteps, sizes and fps rounded; the sampler steps over the exact timesteps."""
    sampler = fake_model.manifest().sampler.model_copy(update={"condition_dtype": dtype})
    pipeline, seen = watched(folder, "embed", "combine", sampler=sampler)
    size = {"height": 854, "width": 553, "latents": start_noise(), "fps": (23.976,)}
    result = pipeline.generate(request(**size, steps=7))
    exact = rflow_timesteps(7, 2)
    given = {"timestep": exact[1], "height": [854.0], "width": [553.0], "fps": [23.976, 23.976]}
    near = {"timestep": [856.0, 856.0], "height": [856.0], "width": [552.0], "fps": [24.0, 24.0]}
    for name, values in given.items():
        expected = np.array(near[name] if rounded else values, np.float32)
        np.testing.assert_array_equal(
            seen["embed"][1][name], np.tile(expected, len(seen["embed"][1][name]) // len(expected))
        )
    assert result.trace.calls[1].timestep == exact[1, 0]
    np.testing.assert_array_equal(seen["combine"][1]["weights"][0], (exact[1] - exact[2]) / np.float32(1000))


# the order of engine calls


def calls_of(log: list[str]) -> list[list[str]]:
    """The log of a generation, a list a call."""
    assert log[0] == "text"
    assert log.count("text") == 1
    ends = [index + 1 for index, name in enumerate(log) if name == "combine"]
    assert ends[-1] == len(log)
    return [log[start:stop] for start, stop in zip([1, *ends], ends, strict=False)]


def test_engines_of_a_run_that_never_reuses(fake) -> None:
    pipeline, log = fake
    pipeline.generate(request(steps=3))
    assert calls_of(log) == [[*FULL, *UPDATE]] * 3


def test_engines_of_a_stack(fake) -> None:
    """A reused call is one addition; a computed one keeps its residual, and measures it from the second on."""
    pipeline, log = fake
    pipeline.generate(request(**script("CCRRC", signals=("change", "motion"), strides=(1, 2))))
    computed, reused = [*EMBED, *BLOCKS, "subtract", *FINAL], [*EMBED, "add", *FINAL, *UPDATE]
    measured = [*computed, "guide", "hidden_change", "hidden_motion", "hidden_motion", "combine"]
    assert calls_of(log) == [[*computed, *UPDATE], measured, reused, reused, measured]


def test_engines_of_blocks(fake) -> None:
    """A mixed call shows nothing: its probe may be older than the call."""
    pipeline, log = fake
    pipeline.generate(request(**script("CCCC CRRC RRRR CCCC", "block")))
    full = [*EMBED, *(name for block in BLOCKS for name in (block, "subtract")), *FINAL]
    mixed = [*EMBED, BLOCKS[0], "subtract", "add", "add", BLOCKS[3], "subtract", *FINAL, *UPDATE]
    reused = [*EMBED, *["add"] * 4, *FINAL, *UPDATE]
    assert calls_of(log) == [[*full, *UPDATE], mixed, reused, [*full, "guide", "hidden_change", "combine"]]


def test_several_probes_are_measured_in_the_order_of_execution(fake) -> None:
    pipeline, log = fake
    options = script("CC", sites=("temporal.1.attn", "spatial.0.attn"))
    pipeline.generate(request(**options))
    assert calls_of(log)[1].count("hidden_change") == 2
    *_, (_, call, shown) = options["policy"].events
    assert (call, [measurement.site for measurement in shown]) == (2, ["spatial.0.attn", "temporal.1.attn"])


# residuals


def watched(folder: Path, *names: str, **changes: Any) -> tuple[Pipeline, dict[str, list[dict[str, Array]]]]:
    """A pipeline, and what went into and came out of some of its engines."""
    seen: dict[str, list[dict[str, Array]]] = {name: [] for name in names}

    def watch(name: str, function: Function) -> Function:
        def run(given: Mapping[str, Array]) -> Mapping[str, Array]:
            inputs = {key: value.copy() for key, value in given.items()}
            outputs = function(given)
            seen[name].append({**inputs, **{key: value.copy() for key, value in outputs.items()}})
            return outputs

        return run

    every = functions()
    pipeline, _ = fake_pipeline(folder, {**every, **{name: watch(name, every[name]) for name in names}}, **changes)
    return pipeline, seen


def test_the_residual_of_a_stack_is_after_minus_before(folder: Path) -> None:
    pipeline, seen = watched(folder, "embed", "temporal.01", "final")
    pipeline.generate(request(**script("CRRCR")))
    residual: Any = None
    blocks = iter(seen["temporal.01"])
    for computed, embed, final in zip("CRRCR", seen["embed"], seen["final"], strict=True):
        if computed == "C":
            after = next(blocks)["hidden_out"]
            np.testing.assert_array_equal(final["hidden"], after)
            residual = after - embed["hidden"]
        else:
            np.testing.assert_array_equal(final["hidden"], embed["hidden"] + residual)


def test_each_block_has_a_residual_of_its_own(folder: Path) -> None:
    pipeline, seen = watched(folder, "embed", *BLOCKS, "final")
    text = "CCCC CRRC RRCR RRRR CCRC RRRR"
    pipeline.generate(request(**script(text, "block")))
    runs = {name: iter(seen[name]) for name in BLOCKS}
    residuals: dict[str, Array] = {}
    for word, embed, final in zip(text.split(), seen["embed"], seen["final"], strict=True):
        hidden: Any = embed["hidden"]
        for letter, name in zip(word, BLOCKS, strict=True):
            if letter == "C":
                run = next(runs[name])
                np.testing.assert_array_equal(run["hidden"], hidden)
                residuals[name] = run["hidden_out"] - hidden
                hidden = run["hidden_out"]
            else:
                hidden = hidden + residuals[name]
        np.testing.assert_array_equal(final["hidden"], hidden)
    assert all(next(rest, None) is None for rest in runs.values())


def test_measurements_are_sums_over_what_the_probe_shows(folder: Path) -> None:
    """Per prompt: over its two guidance branches. The cached residual is that of the last full call."""
    pipeline, seen = watched(folder, "temporal.00")
    options = script("CRC", signals=("change", "motion"), strides=(1, 3, 4))
    pipeline.generate(request(**options, scope="prompt"))
    *_, (_, call, (shown,)) = options["policy"].events
    assert call == 3
    old, new = (run["attn"].astype(np.float64).reshape(2, 2, *SIZE[:1], -1) for run in seen["temporal.00"])

    def prompts(values: Array) -> Any:
        return pytest.approx(values.sum((0, 2, 3)), rel=1e-5)

    assert shown.site == SITE
    assert shown["change"] == prompts(np.abs(old - new))
    assert shown["magnitude"] == prompts(np.abs(old))
    for stride in (1, 3):
        later, earlier = new[:, :, stride:], new[:, :, :-stride]
        assert shown[f"motion/{stride}"] == prompts(np.abs(later - earlier))
        assert shown[f"motion_magnitude/{stride}"] == prompts(np.abs(later) + np.abs(earlier))
    assert np.isnan([*shown["motion/4"], *shown["motion_magnitude/4"]]).all()  # 4 frames have none 4 apart

    whole = script("CRC", signals=("change", "motion"), strides=(1, 3, 4))
    pipeline.generate(request(**whole))
    *_, (_, _, (batch,)) = whole["policy"].events
    assert batch["change"] == pytest.approx((sum(shown["change"]),), rel=1e-6)
    assert batch["motion_magnitude/3"] == pytest.approx((sum(shown["motion_magnitude/3"]),), rel=1e-6)


# the conversation with the policy


def test_a_call_is_observed_before_the_next_one_is_decided(fake) -> None:
    pipeline, _ = fake
    options = script("CCRC")
    pipeline.generate(request(**options))
    told = [event[:2] for event in options["policy"].events if event[0] != "start"]
    assert told == [("decide", 1), ("decide", 2), ("observe", 2), ("decide", 3), ("decide", 4), ("observe", 4)]
    states = [event[2] for event in options["policy"].events if event[0] == "decide"]
    assert states == [0, 0, 2, 2]


def test_a_whole_call_is_enqueued_before_its_numbers_are_read(fake) -> None:
    """Measurements come back only when the call's update, too, is under way."""
    pipeline, log = fake
    options = script("CCC")
    lengths: list[tuple[str, int, list[str]]] = []

    class Listening(Scripted):
        def decide(self, state: int, context: Context) -> tuple[Decision, int]:
            lengths.append(("decide", context.call, log[-1:]))
            return super().decide(state, context)

        def observe(self, state: int, context: Context, shown: Sequence[Measurement]) -> tuple[Observation, int]:
            lengths.append(("observe", context.call, log[-1:]))
            return super().observe(state, context, shown)

    pipeline.generate(request(**{**options, "policy": Listening(options["policy"].decisions)}))
    assert [last for _, call, last in lengths if call > 1] == [["combine"]] * 4


def test_the_run_tells_the_policy_its_measure(fake) -> None:
    pipeline, _ = fake
    rest = ((1000.0, 500.0), ("conditional", "unconditional"))
    for granularity, scope, expected in [
        ("stack", "batch", Run(2, 1, 1, places("spatial.00 to temporal.01"), *rest)),
        ("stack", "prompt", Run(2, 1, 2, places("spatial.00 to temporal.01"), *rest)),
        ("block", "prompt", Run(2, 4, 2, places("spatial.00", "temporal.00", "spatial.01", "temporal.01"), *rest)),
    ]:
        options = script("CC" if granularity == "stack" else "CCCC CCCC", granularity)
        pipeline.generate(request(**options, scope=scope))
        assert options["policy"].events[0] == ("start", expected)


@pytest.mark.parametrize(
    ("word", "granularity", "options", "message"),
    [
        ("RC", "stack", {}, "reuses group 0 at call 1"),
        ("CCCR CRCC", "block", {}, "reuses group 3 at call 1"),
        ("CR", "stack", {"residuals": 0}, "reuses group 0 at call 2"),
        ("CC", "block", {}, "decided for 2 groups at call 1, not 4"),
    ],
)
def test_a_policy_cannot_reuse_what_is_not_there(
    fake, word: str, granularity: str, options: dict[str, Any], message: str
) -> None:
    pipeline, _ = fake
    with pytest.raises(PolicyError, match=message):
        pipeline.generate(request(**script(word, granularity, **options)))


def test_records_come_as_calls_end(fake) -> None:
    pipeline, log = fake
    seen: list[tuple[int, int]] = []
    options = request(**script("CCRC"))
    result = pipeline.generate(options, lambda record: seen.append((record.call, log.count("combine"))))
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert [record.compute for record in result.trace.calls] == [(True,), (True,), (False,), (True,)]
    assert [record.observation.get("metric") for record in result.trace.calls] == [None, 2.0, None, 4.0]
    assert result.trace.computed() == [1, 2, 4]
    assert all(set(record.engine_ms) == {"embed", "blocks", "final", "measure"} for record in result.trace.calls)
    assert all(sum(record.engine_ms.values()) <= record.wall_ms for record in result.trace.calls)


# NaN and infinity

NAMED = {"embed": "embed", "spatial.01": "spatial.01", "final": "final", "guide": "the sampler's update"}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("call", [1, 4, 5])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("granularity", ["stack", "block"])
@pytest.mark.parametrize("watched", [True, False])
def test_a_number_that_is_none_stops_the_run(
    folder: Path, name: str, call: int, value: float, granularity: str, watched: bool
) -> None:
    """A run in which nothing is read back finds it at the end, and repeats what led to it."""
    pipeline, log = fake_pipeline(folder, broken_at(name, call, 5, value))
    records: list[int] = []
    policy = AdaCache(codebook=[(1.0, 1)]) if watched else NeverReuse()
    asked = request(steps=5, granularity=granularity, policy=policy)
    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteError) as caught:
        pipeline.generate(asked, lambda record: records.append(record.call))
    message = str(caught.value)
    assert f"call {call} of 5" in message
    assert f"first in {'' if name == 'guide' else 'stage '}{NAMED[name]};" in message
    assert records == list(range(1, call if watched else 6))
    assert log.count("combine") == (call if watched else 5 + call)


def test_a_number_that_is_none_in_a_reused_call(folder: Path) -> None:
    """The call's steps, ``add`` among them, are repeated to find the stage."""
    pipeline, _ = fake_pipeline(folder, broken_at("add", 3, 4, np.nan))
    with pytest.raises(NonFiniteError, match=r"call 3 of 4 \(timestep 500.0\), first in stage add"):
        pipeline.generate(request(**script("CCRC")))


def test_a_number_that_is_none_in_the_second_prompt(folder: Path) -> None:
    every = functions()

    def final(given: Mapping[str, Array]) -> Mapping[str, Array]:
        prediction = every["final"](given)["prediction"].copy()
        prediction[1, 0, 0, 0, 0] = np.nan
        return {"prediction": prediction}

    pipeline, _ = fake_pipeline(folder, {**every, "final": final})
    with pytest.raises(NonFiniteError, match=r"call 1 of 6 .*stage final"):
        pipeline.generate(request())


# generations do not meet


SEVERAL = [
    {"steps": 5, "policy": FixedInterval(every=2), "seed": 1},
    {"steps": 5, "policy": AdaCache(codebook=[(0.3, 3), (1.0, 1)], moreg=MoReg()), "seed": 2, "granularity": "block"},
    {"steps": 5, "policy": NeverReuse(), "seed": 3, "prompts_count": 1},
]


def latents_of(folder: Path) -> list[NDArray[np.float32]]:
    """Return the latents of each generation, on a pipeline of its own."""
    return [fake_pipeline(folder, functions())[0].generate(request(**options)).latents for options in SEVERAL]


def test_generations_in_turn_do_not_meet(folder: Path) -> None:
    expected = latents_of(folder)
    pipeline, _ = fake_pipeline(folder, functions())
    for order in ((0, 1, 2), (2, 1, 0), (1, 1, 0)):
        for index in order:
            np.testing.assert_array_equal(pipeline.generate(request(**SEVERAL[index])).latents, expected[index])


def test_generations_side_by_side_do_not_meet(folder: Path) -> None:
    expected = latents_of(folder)
    pipeline, _ = fake_pipeline(folder, functions())
    running = [pipeline.calls(request(**options)) for options in SEVERAL]
    for call in range(1, 6):
        assert [next(calls).call for calls in running] == [call] * len(running)
    for calls, whole in zip(running, expected, strict=True):
        with pytest.raises(StopIteration) as end:
            next(calls)
        np.testing.assert_array_equal(end.value.value.latents, whole)


def test_a_call_does_not_last_while_others_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which the embedding takes a second, and the caller takes a minute between two calls."""
    now = [0.0]

    def embed(given: Mapping[str, Array]) -> Mapping[str, Array]:
        now[0] += 1
        return functions()["embed"](given)

    def rest(_record: CallRecord) -> None:
        now[0] += 60

    monkeypatch.setattr(denoiser, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    pipeline, _ = fake_pipeline(folder, {**functions(), "embed": embed})
    result = pipeline.generate(request(**script("CCRC")), rest)
    assert [record.wall_ms for record in result.trace.calls] == [1000] * 4


def test_generations_in_threads_do_not_meet(folder: Path) -> None:
    expected = latents_of(folder)
    pipeline, _ = fake_pipeline(folder, functions())
    results: dict[int, Denoised] = {}

    def work(index: int) -> None:
        results[index] = pipeline.generate(request(**SEVERAL[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(SEVERAL))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, whole in enumerate(expected):
        np.testing.assert_array_equal(results[index].latents, whole)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_generation_can_be_left_between_calls(folder: Path, after: int) -> None:
    expected = latents_of(folder)
    pipeline, log = fake_pipeline(folder, functions())
    calls = pipeline.calls(request(**SEVERAL[1]))
    for _ in range(after):
        next(calls)
    calls.close()
    left = len(log)
    assert log.count("combine") == after
    for index, whole in enumerate(expected):
        np.testing.assert_array_equal(pipeline.generate(request(**SEVERAL[index])).latents, whole)
    assert len(log) > left


def test_an_error_in_the_users_callback_is_the_users(fake) -> None:
    pipeline, _ = fake

    def fail(_record: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.generate(request(), fail)
    pipeline.generate(request())


def test_the_request_is_left_as_it_was(fake) -> None:
    pipeline, _ = fake
    noise, given = start_noise(4), captions()
    copies = noise.copy(), given.embeddings.copy(), given.mask.copy()
    result = pipeline.generate(request(latents=noise, captions=given, keep_calls=True))
    for array, copy in zip((noise, given.embeddings, given.mask), copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    assert result.calls is not None
    np.testing.assert_array_equal(result.calls[0], noise)
    assert not np.shares_memory(result.latents, noise)


def test_the_seed_is_the_noise(fake) -> None:
    pipeline, _ = fake
    same = [pipeline.generate(request(seed=9)).latents for _ in range(2)]
    np.testing.assert_array_equal(*same)
    np.testing.assert_array_equal(same[0], pipeline.generate(request(latents=start_noise(9))).latents)
    assert not np.array_equal(same[0], pipeline.generate(request(seed=8)).latents)


# requests that cannot be

ONE = captions(1)
BAD: list[tuple[dict[str, Any], type[InputError], str]] = [
    ({"steps": 0}, OutOfRangeError, "0 steps"),
    ({"guidance": float("nan")}, OutOfRangeError, "guidance nan"),
    ({"seed": -1}, OutOfRangeError, "seed -1"),
    ({"seed": 2**63}, OutOfRangeError, "seed"),
    ({"height": 0}, OutOfRangeError, "height 0"),
    ({"frames": 9}, OutOfRangeError, "frames 9, allowed 1 to 8"),
    ({"height": 10**7, "width": 10**7, "frames": 10**4}, OutOfRangeError, "height 10000000, allowed 1 to 8"),
    ({"fps": (24.0, 24.0, 24.0)}, InputError, "3 values of fps for 2 prompts"),
    ({"fps": (float("nan"),)}, OutOfRangeError, "fps nan"),
    ({"captions": None}, InputError, "either prompts or the embeddings"),
    ({"prompts": ("a",)}, InputError, "either prompts or the embeddings"),
    ({"captions": None, "prompts": ("a",)}, InputError, "no text encoder"),
    ({"captions": Captions(np.zeros((2, 4, 2), np.float32), ONE.mask)}, InputError, r"expected \(prompts, length, 3\)"),
    ({"captions": Captions(np.zeros((1, 5, 3), np.float32), ONE.mask)}, InputError, "length 5"),
    ({"captions": Captions(ONE.embeddings, np.ones((1, 3), bool))}, InputError, "mask has shape"),
    ({"captions": Captions(ONE.embeddings, np.zeros((1, 4), bool))}, InputError, "all false"),
    ({"captions": replace(ONE, embeddings=ONE.embeddings * np.float32(np.nan))}, InputError, "NaN"),
    ({"latents": start_noise(prompts=1)}, InputError, "latents have shape"),
    ({"latents": np.zeros((2, WIDTH, 4, 2), np.float32)}, InputError, "latents have shape"),
    ({"latents": np.full((2, WIDTH, *SIZE), np.inf, np.float32)}, InputError, "latents contain NaN, infinity"),
    ({"latents": np.full((2, WIDTH, *SIZE), 1e300)}, InputError, "latents contain .* beyond float32"),
    ({"captions": replace(ONE, embeddings=np.full((1, 4, 3), -1e300))}, InputError, "embeddings contain .* beyond"),
    ({"latents": np.zeros((2, WIDTH, 0, 2, 5), np.float32)}, OutOfRangeError, "frames 0, allowed 1 to 8"),
    ({"granularity": "layer"}, InputError, "'layer' is unknown; choose one of model, stack, first, block"),
    ({"scope": "token"}, InputError, "'token' is unknown; choose one of batch, prompt"),
    ({"policy": AdaCache(codebook=[(1.0, 1)], probe=("spatial.9.attn",))}, InputError, "--probe spatial.9.attn"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD)
def test_a_request_that_cannot_be(fake, options: dict[str, Any], kind: type[InputError], message: str) -> None:
    pipeline, log = fake
    with pytest.raises(kind, match=message):
        pipeline.generate(request(**options))
    assert log == []


def test_too_many_prompts(fake) -> None:
    pipeline, _ = fake
    many = Captions(np.zeros((9, 4, WIDTH), np.float32), np.ones((9, 4), bool))
    with pytest.raises(OutOfRangeError, match="samples 9, allowed 1 to 8"):
        pipeline.generate(request(captions=many))


def test_memory_is_told_before_a_run(fake) -> None:
    pipeline, log = fake
    hidden = 4 * 4 * np.prod(SIZE) * WIDTH  # bytes: float32, 2 prompts x 2 branches
    latents = 4 * 2 * np.prod(SIZE) * WIDTH
    by_group = {"model": latents, "stack": hidden, "first": 2 * hidden, "block": len(BLOCKS) * hidden}
    assert pipeline.prepare(request()).residual_nbytes() == by_group
    assert log == []


def test_an_engine_that_is_missing_is_known_at_once(folder: Path) -> None:
    some = functions()
    del some["combine"]
    with pytest.raises(EngineError, match="combine"):
        fake_pipeline(folder, some)
