"""The manifest's entry on images that a model attends to, and the encoder that makes states of them.

Attributes:
    IMAGE_STATES: name of the input (1, image, width) float32 of a model that attends to states of an image. All samples
        and guidance branches share them.
    IMAGE: name of the axis of these states.
"""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from adacache_engines.bundle.entries import Entry, Graph
from adacache_engines.bundle.names import Length, Side
from adacache_engines.bundle.stages import StageEntry
from adacache_engines.bundle.tensors import TensorSpec

IMAGE_STATES = "image_states"
IMAGE = "image"


class ImageRule(Entry):
    """The rule by which an image becomes states (tokens, width) that a model attends to.

    The shorter side is resized to ``shorter`` pixels with Pillow's bicubic filter, the longer one with it, and the
    middle of ``side`` x ``side`` pixels is taken. Then ``scale`` multiplies values of 0 to 255, ``mean`` is subtracted,
    and ``deviation`` divides.

    Attributes:
        tokens: number of states of an image.
        width: width of a state.
        side: side in pixels of the square that the encoder takes.
        shorter: pixels to which the shorter side of an image is resized.
        scale: factor of the values of pixels.
        mean, deviation: mean and standard deviation of red, green and blue, by which pixels are normalised.
        encoder_config: configuration of the image encoder.
        encoder_stages: the image encoder, a chain of graphs from ``pixels`` (1, 3, side, side) float32 to states
            (1, tokens, width) float32: ``hidden_out``, or ``hidden`` of a single graph, is ``hidden`` of the next;
            empty = the bundle has none.
    """

    tokens: Length
    width: Length
    side: Side = 224
    shorter: Side = 224
    scale: float = Field(default=1 / 255, gt=0)
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    deviation: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    encoder_config: dict[str, Any] | None = None
    encoder_stages: tuple[Graph, ...] = ()

    @model_validator(mode="after")
    def _encoder(self) -> Self:
        if self.shorter < self.side:
            raise ValueError(f"images are resized to {self.shorter} pixels, and {self.side} are taken of them")
        if not all(deviation > 0 for deviation in self.deviation):
            raise ValueError(f"deviation is {self.deviation}; expected positive numbers")
        if self.encoder_stages:
            first, last = self.encoder_stages[0].inputs, self.encoder_stages[-1].outputs
            if [spec.axes for spec in first] != [(1, 3, self.side, self.side)]:
                raise ValueError(f"the image encoder takes {_named(first)}; expected images of side {self.side}")
            if [spec.axes for spec in last] != [(1, self.tokens, self.width)]:
                raise ValueError(
                    f"the image encoder gives {_named(last)}; expected {self.tokens} states {self.width} wide"
                )
        return self


def check_image_rule(rule: ImageRule | None, stages: Sequence[StageEntry]) -> None:
    """Check that a manifest has a rule for images if stages take states of an image, and only then.

    Raises:
        ValueError: it does not, or the states have another width.
    """
    widths = {spec.axes[-1] for stage in stages for spec in stage.graph.inputs if spec.name == IMAGE_STATES}
    expected = set() if rule is None else {rule.width}
    if widths != expected:
        raise ValueError(
            f"stages take states of an image of widths {sorted(map(str, widths))}, and the rule for images has"
            f" {sorted(map(str, expected))}"
        )


def _named(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, specs))
