"""Arrays that a generation is given in ``.npz`` files: captions, latents, masks and noise."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError
from adacache_runtime.request import Captions


def read_captions(path: Path) -> Captions:
    """Read captions: ``embeddings`` (n, length, width), optional ``mask`` (n, length) and ``negative``.

    Raises:
        InputError: the file cannot be read, or an array is missing or holds no numbers.
    """
    arrays = _arrays(path)
    embeddings = _number(path, arrays, "embeddings")
    mask = arrays["mask"] != 0 if "mask" in arrays else np.ones(embeddings.shape[:2], np.bool_)
    return Captions(embeddings, mask, _number(path, arrays, "negative") if "negative" in arrays else None)


def read_latents(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read ``latents`` (n, channels, frames, height, width), and further arrays where the file has them.

    These are ``mask``, ``noise`` and ``video_condition``, which are fields of a :class:`Request` under these names.

    Raises:
        InputError: the file cannot be read, or an array is missing or holds no numbers.
    """
    arrays = _arrays(path)
    if "mask" in arrays and arrays["mask"].dtype == np.bool_:
        arrays["mask"] = arrays["mask"].astype(np.float32)
    names = ["latents", *(name for name in ("mask", "noise", "video_condition") if name in arrays)]
    return {name: _number(path, arrays, name) for name in names}


def _number(path: Path, arrays: dict[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    if name not in arrays:
        raise InputError(f"{path} has no array {name}; it has {', '.join(arrays) or 'none'}")
    if arrays[name].dtype.kind not in "fiu":
        raise InputError(f"{path}: {name} is {arrays[name].dtype}; expected numbers")
    return arrays[name].astype(np.float32)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file.items())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        raise InputError(f"{path} is not a .npz file of numbers ({error}); write it with numpy.savez") from error
