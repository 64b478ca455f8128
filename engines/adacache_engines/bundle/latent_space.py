"""The manifest's part on latents: what of a video they stand for, and the graphs between both.

A VAE cuts a video into chunks of frames and codes each by itself, by one graph or two in a row. A graph that works on
chunks has an axis ``frames``, of latents, or ``pixel_frames``; one that works on single images has an axis ``images``
instead. Whatever is particular to a VAE beyond that, such as its latents' scale and shift, is in its graphs.
"""

import math
from typing import Any, Literal

from pydantic import Field

from adacache_engines.bundle.entries import Entry, Graph

IMAGES = "images"
VaePrecision = Literal["fp32", "bf16"]


class FrameRule(Entry):
    """How the frames of a video become latent frames: chunk by chunk; in a chunk, a run of frames to each latent frame.

    A chunk is coded by itself, so that frames that are given begin where a chunk does.

    Attributes:
        chunk_frames: frames of a chunk; None = the whole video is one.
        chunk_latents: latent frames of a whole chunk; 1 where the video is one.
        stretch: frames of a latent frame, in the chunk that is not whole.
        first_alone: whether the first frame is a latent frame by itself: ``never``, in videos of an ``odd`` number of
            frames, or ``always``.
    """

    chunk_frames: int | None = Field(default=1, ge=1)
    chunk_latents: int = Field(default=1, ge=1)
    stretch: int = Field(default=1, ge=1)
    first_alone: Literal["never", "odd", "always"] = "never"

    def latent_frames(self, frames: int) -> int:
        """Return the number of latent frames of a video of ``frames``."""
        alone = {"never": 0, "odd": frames % 2, "always": 1}[self.first_alone]
        chunks, rest = self._chunks(frames - alone)
        return alone + chunks * self.chunk_latents + math.ceil(rest / self.stretch)

    def latent_frame_of(self, frame: int) -> int:
        """Index of the latent frame that holds a frame, both from 0."""
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
        """Return the number of whole chunks in ``frames``, and of frames beyond them."""
        return (0, frames) if self.chunk_frames is None else divmod(frames, self.chunk_frames)


class ChunkRule(Entry):
    """How frames and latent frames belong together: n frames of a chunk are coded as ceil((n + short) / stretch)
    latent frames, and w latent frames are decoded as stretch * w - short frames.

    Attributes:
        frames, latents: of a whole chunk; the last one may have fewer of both.
        stretch: frames of a latent frame,
        short: but the first of a chunk stands for so many fewer.
        shared: latent frames that consecutive chunks have in common. What a chunk gives for them is dropped: the
            chunk before gave it.
        spare: where frames are that a chunk is decoded to beyond those of the video: the ``first`` ones of each
            chunk, or the ``last`` ones of the video.
    """

    frames: int = Field(default=1, ge=1)
    latents: int = Field(default=1, ge=1)
    stretch: int = Field(default=1, ge=1)
    short: int = 0
    shared: int = 0
    spare: Literal["first", "last"] = "last"

    def decoded(self, latents: int) -> int:
        """Frames that a decoder makes of so many latent frames of a chunk."""
        return self.stretch * latents - self.short if latents else 0

    def encoded(self, frames: int) -> int:
        """Latent frames that an encoder makes of so many frames of a chunk."""
        return -(-(frames + self.short) // self.stretch)


class LatentSpace(Entry):
    """From pixels and frames to the latent's axes, and on to tokens.

    Attributes:
        channels: of the latent; a prediction's further channels are ignored.
        patch: latent (frames, rows, columns) of a token.
        whole_patches: a size that is no multiple of the patch is refused; else it is padded.
        spatial_factor: pixels of a latent row or column.
        frames: how frames become latent frames.
        continued: latent frames that a video keeps of the one that it continues.
        decoder: what turns latents into pixels: ``pixels`` where they are pixels already, -1 to 1; ``none`` where the
            bundle has nothing that does; else the kind of its VAE.
        decoder_config: of the VAE, by which export knows it again.
        precision: of the VAE's convolutions and matrix products, inside of its graphs.
        decoding: graphs from latents to pixels, one after another, all float32. Each takes the output of the one
            before, the first ``latents`` (1, channels, frames, height, width) or (images, channels, height, width);
            the last gives ``pixels`` (1, 3, pixel_frames, pixel_height, pixel_width) or (images, 3, pixel_height,
            pixel_width), about -1 to 1.
        encoding: graphs from pixels to latents, likewise; each gives ``mean`` and ``deviation`` of a normal
            distribution, which the next takes a sample of.
        chunks: of the video that the graphs are fed with.
        images: that a graph of images gets at once; their number changes no value.
        tile: pixels, side of the square tiles that larger frames are coded by, unless a run asks for others; None =
            frames are coded whole.
        tiles_chunks: frames of a video of several chunks are coded by these tiles even where one would hold them.
    """

    channels: int
    patch: tuple[int, int, int]
    spatial_factor: int
    decoder: str
    frames: FrameRule = FrameRule()
    continued: int = Field(default=5, ge=1)
    whole_patches: bool = False
    decoder_config: dict[str, Any] | None = None
    precision: VaePrecision = "fp32"
    decoding: tuple[Graph, ...] = ()
    encoding: tuple[Graph, ...] = ()
    chunks: ChunkRule = ChunkRule()
    images: int = Field(default=1, ge=1)
    tile: int | None = None
    tiles_chunks: bool = False

    def latent_frames(self, frames: int) -> int:
        """Return the number of latent frames of a video of ``frames``."""
        return self.frames.latent_frames(frames)

    def token_axes(self, frames: int, height: int, width: int) -> dict[str, int]:
        """Sizes of the axes ``patch_frames`` and ``tokens`` for a latent size; parts of a patch count as one."""
        sizes = (frames, height, width)
        grid = [math.ceil(size / patch) for size, patch in zip(sizes, self.patch, strict=True)]
        return {"patch_frames": grid[0], "tokens": grid[1] * grid[2]}

    def image_axes(self, height: int, width: int, images: int = 1) -> dict[str, int]:
        """Sizes of the axes of a decoder's graphs for images of a latent size."""
        pixels = {"pixel_height": height * self.spatial_factor, "pixel_width": width * self.spatial_factor}
        return {"images": images, "height": height, "width": width, **pixels}

    def chunk_axes(self, latents: int, height: int, width: int, images: int = 1) -> dict[str, int]:
        """Return the sizes of a graph's axes for a chunk of ``latents`` latent frames."""
        time = {"frames": latents, "pixel_frames": self.chunks.decoded(latents)}
        return {**self.image_axes(height, width, images), **time}


def takes_images(graph: Graph) -> bool:
    """Whether a VAE's graph works on single images; else it does on chunks."""
    return graph.inputs[0].axes[0] == IMAGES
