"""What a manifest says of the image that a model attends to agrees with its stages, its encoder and its plans."""

from typing import Any

import pytest
from pydantic import ValidationError

from adacache_engines.bundle.manifest import Manifest
from adacache_engines.bundle.shape_profiles import shape_profile
from tests.helpers.model.fake_image import ENCODER, RULE, SIDE, TOKENS, WITH_ENCODER, attending
from tests.helpers.model.fake_model import WEIGHTS, WIDTH, manifest


def broken(**changes: Any) -> dict[str, Any]:
    return attending(manifest(), WITH_ENCODER.model_copy(update=changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**attending(manifest()), "image": None}, "stages take states of an image of widths"),
        ({"image": RULE, "conditioning": "none"}, "stages take states of an image of widths"),
        (broken(tokens=TOKENS + 1), "expected 4 states"),
        (broken(width=WIDTH + 1), "expected 3 states"),
        (broken(side=SIDE - 1), "expected images of side 3"),
        (broken(shorter=SIDE - 1), "images are resized to 3 pixels, and 4 are taken of them"),
        (broken(deviation=(1.0, 0.0, 1.0)), "expected positive numbers"),
        ({**attending(manifest()), "part_weights": {}}, "part_weights does not name the weights of image_encoder"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    whole = manifest().model_copy(update=attending(manifest()))
    assert Manifest.model_validate_json(whole.model_dump_json()) == whole
    wrong = manifest().model_copy(update=changes)
    with pytest.raises(ValidationError, match=message):
        Manifest.model_validate_json(wrong.model_dump_json())


def test_the_encoder_is_a_part_with_weights_of_its_own() -> None:
    whole = manifest().model_copy(update=attending(manifest()))
    assert whole.part_graphs("image_encoder") == [*ENCODER]
    assert {graph.name for graph in ENCODER} <= {graph.name for graph in whole.graphs()}
    assert not {graph.name for graph in ENCODER} & {graph.name for graph in whole.loop_graphs()}
    assert [whole.weight_files()[graph.name] for graph in ENCODER] == [WEIGHTS] * 2
    assert manifest().part_graphs("image_encoder") == []


def test_plans_are_for_the_number_of_states_of_an_image() -> None:
    whole = manifest().model_copy(update=attending(manifest()))
    assert shape_profile(whole, "2x2:1f..4f")["image"] == (TOKENS,) * 3
    assert "image" not in shape_profile(manifest(), "2x2:1f..4f")
