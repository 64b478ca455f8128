"""Packages that the other machine has, and those that the pack carries; the check imports no others there."""

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from adacache_engines.errors import InputError

PYTHON = "3.12"
THERE = (
    *("torch", "cupy-cuda13x", "cuda-bindings", "cuda-core"),
    *("onnx", "onnxruntime", "numpy", "safetensors", "tokenizers"),
    *("rich", "pytest", "hypothesis"),
)
CARRIED = ("pydantic",)  # reads manifests
DOWNLOAD = (
    f"pip download --only-binary=:all: --python-version {PYTHON} --platform manylinux_2_17_x86_64 -d wheels "
    + " ".join(CARRIED)
)


def with_requirements(names: Iterable[str]) -> set[str]:
    """Return normalised names of distributions and of all that they require, as far as they are installed here."""
    found: set[str] = set()
    left = [normalised(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        try:
            lines = requires(name) or ()
        except PackageNotFoundError:  # required on other systems, or only there
            continue
        left += [normalised(re.split(r"[^\w.-]", line)[0]) for line in lines if "extra ==" not in line]
    return found


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def refused() -> list[str]:
    """Return the top-level modules installed here that the other machine does not have with the pack."""
    there = with_requirements((*THERE, *CARRIED))
    return sorted(
        module
        for module, owners in packages_distributions().items()
        if not any(normalised(owner) in there or normalised(owner) == "adacache-export" for owner in owners)
    )


def check_wheels(wheels: Iterable[Path]) -> None:
    """Check that the wheels include all that the pack must carry, for the other machine's Python.

    Raises:
        InputError: one is missing or for another Python; the message has the command that downloads them.
    """
    files = list(wheels)
    given = {normalised(file.name.split("-")[0]) for file in files}
    missing = sorted(with_requirements(CARRIED) - with_requirements(THERE) - given)
    if missing:
        raise InputError(f"the wheels of {', '.join(missing)} are missing; download them with: {DOWNLOAD}")
    own = f"cp{PYTHON.replace('.', '')}"
    for file in files:
        python, abi = (["", "", *file.stem.split("-")])[-3:-1]  # of NAME-VERSION-PYTHON-ABI-PLATFORM
        if own not in python.split(".") and "py3" not in python.split(".") and abi != "abi3":
            raise InputError(f"{file.name} is not for Python {PYTHON}; download wheels with: {DOWNLOAD}")
