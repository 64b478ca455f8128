"""Floating-point operations: each stage's polynomial against torch's own counter, the totals against published ones,
and what becomes of both in calls and runs.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from adacache_engines.bundle.manifest import ExportGranularity, Term
from adacache_engines.bundle.shape_profiles import video_sizes
from adacache_engines.errors import InputError
from adacache_export import costs
from adacache_export.families.latte_t2v.transformer import Block
from adacache_export.families.registry import FAMILIES
from adacache_export.stages import Stage
from adacache_export.verification.sizes import check_sizes
from adacache_export.writing.weights_file import TORCH_DTYPES
from adacache_runtime.reports.flops import Work, flops, in_unit, work, work_of_run
from adacache_runtime.trace import Trace
from tests.helpers.model import fake_model
from tests.helpers.tiny_models.configurations import PUBLISHED, UNEVEN
from tests.helpers.tiny_models.operation_counts import (
    ENDS,
    SIZES,
    SPATIAL,
    TEMPORAL,
    TEXT,
    counted_fake,
    manifest_of,
    stages_of,
    trace_of,
)

CASES = [(name, config) for configs in (UNEVEN, PUBLISHED) for name, config in configs.items()]


def counted(stage: Stage, sizes: Mapping[str, int]) -> int:
    """Count operations as torch does, operator by operator; on the meta device, where it sees into attention."""
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        stage.module(*(torch.empty(spec.shape(sizes), dtype=TORCH_DTYPES[spec.dtype]) for spec in stage.inputs))
    return int(counter.get_total_flops())


# stages


def test_every_family_is_counted() -> None:
    assert set(UNEVEN) == set(FAMILIES)


@pytest.mark.parametrize("granularity", get_args(ExportGranularity))
@pytest.mark.parametrize(("name", "config"), CASES)
def test_every_stage_is_what_torch_counts(name: str, config: Any, granularity: ExportGranularity) -> None:
    sizes = check_sizes(FAMILIES[name].describe(config, None).latent)
    assert len(sizes) == 2
    for stage in {stage.traced_as: stage for stage in stages_of(name, config, granularity)}.values():
        if stage.role == "positions":  # tables that are looked up
            assert stage.flops == ()
            continue
        for size in sizes:
            anew = repeated_text(stage, size)
            assert flops(stage.flops, size) - anew == counted(stage, size) > 0, stage.name


def repeated_text(stage: Stage, sizes: Mapping[str, int]) -> int:
    """Work on the text's keys and values, which LatteT2V as published makes for every frame, and we for one."""
    if not (isinstance(stage.module, Block) and "cross" in stage.module.parts):
        return 0
    rows = sizes["batch"] * sizes["text"] * (sizes["patch_frames"] - 1)
    return rows * 2 * (stage.module.attn2.to_k.weight.numel() + stage.module.attn2.to_v.weight.numel())


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_of_a_kind_take_the_same(name: str) -> None:
    kinds: dict[str, set[tuple[Term, ...] | None]] = {}
    for stage in stages_of(name, UNEVEN[name]):
        kinds.setdefault(stage.traced_as, set()).add(stage.flops)
    assert {kind: len(found) for kind, found in kinds.items()} == dict.fromkeys(kinds, 1)


def test_terms_of_the_same_axes_are_one() -> None:
    layer = torch.nn.Linear(3, 5, device="meta")
    parts = (
        costs.layers(layer, costs.TOKENS),
        costs.layers(layer, ("tokens", "patch_frames", "batch")),
        costs.attention(costs.TOKENS, "tokens", 7),
    )
    assert {term.axes: term.flops for term in costs.total(*parts)} == {
        ("batch", "patch_frames", "tokens"): 2 * 2 * 3 * 5,
        ("batch", "patch_frames", "tokens", "tokens"): 4 * 7,
    }


# calls


@pytest.mark.parametrize(
    ("height", "width", "frames", "text", "tflop"),
    [
        (240, 426, 51, 100, 13.2),
        (240, 426, 51, 300, 13.5),
        (480, 854, 51, 100, 55.2),
        (480, 854, 51, 300, 56.5),
        (480, 854, 102, 100, 110.5),
        (480, 854, 102, 300, 113.0),
        (720, 1280, 51, 100, 139.0),
        (720, 1280, 51, 300, 141.8),
        (720, 1280, 102, 100, 278.1),
        (720, 1280, 102, 300, 283.8),
    ],
)
def test_a_full_call_of_open_sora(height: int, width: int, frames: int, text: int, tflop: float) -> None:
    """Totals of the published architecture, for one sample; embedding and final layer are too small to show."""
    manifest = manifest_of("open-sora-1.2", PUBLISHED["open-sora-1.2"])
    video = manifest.video.model_copy(update={"height": height, "width": width, "frames": frames})
    sizes = video_sizes(manifest, video)
    assert (sizes["batch"], sizes["text"]) == (2, 300)
    pair, one = work(manifest, {**sizes, "text": text}), work(manifest, {**sizes, "text": text, "batch": 1})
    assert pair
    assert one
    assert pair.full == 2 * one.full
    assert one.full / 1e12 == pytest.approx(tflop, abs=0.06)
    assert one.cached < one.full / 1000


@pytest.mark.parametrize(
    ("name", "text", "tflop"),
    [
        ("latte-1", 120, 68.80),
        ("latte-1", 20, 67.90),
        ("open-sora-plan-1.1", 300, 74.82),
        ("open-sora-plan-1.1", 20, 72.15),
    ],
)
def test_a_full_call_of_latte_and_open_sora_plan(name: str, text: int, tflop: float) -> None:
    """Totals of the published architecture, for a guided pair, as torch counts them."""
    manifest = manifest_of(name, PUBLISHED[name])
    parts = work(manifest, {**video_sizes(manifest, manifest.video), "text": text})
    assert parts
    assert parts.full / 1e12 == pytest.approx(tflop, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "calls", "tflop", "within"),
    [
        ("open-sora-1.2", 30, 3230.24, 0.05),
        ("open-sora-plan-1.1", 159, 12032.40, 0.02),
        ("open-sora-plan-1.1", 159, 11895.0, 2e-3),
        ("latte-1", 50, 3439.47, 2e-3),
    ],
)
def test_a_video_of_each_family(name: str, calls: int, tflop: float, within: float) -> None:
    """AdaCache's own counts (arXiv 2411.02397, table 1), of a length of text that is not told, and one of torch's."""
    manifest = manifest_of(name, PUBLISHED[name])
    parts = work(manifest, video_sizes(manifest, manifest.video))
    assert parts
    assert parts.generation([(True,)] * calls) / 1e12 == pytest.approx(tflop, rel=within)


def test_calls_by_granularity() -> None:
    bundle = counted_fake()
    pairs = (SPATIAL, TEMPORAL, SPATIAL, TEMPORAL)
    stack, block = work(bundle, SIZES), work(bundle, SIZES, "block")
    assert stack == Work(TEXT, ENDS, (sum(pairs),), branches=2)
    assert block == Work(TEXT, ENDS, pairs, branches=2)
    assert (stack.full, stack.cached) == (block.full, block.cached) == (ENDS + sum(pairs), ENDS)
    assert block.call((False, True, True, False)) == ENDS + TEMPORAL + SPATIAL
    assert stack.generation([(True,), (False,)]) == block.generation([(True,) * 4, (False,) * 4])
    assert block.generation([(True,) * 4, (True, False, False, False)]) == TEXT + 2 * ENDS + sum(pairs) + SPATIAL


def test_a_bundle_without_counts() -> None:
    assert work(counted_fake(), SIZES) is not None
    assert work(fake_model.manifest(), SIZES) is None


# runs


def test_a_run_against_every_call() -> None:
    bundle = counted_fake()
    whole = TEXT + 3 * (ENDS + 2 * (SPATIAL + TEMPORAL))
    saved = 2 * (SPATIAL + TEMPORAL)
    assert work_of_run(bundle, trace_of((True,), (False,), (True,))) == (whole - saved, whole)
    every, mixed = (True,) * 4, (True, False, False, True)
    assert work_of_run(bundle, trace_of(every, mixed, every)) == (whole - SPATIAL - TEMPORAL, whole)
    assert work_of_run(fake_model.manifest(), trace_of((True,))) is None


@pytest.mark.parametrize(
    "trace",
    [
        Trace(()),
        replace(trace_of((True,)), sizes={}),
        replace(trace_of((True,)), sizes={"batch": 2, "rows": 3}),
        trace_of((True, False)),
        trace_of((True,), (True,) * 4),
    ],
)
def test_a_trace_that_cannot_be_counted(trace: Trace) -> None:
    with pytest.raises(InputError, match="the trace"):
        work_of_run(counted_fake(), trace)


@pytest.mark.parametrize(
    ("counts", "texts", "unit"),
    [
        ((12_345_000_000_000, 30_100_000_000_000), ["12.3", "30.1"], "TFLOP"),
        ((3_390_400_000_000_000,), ["3,390"], "TFLOP"),
        ((953_000_000,), ["953"], "MFLOP"),
        ((2_000_000, 1_234_000_000), ["0.00", "1.23"], "GFLOP"),
        ((5,), ["0.00"], "MFLOP"),
    ],
)
def test_units(counts: tuple[int, ...], texts: list[str], unit: str) -> None:
    assert in_unit(*counts) == (texts, unit)
