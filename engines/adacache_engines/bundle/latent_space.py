"""The manifest's entries on latents: how they relate to a video, and the graphs between the two.

A VAE cuts a video into chunks of frames and codes them one after another, by one graph or two in a row. A graph that
works on chunks has an axis ``frames``, of latents, or ``pixel_frames``; one that works on single images has an axis
``images`` instead. A VAE that is causal in time may carry features from one chunk to the next, as outputs of a graph
that its next call takes (``Graph.carried``); another codes each chunk by itself. Everything else that is particular to
a VAE, such as the scale and shift of its latents, is in its graphs.
"""

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from adacache_engines.bundle.entries import Entry, Graph
from adacache_engines.bundle.names import Name, Side, Small

IMAGES = "images"
VaePrecision = Literal["fp32", "bf16"]
ResizeRule = Literal["fill", "stretch"]


class FrameRule(Entry):
    """The rule by which frames become latent frames: chunk by chunk, and in a chunk a run of frames for each.

    A chunk is coded by itself, so that frames that are given must begin where a chunk does.

    Attributes:
        chunk_frames: number of frames of a chunk; None = the whole video is one chunk.
        chunk_latents: number of latent frames of a whole chunk; 1 where the whole video is one chunk.
        stretch: number of frames that a latent frame stands for, in a chunk that is not whole.
        first_alone: whether the first frame is a latent frame by itself: ``never``, in videos of an ``odd`` number of
            frames, or ``always``.
        whole: whether all runs of frames are whole: videos of another length are refused.
    """

    chunk_frames: Small | None = 1
    chunk_latents: Small = 1
    stretch: Small = 1
    first_alone: Literal["never", "odd", "always"] = "never"
    whole: bool = False

    def nearest(self, frames: int) -> tuple[int, int]:
        """Return the nearest possible numbers of frames: at most ``frames`` and at least that; both where it is one."""
        if not self.whole:
            return frames, frames
        above = self.latent_frames(frames)
        below = above if self.frames_of(above) == frames else max(above - 1, 1)
        return self.frames_of(below), self.frames_of(above)

    def latent_frames(self, frames: int) -> int:
        """Return the number of latent frames of a video of ``frames``."""
        alone = {"never": 0, "odd": frames % 2, "always": 1}[self.first_alone]
        chunks, rest = self._chunks(frames - alone)
        return alone + chunks * self.chunk_latents + math.ceil(rest / self.stretch)

    def latent_frame_of(self, frame: int) -> int:
        """Return the index of the latent frame that holds a frame; both count from 0."""
        chunk, rest = self._chunks(frame)
        return chunk * self.chunk_latents + math.ceil(rest / self.stretch)

    def frames_of(self, latents: int) -> int:
        """Return the number of frames that the first ``latents`` latent frames of a video stand for."""
        if self.chunk_frames is not None:
            chunks, rest = divmod(latents, self.chunk_latents)
            return chunks * self.chunk_frames + min(rest * self.stretch, self.chunk_frames)
        alone = self.first_alone != "never" and latents > 0
        return alone + (latents - alone) * self.stretch

    def _chunks(self, frames: int) -> tuple[int, int]:
        """Return the number of whole chunks in ``frames``, and the number of frames that remain."""
        return (0, frames) if self.chunk_frames is None else divmod(frames, self.chunk_frames)


class ChunkRule(Entry):
    """The relation between the frames and the latent frames of a VAE's chunks.

    n frames of a chunk are coded as ceil((n + short) / stretch) latent frames, and w latent frames are decoded as
    stretch * w - short frames.

    Attributes:
        frames, latents: numbers of frames and of latent frames of a whole chunk; the last chunk may have fewer.
        stretch: number of frames that a latent frame stands for.
        short: number of frames by which the first latent frame of a chunk stands for fewer.
        shared: number of latent frames that consecutive chunks have in common. A chunk's output for them is dropped,
            because the chunk before already gave it.
        spare: position of decoded frames that are not in the video: the ``first`` ones of each chunk, or the ``last``
            ones of the video.
        first_alone: whether the first frame of a video is a chunk by itself, and a latent frame by itself.
    """

    frames: Small = 1
    latents: Small = 1
    stretch: Small = 1
    short: int = Field(default=0, ge=0)
    shared: int = Field(default=0, ge=0)
    spare: Literal["first", "last"] = "last"
    first_alone: bool = False

    @model_validator(mode="after")
    def _moves_on(self) -> Self:
        if self.short >= self.stretch or self.shared >= self.latents:
            raise ValueError(
                f"short {self.short} and shared {self.shared}: expected less than stretch {self.stretch} and latents "
                f"{self.latents}"
            )
        return self

    def decoded(self, latents: int) -> int:
        """Return the number of frames that a decoder makes from ``latents`` latent frames of a chunk.

        Where the first frame of a video is a chunk by itself, this holds for the chunks that follow.
        """
        return self.stretch * latents - self.short if latents else 0

    def encoded(self, frames: int) -> int:
        """Return the number of latent frames that an encoder makes from ``frames`` frames of a chunk."""
        return -(-(frames + self.short) // self.stretch)


class LatentSpace(Entry):
    """The relation between a video's frames and pixels, its latents, and the transformer's tokens.

    Attributes:
        channels: number of channels of the latent; a prediction's further channels are ignored.
        patch: number of latent frames, rows and columns of a token.
        whole_patches: whether a size that is no multiple of the patch is refused; else it is padded.
        spatial_factor: number of pixel rows of a latent row, and of pixel columns of a latent column.
        frames: rule by which frames become latent frames.
        continued: number of latent frames that a video keeps of the video that it continues.
        decoder: kind of the bundle's VAE; ``pixels`` = the latents are pixels already, -1 to 1; ``none`` = the bundle
            cannot turn latents into pixels.
        decoder_config: configuration of the VAE, by which export recognises it.
        precision: precision of the convolutions and matrix products inside the VAE's graphs.
        decoding: graphs from latents to pixels, one after another, all float32. Each takes the output of the one
            before, the first ``latents`` (1, channels, frames, height, width) or (images, channels, height, width);
            the last gives ``pixels`` (1, 3, pixel_frames, pixel_height, pixel_width) or (images, 3, pixel_height,
            pixel_width), about -1 to 1. Tensors that a graph carries follow these, and may have the VAE's precision;
            their rows and columns are ``height`` and ``width``, or ``height_2`` and ``width_2``, which are twice as
            many, and so on (see ``levels``).
        encoding: graphs from pixels to latents, one after another, all float32. Each gives ``mean`` and ``deviation``
            of a normal distribution, from which the input of the next is sampled, or ``mean`` alone, which is the input
            of the next. Tensors that a graph carries follow these.
        first_decoding, first_encoding: graphs that the first chunk of a video takes, one for each of ``decoding`` and
            ``encoding``; empty = the same graphs. They take nothing from a chunk before.
        chunks: chunks of a video that the graphs take.
        images: number of images that a graph of images gets at once; it changes no value.
        tile: side, in pixels, of the square tiles by which larger frames are coded, unless a run asks for others; None
            = frames are coded whole.
        tiles_chunks: whether a video of several chunks is coded by tiles even where a single tile would hold a frame.
        resize: rule by which a given picture gets the video's size: ``fill``, it is resized with its aspect until it
            fills that, and its middle is taken; or ``stretch``, each side is resized.
    """

    channels: Small
    patch: tuple[Small, Small, Small]
    spatial_factor: Small
    decoder: Name
    frames: FrameRule = FrameRule()
    continued: Small = 5
    whole_patches: bool = False
    decoder_config: dict[str, Any] | None = None
    precision: VaePrecision = "fp32"
    decoding: tuple[Graph, ...] = ()
    encoding: tuple[Graph, ...] = ()
    first_decoding: tuple[Graph, ...] = ()
    first_encoding: tuple[Graph, ...] = ()
    chunks: ChunkRule = ChunkRule()
    images: Small = 1
    tile: Side | None = None
    tiles_chunks: bool = False
    resize: ResizeRule = "fill"

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of rows for each latent row that features between latents and pixels may have, from 2 on."""
        return tuple(rows for rows in range(2, self.spatial_factor + 1) if self.spatial_factor % rows == 0)

    def latent_frames(self, frames: int) -> int:
        """Return the number of latent frames of a video of ``frames``."""
        return self.frames.latent_frames(frames)

    def token_axes(self, frames: int, height: int, width: int) -> dict[str, int]:
        """Return the sizes of ``patch_frames`` and ``tokens`` for a latent size; a part of a patch counts as one."""
        sizes = (frames, height, width)
        grid = [-(-size // patch) for size, patch in zip(sizes, self.patch, strict=True)]
        return {"patch_frames": grid[0], "tokens": grid[1] * grid[2]}

    def image_axes(self, height: int, width: int, images: int = 1) -> dict[str, int]:
        """Return the sizes of the axes of a decoder's graphs for ``images`` images of a latent size."""
        inside = {"height": height, "width": width}
        pixels = {f"pixel_{axis}": size * self.spatial_factor for axis, size in inside.items()}
        features = {f"{axis}_{rows}": size * rows for axis, size in inside.items() for rows in self.levels}
        return {"images": images, **inside, **pixels, **features}

    def chunk_axes(self, latents: int, height: int, width: int, images: int = 1) -> dict[str, int]:
        """Return the sizes of a graph's axes for a chunk of ``latents`` latent frames."""
        time = {"frames": latents, "pixel_frames": self.chunks.decoded(latents)}
        return {**self.image_axes(height, width, images), **time}


def takes_images(graph: Graph) -> bool:
    """Return whether a VAE's graph works on single images; else it works on chunks."""
    return graph.inputs[0].axes[0] == IMAGES
