"""Measures of how near a video is to another one: PSNR, SSIM, the relative error of latents, LPIPS."""

import re
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError, require
from adacache_engines.onnxruntime.backend import share_threads
from adacache_runtime.media.video import Frames

SSIM_WINDOW = 7  # pixels, the side; that of scikit-image
SMALLEST_SIDE = "smallest_side"  # pixels: what an LPIPS model may say of itself
SIDE = re.compile("[0-9]{1,5}")
CHUNK = 8  # frames that go through LPIPS at once


def similarity(full: Frames, frames: Frames) -> tuple[float, float]:
    """Return PSNR in dB, infinite for the same pixels, and the mean SSIM over frames.

    Args:
        full: the reference video, (frames, height, width, 3).
        frames: the other video, of the same shape.

    Raises:
        InputError: the frames are smaller than the window of SSIM, or not as many or as large.
        MissingDependencyError: scikit-image is not installed.
    """
    metrics: Any = require("skimage.metrics", "compare")
    if full.shape != frames.shape:
        raise InputError(f"videos of {full.shape} and {frames.shape} cannot be compared; expected the same shape")
    check_ssim(*full.shape[1:3])
    if np.array_equal(full, frames):
        return float("inf"), 1.0
    ssim = [
        metrics.structural_similarity(one, other, channel_axis=-1, win_size=SSIM_WINDOW)
        for one, other in zip(full, frames, strict=True)
    ]
    return float(metrics.peak_signal_noise_ratio(full, frames)), float(fmean(ssim))


def check_ssim(height: int, width: int) -> None:
    """Raise what :func:`similarity` would raise for frames of this size, before there are any."""
    if min(height, width) < SSIM_WINDOW:
        raise InputError(
            f"frames of {width}x{height} pixels are too small for SSIM; choose at least {SSIM_WINDOW} each way"
        )


def relative_l2(full: NDArray[np.float32], latents: NDArray[np.float32]) -> float:
    """Return ||latents - full|| / ||full|| of arrays of one shape."""
    exact = full.astype(np.float64)
    return float(np.linalg.norm(latents - exact) / np.linalg.norm(exact))


class Lpips:
    """LPIPS from an ONNX file.

    The model has two inputs (images, 3, height, width), float32 in [-1, 1], and one output, a number for each image.
    ``tools/lpips_onnx.py`` makes such a file.
    """

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            InputError: the file cannot be read, is no ONNX model, or has other inputs or outputs.
            MissingDependencyError: ONNX Runtime is not installed.
        """
        runtime: Any = require("onnxruntime", "cpu")
        if not path.is_file():
            raise InputError(f"LPIPS model {path} cannot be read: there is no such file")
        self._path = path
        options = runtime.SessionOptions()
        options.use_per_session_threads = not share_threads(runtime, 0)  # one pool with the engines, if they are there
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base but this
            raise InputError(f"LPIPS model {path} is not a model that ONNX Runtime opens: {_line(error)}") from error
        inputs = self._session.get_inputs()
        shapes = [tensor.shape for tensor in inputs]
        fits = all(len(shape) == 4 and shape[1] == 3 for shape in shapes)
        if len(inputs) != 2 or not fits or len(self._session.get_outputs()) != 1:
            raise InputError(
                f"LPIPS model {path} takes {shapes}; expected two inputs (images, 3, height, width) and one output: "
                "make one with tools/lpips_onnx.py"
            )
        self._names = [tensor.name for tensor in inputs]
        smallest = self._session.get_modelmeta().custom_metadata_map.get(SMALLEST_SIDE, "1")
        if not SIDE.fullmatch(smallest):
            raise InputError(
                f"LPIPS model {path} has {SMALLEST_SIDE} {smallest[:20]!r}; expected a number of pixels: make one with "
                "tools/lpips_onnx.py"
            )
        self._smallest = int(smallest)

    def check(self, height: int, width: int) -> None:
        """Raise what a measurement would raise for frames of this size, before there are any."""
        if min(height, width) < self._smallest:
            raise InputError(
                f"LPIPS model {self._path} takes frames of at least {self._smallest} pixels each way, not "
                f"{width}x{height}; choose a larger --size, or leave out --lpips"
            )
        blank = np.zeros((2, height, width, 3), np.uint8)
        self(blank, blank)

    def __call__(self, full: Frames, frames: Frames) -> float:
        """Return the mean over frames; 0 means that they look the same.

        Raises:
            InputError: the model does not run at this size, or does not return one number for each image.
        """
        values: list[float] = []
        for start in range(0, len(full), CHUNK):
            pair = [_signed(video[start : start + CHUNK]) for video in (full, frames)]
            try:
                (found,) = self._session.run(None, dict(zip(self._names, pair, strict=True)))
            except Exception as error:  # as above
                height, width = full.shape[1:3]
                raise InputError(
                    f"LPIPS model {self._path} does not run on frames of {width}x{height} pixels; choose a larger "
                    f"--size, or leave out --lpips: {_line(error)}"
                ) from error
            if found.size != len(pair[0]) or not np.isfinite(found).all():
                raise InputError(
                    f"LPIPS model {self._path} gives {found.shape} for {len(pair[0])} images; expected one finite "
                    "number an image"
                )
            values += found.reshape(-1).tolist()
        return fmean(values)


def _signed(frames: Frames) -> NDArray[np.float32]:
    """Return images as (images, 3, height, width) in [-1, 1]."""
    return np.ascontiguousarray(frames.transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - np.float32(1)


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
