"""The fake model as one that starts from an image and attends to states of it, with an image encoder of two graphs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import IMAGE, IMAGE_STATES, ImageRule, Manifest, StageEntry
from adacache_engines.contract.fake import Function
from tests.helpers.model.fake_model import WEIGHTS, WIDTH, graph, run_block, spec, starting_from_image

SIDE, TOKENS = 4, 3
Named = dict[str, NDArray[Any]]

STATES = spec("hidden", 1, TOKENS, WIDTH)
ENCODER = (
    graph("image_encoder.embed", (spec("pixels", 1, 3, SIDE, SIDE),), (STATES,)),
    graph("image_encoder.00", (STATES,), (STATES.model_copy(update={"name": "hidden_out"}),)),
)
RULE = ImageRule(tokens=TOKENS, width=WIDTH, side=SIDE, shorter=SIDE + 1)
WITH_ENCODER = RULE.model_copy(update={"encoder_stages": ENCODER})


def attending(plain: Manifest, rule: ImageRule = WITH_ENCODER) -> dict[str, Any]:
    """Return the changes of a manifest whose model attends to states of the image from which a video starts.

    The states are projected once a generation, then prepared for one of the blocks alone.
    """
    projected = spec("image", 1, IMAGE, WIDTH)
    changes = starting_from_image(plain)
    first = next(stage for stage in plain.stages if stage.block)

    def change(entry: StageEntry) -> StageEntry:
        if entry is not first:
            return entry
        given = (*entry.graph.inputs, spec("image_values", 1, IMAGE, WIDTH))
        return entry.model_copy(update={"graph": graph(entry.graph.name, given, entry.graph.outputs)})

    of_image = (
        StageEntry(
            graph=graph("image", (spec(IMAGE_STATES, 1, IMAGE, WIDTH),), (projected,)),
            role="image",
            per_generation=True,
        ),
        StageEntry(
            graph=graph("first.image", (projected,), (spec("image_values", 1, IMAGE, WIDTH),)),
            role="image",
            per_generation=True,
            kind=first.kind,
            index=first.index,
        ),
    )
    weights = {"image_encoder": WEIGHTS} if rule.encoder_stages else {}
    stages = (*of_image, *map(change, changes["stages"]))
    return {**changes, "stages": stages, "image": rule, "part_weights": weights}


def _first_block(given: Named) -> Named:
    made = run_block("spatial.00", given)
    change = given["image_values"].mean((0, 1))
    return {"hidden_out": made["hidden_out"] + change, "attn": made["attn"] + change}


def _embed(given: Named) -> Named:
    colours = given["pixels"].reshape(1, 3, -1)
    return {"hidden": np.concatenate([colours, -colours], -1)[:, :TOKENS, :WIDTH]}


ENGINES: dict[str, Function] = {
    "image_encoder.embed": _embed,
    "image_encoder.00": lambda given: {"hidden_out": given["hidden"] * 2},
    "image": lambda given: {"image": given[IMAGE_STATES] / 2},
    "first.image": lambda given: {"image_values": given["image"] + 1},
    "spatial.00": _first_block,
}
