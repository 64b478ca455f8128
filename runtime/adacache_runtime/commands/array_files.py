"""Arrays that a generation is given in ``.npz`` files: captions, latents, masks and noise."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError
from adacache_runtime.media.arrays import read_arrays
from adacache_runtime.request import Captions

FURTHER = ("mask", "noise", "video_condition", "image_states")


def read_captions(path: Path) -> Captions:
    """Read captions: ``embeddings`` (n, length, width), optional ``mask`` (n, length) and ``negative``.

    Raises:
        InputError: the file cannot be read, or an array is missing or holds no numbers.
    """
    arrays = _arrays(path)
    embeddings = _number(path, arrays, "embeddings")
    mask = _number(path, arrays, "mask", "bfiu") != 0 if "mask" in arrays else np.ones(embeddings.shape[:2], np.bool_)
    return Captions(embeddings, mask, _number(path, arrays, "negative") if "negative" in arrays else None)


def read_latents(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read ``latents`` (n, channels, frames, height, width), and further arrays where the file has them.

    These are the arrays of :data:`FURTHER`, which are fields of a :class:`Request` under these names.

    Raises:
        InputError: the file cannot be read, or an array is missing or holds no numbers.
    """
    arrays = _arrays(path)
    names = ["latents", *(name for name in FURTHER if name in arrays)]
    return {name: _number(path, arrays, name, "bfiu" if name == "mask" else "fiu") for name in names}


def _number(path: Path, arrays: dict[str, NDArray[Any]], name: str, kinds: str = "fiu") -> NDArray[np.float32]:
    """Return an array as float32, in the order of its axes; ``kinds`` are those that numpy calls so."""
    if name not in arrays:
        raise InputError(f"{path} has no array {name}; it has {', '.join(arrays)[:200] or 'none'}")
    if arrays[name].dtype.kind not in kinds:
        raise InputError(f"{path}: {name} is {str(arrays[name].dtype)[:200]}; expected numbers")
    with np.errstate(over="ignore"):  # infinity is refused where it does harm
        return np.ascontiguousarray(arrays[name], np.float32)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    return read_arrays(path, ".npz file of numbers", "write it with numpy.savez")
