"""Stages that prepare one block alone: they run once a generation, and no other block gets what they make."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from adacache_engines.bundle.manifest import StageEntry
from adacache_engines.bundle.tensors import TensorSpec
from adacache_engines.contract.fake import Function
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from tests.helpers.model import fake_model
from tests.helpers.model.experts import LOW, functions_of_experts, two_experts
from tests.helpers.model.fake_model import BLOCKS, WIDTH, captions, fake_pipeline, request, spec

OWN_TEXT = spec("own_text", "batch", "text", WIDTH)
STEPS = 8
FACTORS = dict(zip(BLOCKS, (0.5, -1.0, 2.0, 3.0), strict=True))  # of the text that each block gets


def prepared(stages: Sequence[StageEntry]) -> tuple[StageEntry, ...]:
    """Return the stages with one more for each block, which makes the text that the block takes."""

    def owned(given: TensorSpec) -> TensorSpec:
        return OWN_TEXT if given.name == "text" else given

    made: list[StageEntry] = []
    for stage in stages:
        graph, changed = stage.graph, stage
        if stage.block:
            text = fake_model.graph(f"{graph.name}.text", (spec("text", "batch", "text", WIDTH),), (OWN_TEXT,))
            place = {"kind": stage.kind, "index": stage.index, "expert": stage.expert}
            made.append(StageEntry(graph=text, role="text", per_generation=True, **place))
            inputs = tuple(map(owned, graph.inputs))
            changed = stage.model_copy(update={"graph": graph.model_copy(update={"inputs": inputs})})
        made.append(changed)
    return tuple(made)


def functions(of_text: str) -> dict[str, Function]:
    """Return functions of both experts' stages whose blocks take the text ``of_text``, times a factor or as it is."""
    plain = functions_of_experts()
    made: dict[str, Function] = dict(plain)
    for prefix in ("", LOW):
        for block, factor in FACTORS.items():
            made |= _pair(plain[prefix + block], prefix + block, np.float32(factor), of_text)
    return made


def _pair(run: Function, name: str, factor: np.float32, of_text: str) -> dict[str, Function]:
    def block(given: Mapping[str, Any]) -> Mapping[str, Any]:
        text = given[of_text] if of_text == "own_text" else given[of_text] * factor
        return run({**given, "text": text})

    return {name: block, f"{name}.text": lambda given: {"own_text": given["text"] * factor}}


@pytest.mark.parametrize("granularity", ["stack", "block"])
def test_each_block_gets_its_own_and_it_is_made_once(tmp_path: Path, granularity: str) -> None:
    """Two experts share the buffers, because an expert's stages run when its calls begin."""
    changes = two_experts()
    asked = request(steps=STEPS, policy=FixedInterval(every=3), granularity=granularity)
    expected, _ = fake_pipeline(tmp_path / "plain", functions("text"), **changes)
    own = {**changes, "stages": prepared(changes["stages"])}
    pipeline, log = fake_pipeline(tmp_path / "own", functions("own_text"), **own)
    np.testing.assert_array_equal(pipeline.generate(asked).latents, expected.generate(asked).latents)
    assert [log.count(f"{prefix}{name}.text") for prefix in ("", LOW) for name in BLOCKS] == [1] * 8
    assert [log.count(name) for name in BLOCKS] == [2] * 4


def test_the_memory_estimate_counts_them(tmp_path: Path) -> None:
    plain, _ = fake_pipeline(tmp_path / "plain", functions("text"))
    stages = prepared(fake_model.manifest().stages)
    pipeline, _ = fake_pipeline(tmp_path / "own", functions("own_text"), stages=stages)
    before, after = (each.prepare(request()).memory for each in (plain, pipeline))
    branches, (samples, text) = 2, captions().mask.shape
    assert after.prepared == after.run - before.run == len(BLOCKS) * branches * samples * text * WIDTH * 4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"per_generation": False}, "what prepares a block runs once in a generation"),
        ({"index": None}, "a block has a kind and an index; expected both, or neither"),
        ({"part": "attn"}, "only a block has parts, and its role is text"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], told: str) -> None:
    text = fake_model.graph("own", (), (OWN_TEXT,))
    right = {"graph": text, "role": "text", "per_generation": True, "kind": "spatial", "index": 0}
    assert StageEntry(**right).prepares_block
    with pytest.raises(ValidationError, match=told):
        StageEntry(**{**right, **change})
