"""A finished video: its frames, its latents, and what happened while it was made."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError
from adacache_runtime.media.frames import Frames
from adacache_runtime.trace import Trace
from adacache_runtime.vae.decode import WITHOUT_DECODER

if TYPE_CHECKING:
    from PIL import Image


class Video:
    """One video, or an image: a video of one frame.

    Attributes:
        latents: (channels, latent frames, latent height, latent width) float32.
        trace: what happened in each call; that of the whole batch where several videos were made at once.
        fps: frames per second.
        width, height: pixels.
    """

    def __init__(
        self,
        frames: Frames | None,
        latents: NDArray[np.float32],
        trace: Trace,
        fps: float,
        width: int,
        height: int,
    ) -> None:
        """Keep what was made; ``frames`` is None where the bundle has no decoder."""
        self._frames = frames
        self.latents, self.trace, self.fps, self.width, self.height = latents, trace, fps, width, height

    @property
    def frames(self) -> Frames:
        """The frames, (frames, height, width, 3) uint8 RGB.

        Raises:
            InputError: the bundle has no decoder, so there are only latents.
        """
        if self._frames is None:
            raise InputError(f"this bundle has no decoder, so the video has latents and no frames; {WITHOUT_DECODER}")
        return self._frames

    def pil(self) -> "list[Image.Image]":
        """Return a Pillow image of each frame.

        Raises:
            InputError: the bundle has no decoder.
        """
        from PIL import Image  # only here, so that who makes no pictures needs no library for them

        return [Image.fromarray(frame) for frame in self.frames]

    def save(self, path: str | os.PathLike[str], zoom: int = 1) -> None:
        """Write the video to a file, whole or not at all.

        Args:
            path: a name that ends in ``.mp4``, in ``.png`` for a single frame, or in ``.npz`` for the array ``frames``.
            zoom: side of the square that a pixel becomes.

        Raises:
            InputError: the bundle has no decoder, the ending is unknown, or the file cannot be written.
            OutOfRangeError: the frames per second or the zoomed size are more than the format has.
        """
        from adacache_runtime.media.video import write_video  # only here, because it loads the video library

        write_video(Path(path), self.frames, self.fps, zoom)

    def __repr__(self) -> str:
        frames = "no frames" if self._frames is None else f"{len(self._frames)} frames"
        calls = f"{len(self.trace.computed())} of {len(self.trace.calls)} calls computed"
        return f"Video({self.width}x{self.height}, {frames}, {self.fps:g} fps, {calls})"
