"""The manifest's entries on conditioning: the pictures that a video can be made from, and how they enter the model.

Attributes:
    X_MASK: name of the input (batch, patch_frames) bool of a model that may keep frames; False = a frame that is given
        and kept.
    VIDEO_CONDITION: name of the input (1, stretch + channels, frames, height, width) float32 of a model that takes an
        encoded video beside its latents. The first channels are a mask, as many as a latent frame has frames (see
        ``FrameRule.stretch``), where 1 marks a frame that is given; then come the video's latents.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from adacache_engines.bundle.stages import StageEntry

X_MASK = "x_mask"
VIDEO_CONDITION = "video_condition"

Conditioning = Literal["none", "not-exported", "kept-frames", "encoded-video"]
INPUTS: Mapping[str, Conditioning] = {X_MASK: "kept-frames", VIDEO_CONDITION: "encoded-video"}


def conditioning_of(stages: Iterable[StageEntry]) -> Conditioning:
    """Return the conditioning that the inputs of a model's stages show."""
    names = {spec.name for stage in stages for spec in stage.graph.inputs}
    return next((kind for name, kind in INPUTS.items() if name in names), "none")
