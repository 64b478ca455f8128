"""The size of a model and a video to measure with, and a request of that size, without torch."""

from dataclasses import dataclass

import numpy as np

from adacache_runtime.request import Captions, Request

CHANNELS = 4  # of the latent
PATCH = 2  # latent rows and columns of a token
PIXELS = 8  # of a latent row or column
CLIP_FRAMES = 51  # a condition only: latents are given, and the schedule is not defined for every number


@dataclass(frozen=True)
class Size:
    """The size of a model and of a generation.

    Attributes:
        depth: number of blocks of each kind.
        width: width of the hidden state.
        heads: number of attention heads.
        caption_width: width of the text encoder's states.
        frames: number of latent frames.
        tokens: number of tokens of a frame, a square number.
        text: number of tokens of the prompt.
    """

    depth: int = 4
    width: int = 1152
    heads: int = 16
    caption_width: int = 64
    frames: int = 4
    tokens: int = 400
    text: int = 20

    def hidden_nbytes(self, branches: int) -> int:
        """Bytes of one float32 hidden state of one sample with its guidance branches."""
        return branches * self.frames * self.tokens * self.width * 4

    def request(self) -> Request:
        """Return a request of one prompt with random noise and random text; the caller may replace the rest."""
        rng = np.random.default_rng(0)
        side = PATCH * round(self.tokens**0.5)
        states = rng.standard_normal((1, self.text, self.caption_width), np.float32)
        return Request(
            height=side * PIXELS,
            width=side * PIXELS,
            frames=CLIP_FRAMES,
            captions=Captions(states, np.ones((1, self.text), np.bool_)),
            latents=rng.standard_normal((1, CHANNELS, self.frames, side, side), np.float32),
        )
