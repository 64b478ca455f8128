"""Read files of arrays of unknown origin: no code is run, and no more memory is taken than the limit allows."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.errors import InputError

MAX_NBYTES = 2**32  # of all arrays of a file together


def read_arrays(path: Path, what: str, advice: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a ``.npz`` file by name.

    Args:
        path: the file.
        what: how messages call such a file.
        advice: what to do where the file is none.

    Raises:
        InputError: the file cannot be read, is no such file, holds Python objects, or is too large once unpacked.
    """
    try:
        with path.open("rb") as file:
            with zipfile.ZipFile(file) as archive:  # which gives no more of a member than it announces here
                nbytes = sum(member.file_size for member in archive.infolist())
            if nbytes > MAX_NBYTES:
                raise InputError(f"{path} has arrays of {nbytes} bytes; expected at most {MAX_NBYTES}")
            file.seek(0)
            with np.load(file, allow_pickle=False) as members:
                arrays = dict(members.items())
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no {what} ({reason or type(error).__name__}); {advice}") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # numpy gives other files as they are
        raise InputError(f"{path} is no {what} (it holds a file that is no array); {advice}")
    return arrays
