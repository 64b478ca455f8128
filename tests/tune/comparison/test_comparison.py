"""Policies against full compute on the fake model: in turn, and in numbers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.errors import InputError
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.caching.presets import PRESETS
from adacache_runtime.request import Request
from adacache_runtime.trace import CallRecord
from adacache_tune.comparison.measure import Row, Yardsticks, compare, run_in_turn
from adacache_tune.comparison.quality import relative_l2, similarity
from adacache_tune.comparison.statistics import estimate
from tests.helpers.model.fake_prompts import prompted

PROMPTS = ("a boat", "a bird", "a bear")
POLICIES = {"interval-2": PRESETS["interval-2"], "interval-3": PRESETS["interval-3"]}


def requests(count: int = 2, **options: Any) -> list[Request]:
    return [Request(prompts=(prompt,), height=8, width=8, **options) for prompt in PROMPTS[:count]]


def without_times(rows: Sequence[Row]) -> list[Row]:
    return [replace(row, wall_ms=0, time_ratio=0) for row in rows]


# generations in turn


def test_generations_advance_in_turn(tmp_path: Path) -> None:
    pipeline = prompted(tmp_path)
    (request,) = requests(1)
    pair = [replace(request, policy=POLICIES["interval-3"]), request]
    seen: list[CallRecord] = []
    results = run_in_turn(pipeline, pair, seen.append, first=1)
    assert [record.call for record in seen] == [call for call in range(1, 7) for _ in pair]
    assert [record.computed for record in seen[2:4]] == [True, False]  # call 2: who is first is full compute
    assert [len(result.trace.computed()) for result in results] == [3, 6]  # in the order of the requests
    for result, one in zip(results, pair, strict=True):
        np.testing.assert_array_equal(result.latents, pipeline.generate(one).latents)


def test_an_error_ends_all_generations(tmp_path: Path) -> None:
    (request,) = requests(1)
    with pytest.raises(InputError, match="frames"):
        run_in_turn(prompted(tmp_path), [request, replace(request, frames=0)])


def test_full_compute_is_first_and_the_others_are_against_it(tmp_path: Path) -> None:
    pipeline, calls = prompted(tmp_path), 6
    seen: list[CallRecord] = []
    compared = list(compare(pipeline, requests(), POLICIES, on_call=seen.append))
    assert len(seen) == calls * (1 + 2 * 3)  # one warms up
    for one, request in zip(compared, requests(), strict=True):
        full, *others = one.rows
        assert (one.prompt, one.seed, full.policy) == (request.prompts[0], 0, "never")
        assert (full.computed, full.passes, full.time_ratio, full.latent_l2) == (calls, 2 * calls, 1, 0)
        assert (full.same, full.psnr_db, full.ssim) == (True, None, 1)
        for row, (label, policy) in zip(others, POLICIES.items(), strict=True):
            plain, reused = (pipeline.generate(replace(request, policy=p)) for p in (request.policy, policy))
            assert row.policy == label
            assert row.computed == len(reused.trace.computed())
            assert row.latent_l2 == relative_l2(plain.latents[0], reused.latents[0]) > 0
            assert (row.psnr_db, row.ssim) == similarity(one.frames["never"], one.frames[label])
            assert row.time_ratio == pytest.approx(full.wall_ms / row.wall_ms)


def test_who_begins_rotates(tmp_path: Path) -> None:
    slowed: list[bool] = []
    list(compare(prompted(tmp_path), requests(3), POLICIES, warm_up=False, on_call=lambda r: slowed.append(r.computed)))
    second_calls = [slowed[18 * index + 3 : 18 * index + 6] for index in range(3)]
    assert second_calls == [[True, False, False], [False, False, True], [False, True, False]]


def test_policies_that_change_nothing_give_the_same(tmp_path: Path) -> None:
    (compared,) = compare(prompted(tmp_path), requests(1), {"every": FixedInterval(every=1)})
    assert without_times(compared.rows)[1] == replace(without_times(compared.rows)[0], policy="every")


def test_yardsticks(tmp_path: Path) -> None:
    yardsticks = Yardsticks(
        lambda full, frames: float(np.abs(full.astype(int) - frames).mean()),
        lambda latents, prompt: {"letters": len(prompt), "axes": latents.ndim},
    )
    (compared,) = compare(prompted(tmp_path), requests(1), POLICIES, yardsticks)
    assert compared.rows[0].lpips == 0
    assert all(row.lpips is not None and row.lpips > 0 for row in compared.rows[1:])
    assert all(row.adherence == {"letters": 6, "axes": 4} for row in compared.rows)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    pipeline = prompted(tmp_path)
    with pytest.raises(InputError, match="'never' is the label of full compute"):
        list(compare(pipeline, requests(1), {"never": PRESETS["interval-2"]}))
    both = replace(requests(1)[0], prompts=PROMPTS[:2])
    with pytest.raises(InputError, match="a request of 2 prompts"):
        list(compare(pipeline, [both], POLICIES))


# quality and statistics


def test_psnr_and_latents_by_hand() -> None:
    dark = np.zeros((2, 8, 9, 3), np.uint8)
    light = dark + np.uint8(51)  # a fifth of 255
    psnr_db, ssim = similarity(dark, light)
    assert psnr_db == pytest.approx(20 * np.log10(5))
    assert 0 < ssim < 1
    assert similarity(light, light) == (float("inf"), 1.0)
    assert relative_l2(np.full((3, 4), 2, np.float32), np.full((3, 4), 3, np.float32)) == pytest.approx(0.5)
    with pytest.raises(InputError, match="frames of 9x6 pixels are too small for SSIM; choose at least 7 each way"):
        similarity(dark[:, :6], light[:, :6])
    with pytest.raises(InputError, match="the same shape"):
        similarity(dark, light[:1])


def test_a_mean_and_its_interval() -> None:
    assert estimate([]) is None
    assert estimate([[], []]) is None
    alone = estimate([[1.0, 2.0]])
    assert alone is not None
    assert (alone.mean, alone.low, alone.high, alone.margin) == (1.5, None, None, None)
    # two prompts: their means are 1 and 3, and a draw gives both, twice the one, or twice the other
    two = estimate([[0.0, 2.0], [], [3.0, 3.0]])
    assert two is not None
    assert (two.mean, two.low, two.high, two.margin) == (2.0, 1.0, 3.0, 1.0)
    # unequal numbers of seeds: all values count alike
    unequal = estimate([[1.0], [4.0, 4.0]])
    assert unequal is not None
    assert unequal.mean == 3


def test_the_interval_is_that_of_the_normal_distribution_where_prompts_are_many() -> None:
    values = np.random.default_rng(1).standard_normal(400)
    found = estimate([[value] for value in values.tolist()])
    assert found is not None
    assert found == estimate([[value] for value in values.tolist()])
    assert found.margin == pytest.approx(1.96 * values.std() / 20, rel=0.03)
