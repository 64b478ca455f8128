"""Policies on a model of two experts decide as two policies that know nothing of each other, whatever kind they are."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from adacache_engines.bundle.manifest import StageEntry
from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.measured.easycache import EasyCache
from adacache_runtime.caching.policies.scheduled.guidance_every import GuidanceEvery
from adacache_runtime.caching.policies.scheduled.magcache import MagCache
from adacache_runtime.caching.policies.wrappers import Extrapolate
from adacache_runtime.caching.policy import Policy
from adacache_runtime.denoising.denoiser import Denoiser
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.trace import CallRecord
from tests.helpers.model import fake_model
from tests.helpers.model.experts import functions_of_experts, two_experts
from tests.helpers.model.fake_model import BLOCKS, fake_pipeline, request
from tests.helpers.policies.policy_kinds import KINDS, WRAPS, Wrap, wrapped

PARTS = {
    "spatial.00": ("spatial", 0, "attn"),
    "temporal.00": ("spatial", 0, "cross"),
    "spatial.01": ("spatial", 0, "mlp"),
    "temporal.01": ("temporal", 0, "attn"),
}
POLICIES: dict[str, Policy[Any]] = {
    **{kind: policy for kind, (policy, _) in KINDS.items()},
    "guidance-every": GuidanceEvery(every=3),
    "adacache by branch": AdaCache(codebook=((0.2, 7), (0.5, 3), (1.0, 1)), by_branch=True),
    "magcache by branch": MagCache(ratios=(1, 0.99, 0.9), unconditional=(1, 0.9, 0.8), max_reuses=9, threshold=0.5),
    "easycache of the conditional branch": EasyCache(threshold=2.5, output="conditional_velocity"),
}
WITHOUT_WRAPPERS = {"guidance-every"}  # which decides by branch


def of_modules(stages: Sequence[StageEntry]) -> tuple[StageEntry, ...]:
    """Return the stages with each block as a part of a larger one."""

    def part(stage: StageEntry) -> StageEntry:
        name = stage.graph.name.removeprefix("low.")
        if name not in BLOCKS:
            return stage
        kind, index, part = PARTS[name]
        return stage.model_copy(update={"kind": kind, "index": index, "part": part})

    return tuple(map(part, stages))


def changes(policy: Policy[Any]) -> dict[str, Any]:
    """Return the changes of the fake manifest that give it two experts, with the stages that a policy decides about."""
    found = two_experts()
    if policy.needs.granularity == "module":
        found |= {"stages": of_modules(found["stages"]), "granularity": "module"}
    return found


def alone(folder: Path, policy: Policy[Any], asked: Any, expert: int, latents: Any) -> tuple[list[CallRecord], Any]:
    """Make one expert's calls by a model that is this expert alone, from the latents that enter the first of them."""
    both, _ = fake_pipeline(folder, functions_of_experts(), **changes(policy))
    settled = both.prepare(asked).checked.settled
    segment = next(part for part in settled.segments if part.expert == expert)
    stages = [stage for stage in both.bundle.manifest.stages if stage.expert == expert]
    single = tuple(stage.model_copy(update={"expert": 0}) for stage in stages)
    one = {**changes(policy), "stages": single, "experts": fake_model.manifest().experts}
    pipeline, _ = fake_pipeline(folder, functions_of_experts(), **one)
    begun = pipeline.prepare(replace(asked, latents=latents)).begin()
    here = slice(segment.before, segment.before + segment.run.calls)
    places = begun.settled.segments[0].run.places
    own = replace(segment, expert=0, before=0, run=replace(segment.run, places=places))
    denoiser = Denoiser(begun.denoiser.assembly, [own], begun.settled.updates[here], policy)
    records = list(denoiser.records())
    return records, denoiser.latents.read()


def check(folder: Path, policy: Policy[Any], steps: int, seed: int) -> None:
    asked = request(steps=steps, seed=seed, policy=policy, keep_calls=True, prompts_count=1)
    pipeline: Pipeline = fake_pipeline(folder, functions_of_experts(), **changes(policy))[0]
    whole = pipeline.generate(asked)
    segments = pipeline.prepare(asked).checked.settled.segments
    assert len(segments) == 2
    for segment, after in zip(segments, (whole.calls[segments[1].before], whole.latents), strict=True):
        records, latents = alone(folder, policy, asked, segment.expert, whole.calls[segment.before])
        np.testing.assert_array_equal(latents, after)
        mine = whole.trace.calls[segment.before : segment.before + segment.run.calls]
        assert mine[0].in_full, "the first call of an expert is computed"
        for record, expected in zip(mine, records, strict=True):
            assert record.call == segment.before + expected.call
            assert (record.compute, record.rebuilt) == (expected.compute, expected.rebuilt)
            assert record.observation.keys() == expected.observation.keys()
            for key, value in record.observation.items():
                assert value == expected.observation[key] or math.isnan(value)


@pytest.mark.parametrize("kind", POLICIES)
@settings(max_examples=6, deadline=None, phases=(Phase.generate,))  # an example is three generations: none is shrunk
@given(data=st.data())
def test_an_expert_is_decided_for_as_if_it_were_alone(kind: str, data: st.DataObject) -> None:
    """Decisions, what was observed, and latents bit for bit: nothing of the other expert's calls is left."""
    policy, steps, seed = POLICIES[kind], data.draw(st.integers(2, 14)), data.draw(st.integers(0, 99))
    wraps: list[Wrap] = [] if kind in WITHOUT_WRAPPERS else data.draw(WRAPS)
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder) / "bundle", wrapped(policy, wraps), steps, seed)


@pytest.mark.parametrize("kind", sorted(POLICIES.keys() - WITHOUT_WRAPPERS))
def test_no_line_is_drawn_from_one_expert_to_the_other(kind: str, tmp_path: Path) -> None:
    """Extrapolated residuals are those of the expert's own calls."""
    policy = POLICIES[kind]
    if policy.needs.residuals and not policy.needs.weighted:
        check(tmp_path / "bundle", Extrapolate(policy=policy), 12, 1)
