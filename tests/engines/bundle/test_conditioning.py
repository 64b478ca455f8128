"""What a manifest says of the pictures that a video can be made from agrees with the inputs of its stages."""

from typing import Any

import pytest
from pydantic import ValidationError

from adacache_engines.bundle.conditioning import conditioning_of
from adacache_engines.bundle.manifest import Manifest
from tests.helpers.model import fake_model

PLAIN = fake_model.manifest()
CHANGES: dict[str, dict[str, Any]] = {
    "none": {"conditioning": "none"},
    "not-exported": {"conditioning": "not-exported"},
    "kept-frames": fake_model.conditioned(PLAIN),
    "encoded-video": fake_model.starting_from_image(PLAIN),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_manifest_says_what_its_stages_take(kind: str) -> None:
    made = PLAIN.model_copy(update=CHANGES[kind])
    assert Manifest.model_validate_json(made.model_dump_json()) == made
    assert conditioning_of(made.stages) == ("none" if kind == "not-exported" else kind)
    others = {*CHANGES} - ({"none", "not-exported"} if kind in ("none", "not-exported") else {kind})
    for other in others:
        wrong = made.model_copy(update={"conditioning": other})
        with pytest.raises(ValidationError, match=f"conditioning is {other}, and the inputs of the stages"):
            Manifest.model_validate_json(wrong.model_dump_json())
