"""PAB, T-GATE and Delta-DiT: their settings for each family, against schedules that the original code gives."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adacache_engines.bundle.manifest import Preset
from adacache_engines.errors import InputError, PolicyError
from adacache_export.families.latte_t2v.transformer import LatteT2VConfig
from adacache_export.families.open_sora.family import SHIFT
from adacache_export.families.open_sora.transformer import OpenSoraConfig
from adacache_export.families.open_sora_plan import family as open_sora_plan
from adacache_export.families.registry import FAMILIES
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from adacache_runtime.caching.policies.scheduled.delta_dit import DeltaDiT
from adacache_runtime.caching.policies.scheduled.pab import PAB
from adacache_runtime.caching.policies.scheduled.tgate import TGate
from adacache_runtime.caching.policy import Context, Place, Policy, Run
from adacache_runtime.caching.presets import policy_from, policy_from_description
from adacache_runtime.caching.simulate import replay
from adacache_runtime.samplers.ddim import ddim
from adacache_runtime.samplers.flow import shift_ratio
from adacache_runtime.samplers.pndm import pndm
from adacache_runtime.samplers.rflow import rflow, rflow_timesteps
from tests.helpers.originals.teacache_coefficients import PUBLISHED
from tests.helpers.policies.policy_runs import places
from tools.demo.fit import replace_presets

Schedule = list[tuple[bool, ...]]

ORIGINAL: Mapping[str, Any] = json.loads((Path(__file__).parents[3] / "tests" / "data" / "policies.json").read_text())
PARTS = {"spatial": ("attn", "cross", "mlp"), "temporal": ("attn", "mlp")}
FAMILY: Mapping[str, tuple[str, Any, Mapping[str, Sequence[str]]]] = {
    "open-sora-1.2": ("opensora", OpenSoraConfig(), {**PARTS, "temporal": ("attn", "cross", "mlp")}),
    "latte-1": ("latte", LatteT2VConfig(), PARTS),
    "open-sora-plan-1.1": ("osp", open_sora_plan.RELEASED, PARTS),
}
BROADCAST = ("pab1", "pab2", "pab3")
# reused calls of spatial, temporal and cross-attention, and of the MLPs that have any
COUNTS = {
    "open-sora-1.2": ((9, 13, 14, 6), (11, 13, 15, 6), (13, 15, 15, 6)),
    "latte-1": ((17, 23, 28, 10), (23, 26, 29, 10), (26, 28, 31, 10)),
    "open-sora-plan-1.1": ((63, 94, 104, 28), (83, 100, 107, 28), (100, 107, 111, 28)),
}
POLICIES: Mapping[str, Any] = {
    "pab": PAB(window=(1, 900), spatial=2, temporal=3, cross=4, mlp_starts=(997,), mlp_blocks=(0,)),
    "tgate": TGate(window=(0, 4), gap=2, gate=4),
    "delta-dit": DeltaDiT(interval=(0, 3), pairs=(0, 0)),
}


def presets(family: str) -> Mapping[str, Preset]:
    return FAMILIES[family].describe(FAMILY[family][1], None).policies


def module_names(parts: Mapping[str, Sequence[str]], blocks: int = 28) -> list[str]:
    return [f"{kind}.{block:02}.{part}" for block in range(blocks) for kind in parts for part in parts[kind]]


def reused(schedule: Schedule, names: Sequence[str]) -> dict[str, list[int]]:
    """The calls, from 0 as the originals count, that reuse each group."""
    return {
        name: [index for index, compute in enumerate(schedule) if not compute[group]]
        for group, name in enumerate(names)
    }


def reused_by(family: str, preset: str, timesteps: Sequence[float] | None = None) -> dict[str, list[int]]:
    source, _, parts = FAMILY[family]
    names = module_names(parts)
    policy = policy_from(preset, presets(family))
    return reused(replay(policy, timesteps or ORIGINAL[source]["timesteps"], places(*names)), names)


def sampled(family: str) -> Iterator[list[float]]:
    """The timesteps of this project's samplers where the original's table is for; Open-Sora's at both precisions."""
    if family == "open-sora-1.2":
        for dtype in (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)):
            ratio = shift_ratio(SHIFT, 480, 854, 51, dtype)
            yield [float(update.timestep[0]) for update in rflow(rflow_timesteps(30, 1, ratio))]
    elif family == "latte-1":
        yield [float(update.timestep[0]) for update in ddim(50, 1)]
    else:
        yield [float(update.timestep[0]) for update in pndm(150, 1, idle_call=True)]
        yield [float(update.timestep[0]) for update in pndm(150, 1)]


# against the originals


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("preset", BROADCAST)
def test_pab_reuses_what_the_original_reuses(family: str, preset: str) -> None:
    wanted = ORIGINAL[FAMILY[family][0]]["pab"][preset]
    counts = dict(zip(("spatial", "temporal", "cross", "mlp"), COUNTS[family][BROADCAST.index(preset)], strict=True))
    for name, calls in reused_by(family, preset).items():
        kind, block, part = name.split(".")
        row = kind if part == "attn" else part
        listed = part != "mlp" or int(block) in wanted["mlp_blocks"]
        assert calls == (wanted[row] if listed else []), name
        assert len(calls) == (counts[row] if listed else 0)


@pytest.mark.parametrize("family", FAMILY)
def test_an_mlp_reuses_what_its_start_computed(family: str) -> None:
    """The last computed call before, which is the one whose output the original keeps."""
    wanted = ORIGINAL[FAMILY[family][0]]["pab"]["pab1"]["mlp_source"]
    calls = reused_by(family, "pab1")["temporal.00.mlp"]
    source = {str(call): max(index for index in range(call) if index not in calls) for call in calls}
    assert source == wanted


@pytest.mark.parametrize("family", FAMILY)
def test_tgate_reuses_what_the_original_reuses(family: str) -> None:
    wanted = ORIGINAL[FAMILY[family][0]]["tgate"]
    for name, calls in reused_by(family, "tgate").items():
        kind, _, part = name.split(".")
        assert calls == ([] if part == "mlp" else wanted[kind if part == "attn" else part]), name


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("preset", ["delta-dit", "delta-dit-as-released"])
def test_delta_dit_skips_what_the_original_skips(family: str, preset: str) -> None:
    """A skipped pair, or the one where the original adds what it has kept, is one whose residual is reused here."""
    steps = ORIGINAL[FAMILY[family][0]]["deltadit"]["skip_steps"]
    for name, calls in reused_by(family, preset).items():
        block = int(name.split(".")[1])
        assert calls == [int(call) for call, what in steps.items() if block in what["skip"] + what["add_cache_at"]]


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("preset", [*BROADCAST, "tgate", "delta-dit"])
def test_our_timesteps_give_the_same_schedule(family: str, preset: str) -> None:
    """Open-Sora's MLP starts are numbers of bfloat16, which the fractional timesteps must meet after rounding; without
    its idle call Open-Sora-Plan makes one call less.
    """
    original = reused_by(family, preset)
    for timesteps in sampled(family):
        calls = len(timesteps)
        shortened = {name: [index for index in indices if index < calls] for name, indices in original.items()}
        assert reused_by(family, preset, timesteps) == shortened


def test_every_family_has_them() -> None:
    assert set(FAMILY) == set(FAMILIES) - {"wan"}  # which has neither spatial nor temporal blocks
    scheduled, polynomial = [*BROADCAST, "tgate", "delta-dit", "delta-dit-as-released"], iter(PUBLISHED)
    for family in ("open-sora-1.2", "latte-1", "open-sora-plan-1.1"):
        names = list(presets(family))
        assert names[-8:] == [*scheduled, "teacache-slow", "teacache-fast"]
        assert all(policy_from(name, presets(family)).needs.measures == () for name in scheduled)
        coefficients = next(polynomial)
        for name, threshold in (("teacache-slow", 0.1), ("teacache-fast", 0.2)):
            assert policy_from(name, presets(family)) == TeaCache(coefficients=coefficients, threshold=threshold)


# any settings

CALLS = st.integers(1, 40)
WHOLE = st.integers(0, 45)
SPANS = st.tuples(WHOLE, WHOLE).map(lambda ends: (min(ends), max(ends)))
BLOCKS = st.lists(st.integers(0, 3)).map(tuple)
PABS = st.builds(
    PAB,
    window=SPANS,
    spatial=st.integers(1, 9),
    temporal=st.integers(1, 9),
    cross=st.integers(1, 9),
    mlp_starts=st.lists(WHOLE).map(tuple),
    mlp_blocks=BLOCKS,
    mlp_calls=st.integers(1, 4),
    rounding=st.sampled_from(("none", "bfloat16")),
)
TGATES = st.builds(TGate, window=SPANS, gap=st.integers(1, 9), gate=WHOLE)
DELTAS = st.builds(DeltaDiT, interval=SPANS, gap=st.integers(2, 9), pairs=SPANS)


@given(policy=st.one_of(PABS, TGATES, DELTAS), timesteps=st.lists(WHOLE, min_size=1, max_size=40))
def test_nothing_is_reused_before_it_is_computed(policy: Policy[Any], timesteps: list[int]) -> None:
    """In any order of timesteps, repeated ones included."""
    names = module_names(PARTS, blocks=3)
    first, second = (replay(policy, timesteps, places(*names)) for _ in range(2))
    assert first == second
    assert all(first[0])
    assert len(first) == len(timesteps)
    assert all(len(compute) == len(names) for compute in first)


@given(policy=PABS, calls=CALLS)
def test_an_mlp_is_reused_after_a_start_only(policy: PAB, calls: int) -> None:
    timesteps = [float(calls - index) for index in range(calls)]
    after = {start - later for start in policy.mlp_starts if start <= calls for later in range(1, policy.mlp_calls + 1)}
    wanted = [index for index, timestep in enumerate(timesteps) if timestep in after - {*policy.mlp_starts}]
    names = module_names(PARTS, 4)
    for name, indices in reused(replay(policy, timesteps, places(*names)), names).items():
        _, block, part = name.split(".")
        if part == "mlp":
            assert indices == (wanted if int(block) in policy.mlp_blocks else [])


@given(policy=DELTAS, calls=CALLS)
def test_blocks_are_reused_as_their_modules_are(policy: DeltaDiT, calls: int) -> None:
    """A block's group is named after the block, or its first and last module where it has such stages."""
    timesteps = [float(calls - index) for index in range(calls)]
    whole = [f"{kind}.{block:02}" for block in range(3) for kind in PARTS]
    grouped = [f"{name}.attn to {name}.mlp" for name in whole]
    by_block = reused(replay(policy, timesteps, places(*whole)), whole)
    assert list(reused(replay(policy, timesteps, places(*grouped)), grouped).values()) == list(by_block.values())
    names = module_names(PARTS, 3)
    for name, indices in reused(replay(policy, timesteps, places(*names)), names).items():
        assert indices == by_block[name.rsplit(".", 1)[0]]


# the contract


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_is_measured(name: str) -> None:
    policy = POLICIES[name]
    assert (policy.needs.residuals, policy.needs.measures) == (1, ())
    run = Run(4, 1, 1, places("spatial.00.attn"), (999.0, 998.0, 997.0, 996.0))
    state = policy.start(run)
    observation, after = policy.observe(state, Context(run, 1, 999.0), [])
    assert observation == {}
    assert after == state


WHOLE_STACK = ["spatial.00 to temporal.27"]
REMEDY = "export with --granularity module and run with --granularity module"
REMEDY_OF_BLOCKS = "run with --granularity block, or export and run with --granularity module"


@pytest.mark.parametrize(
    ("name", "groups", "remedy"),
    [
        ("pab", WHOLE_STACK, REMEDY),
        ("pab", ["spatial.00.attn", "temporal.00"], REMEDY),
        ("pab", ["spatial.00.attn", "spatial.00.cross+mlp"], REMEDY),
        ("tgate", WHOLE_STACK, REMEDY),
        ("tgate", ["spatial.00.attn to spatial.00.mlp"], REMEDY),
        ("delta-dit", WHOLE_STACK, REMEDY_OF_BLOCKS),
        ("delta-dit", ["spatial.00.attn to temporal.00.mlp"], REMEDY_OF_BLOCKS),
    ],
)
def test_groups_that_are_too_coarse(name: str, groups: list[str], remedy: str) -> None:
    with pytest.raises(PolicyError, match=rf"policy {name} .*{re.escape(groups[-1])}: {remedy}"):
        replay(POLICIES[name], [2.0, 1.0], places(*groups))


@pytest.mark.parametrize("name", POLICIES)
def test_groups_without_names(name: str) -> None:
    with pytest.raises(PolicyError, match="without a name"):
        POLICIES[name].start(Run(3, 2, 1))


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_can_be_described(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(POLICIES[name].model_dump_json())
    assert policy_from(str(path)) == POLICIES[name]


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("pab", {"ranges": [2, 4, 6]}, ["ranges is unknown", "window", "spatial", "mlp_starts"]),
        ("pab", {"spatial": 0}, ["spatial"]),
        ("pab", {"window": [930, 450]}, ["window", "the lower timestep"]),
        ("pab", {"window": [float("nan"), 450]}, ["window"]),
        ("pab", {"mlp_calls": 0}, ["mlp_calls"]),
        ("pab", {"rounding": "float16"}, ["rounding", "bfloat16"]),
        ("tgate", {"cross_gap": 3}, ["cross_gap is unknown", "gate"]),
        ("tgate", {"gap": 0}, ["gap"]),
        ("tgate", {"gate": -1}, ["gate"]),
        ("tgate", {"window": [-1, 5]}, ["window", "counted from 0"]),
        ("tgate", {"window": [9, 5]}, ["window", "counted from 0"]),
        ("delta-dit", {"blocks": [0, 5]}, ["blocks is unknown", "interval", "pairs"]),
        ("delta-dit", {"gap": 1}, ["gap"]),
        ("delta-dit", {"interval": [5, 0]}, ["interval", "the first and the last"]),
        ("delta-dit", {"pairs": [-1, 0]}, ["pairs", "counted from 0"]),
    ],
)
def test_an_impossible_description_is_refused(name: str, changed: Mapping[str, object], words: Sequence[str]) -> None:
    described = {**POLICIES[name].model_dump(), **changed}
    with pytest.raises(InputError) as caught:
        policy_from_description(described, "mine.json")
    assert all(word in str(caught.value) for word in ["mine.json", *words]), str(caught.value)


# the families' files


def test_fitted_presets_replace_only_their_own(tmp_path: Path) -> None:
    path = tmp_path / "family.json"
    path.write_text('{"presets": {"adacache-fast": {"policy": {}, "note": "old"}, "tgate": {"policy": {"gap": 2}}}}')
    replace_presets(path, {"fast": {"name": "never"}, "slow": {}}, "new")
    assert json.loads(path.read_text()) == {
        "presets": {
            "adacache-fast": {"policy": {"name": "never"}, "note": "new"},
            "tgate": {"policy": {"gap": 2}},
            "adacache-slow": {"policy": {}, "note": "new"},
        }
    }


def test_pab_refuses_kinds_of_blocks_that_it_does_not_know() -> None:
    run = Run(3, 1, 1, (Place("joint.00.attn", "joint", 0, "attn"),), (999.0, 998.0, 997.0))
    with pytest.raises(PolicyError, match="kinds spatial and temporal, and this model has others: joint"):
        POLICIES["pab"].start(run)
    assert POLICIES["tgate"].start(run)
