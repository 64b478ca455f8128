"""A Wan with random weights, of any size, and a request that such a model takes."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adacache_engines.errors import require
from adacache_runtime.request import Captions, Request

CHANNELS = 16  # of the latent
PATCH = 2  # latent rows and columns of a token
PIXELS = 8  # of a latent row or column
PIXEL_FRAMES = 4  # that a latent frame stands for, after the first
BRANCHES = 2  # guidance: the negative prompt, and the prompt
GUIDANCE = 5.0
GAIN = 0.5  # standard deviation of a matrix, times the square root of its inputs


@dataclass(frozen=True)
class WanSize:
    """The size of a model and of a generation.

    Attributes:
        depth: number of blocks.
        width: width of the hidden state.
        heads: number of attention heads.
        inner: inner width of the MLPs.
        caption_width: width of the text encoder's states.
        frames: number of latent frames.
        rows, columns: number of rows and columns of tokens in a frame.
        text: number of tokens of the prompt.
    """

    depth: int = 4
    width: int = 1536
    heads: int = 12
    inner: int = 8960
    caption_width: int = 4096
    frames: int = 3
    rows: int = 10
    columns: int = 16
    text: int = 512

    @property
    def tokens(self) -> int:
        """Number of tokens of all frames."""
        return self.frames * self.rows * self.columns

    @property
    def hidden_nbytes(self) -> int:
        """Bytes of a float32 hidden state with both guidance branches."""
        return BRANCHES * self.tokens * self.width * 4

    def config(self) -> dict[str, Any]:
        """Return the configuration of the model for diffusers."""
        return {
            "num_attention_heads": self.heads,
            "attention_head_dim": self.width // self.heads,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "text_dim": self.caption_width,
            "ffn_dim": self.inner,
            "num_layers": self.depth,
        }

    def request(self) -> Request:
        """Return a guided request with random noise and random text; the caller may replace the rest."""
        rng = np.random.default_rng(0)
        height, width = (PATCH * side for side in (self.rows, self.columns))
        positive, negative = rng.standard_normal((2, 1, self.text, self.caption_width), np.float32)
        return Request(
            height=height * PIXELS,
            width=width * PIXELS,
            frames=1 + PIXEL_FRAMES * (self.frames - 1),
            guidance=GUIDANCE,
            captions=Captions(positive, np.ones((1, self.text), np.bool_), negative),
            latents=rng.standard_normal((1, CHANNELS, self.frames, height, width), np.float32),
        )


def random_model(size: WanSize) -> Any:
    """Return diffusers' transformer with random float32 weights, the same in each run.

    Matrices keep the scale of their inputs, so that hidden states stay finite through all blocks.
    """
    diffusers: Any = require("diffusers", "export")  # here: it takes seconds to import
    made = diffusers.WanTransformer3DModel(**size.config()).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, GAIN * parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.fill_(float("norm" in name and name.endswith("weight")))
    return made


def twin(model: Any) -> Any:
    """Return a second module with the same weights, in the same memory, whose hooks and state are its own."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def text_of(request: Request) -> NDArray[np.float32]:
    """Return the text's states of both guidance branches (2, length, width): the negative prompt's first."""
    assert request.captions is not None
    assert request.captions.negative is not None
    return np.concatenate([request.captions.negative, request.captions.embeddings])
