"""Types of the texts and numbers in a manifest: what a name, a path, a hash and a size may be."""

import itertools
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

LONGEST_NAME, LONGEST_PATH = 200, 500  # characters


def _inside(path: str) -> str:
    """Check that a path is that of a file in the bundle, written in the one way there is."""
    parts = path.split("/")
    if ".." in parts or PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor:
        raise ValueError(f"{path} lies outside the bundle; expected a path in it, such as onnx/embed.onnx")
    if "" in parts or "." in parts or "\\" in path:
        raise ValueError(f"{path} is no path as bundles write it; expected one such as onnx/embed.onnx")
    return path


def _upward(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if any(before > after for before, after in itertools.pairwise(sizes)):
        raise ValueError(f"{', '.join(map(str, sizes))} go down; expected the smallest size first")
    return sizes


Name = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME)]
BundlePath = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_PATH), AfterValidator(_inside)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# names of folders are shown and become parts of paths
FolderName = Annotated[str, StringConstraints(max_length=LONGEST_NAME, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
Side = Annotated[int, Field(ge=1, le=1 << 16)]  # pixels
Frames = Annotated[int, Field(ge=1, le=1 << 16)]
Rate = Annotated[float, Field(gt=0, le=1000)]  # frames per second
Length = Annotated[int, Field(ge=1, le=1 << 16)]  # tokens of a text, or numbers of a token
Size = Annotated[int, Field(ge=1, le=1 << 31)]  # of an axis
AnySize = Annotated[int, Field(ge=0, le=1 << 31)]  # of an axis of a tensor that may not be there
Small = Annotated[int, Field(ge=1, le=1 << 12)]  # of a patch, a chunk, a factor
Guidance = Annotated[float, Field(ge=0, le=100)]
Nbytes = Annotated[int, Field(ge=0, le=1 << 50)]
Span = Annotated[tuple[Size, Size], AfterValidator(_upward)]  # smallest and largest
UsualSpan = Annotated[tuple[Size, Size, Size], AfterValidator(_upward)]  # smallest, usual and largest
