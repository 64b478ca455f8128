"""Types of the texts and numbers in a manifest: what a name, a path, a hash and a size may be."""

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


Name = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_NAME)]
BundlePath = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_PATH), AfterValidator(_inside)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Nbytes = Annotated[int, Field(ge=0, le=1 << 50)]
