"""What a tensor at a stage's border is: its name, dtype and named axes."""

from collections.abc import Iterable, Mapping
from typing import Literal

import ml_dtypes
import numpy as np
from pydantic import BaseModel, ConfigDict

DType = Literal["float32", "float16", "bfloat16", "int64", "bool"]

NUMPY_DTYPES: Mapping[DType, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
}

# what to try inputs with whose size matters: rounding grows with an angle, and a size in pixels is not negative
INPUT_RANGES: Mapping[str, tuple[float, float]] = {
    "timestep": (0.0, 1000.0),
    "fps": (1.0, 120.0),
    "height": (64.0, 1920.0),
    "width": (64.0, 1920.0),
}


class TensorSpec(BaseModel):
    """Name, dtype and axes of a stage's input or output.

    Attributes:
        name: the tensor's name in the stage's graph.
        dtype: numpy's name of the element type (``bfloat16`` is the one of ``ml_dtypes``).
        axes: per axis its fixed size, or the name of a dynamic axis; one name means one size throughout a call.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: DType
    axes: tuple[int | str, ...]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for given sizes of the dynamic axes.

        Raises:
            KeyError: a dynamic axis has no size in ``sizes``.
        """
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.axes)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join(str(axis) for axis in self.axes)})"


def mismatches(specs: Iterable[TensorSpec], given: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> list[str]:
    """What keeps tensors, given as name -> (shape, dtype), from fitting ``specs``: one sentence a problem."""
    problems: list[str] = []
    sizes: dict[str, tuple[int, str]] = {}
    specs = list(specs)
    for spec in specs:
        if spec.name not in given:
            problems.append(f"{spec.name} is missing (expected {spec})")
            continue
        shape, dtype = given[spec.name]
        if dtype != NUMPY_DTYPES[spec.dtype]:
            problems.append(f"{spec.name} is {dtype}, expected {spec.dtype}")
        if len(shape) != len(spec.axes):
            problems.append(f"{spec.name} has shape {shape}, expected {spec}")
            continue
        for axis, size in zip(spec.axes, shape, strict=True):
            if isinstance(axis, int):
                expected, where = axis, "the model"
            else:
                expected, where = sizes.setdefault(axis, (size, spec.name))
            if size != expected:
                problems.append(f"{spec.name} has shape {shape}: {axis} should be {expected}, as in {where}")
    unknown = sorted(set(given) - {spec.name for spec in specs})
    if unknown:
        problems.append(f"no tensor is called {', '.join(unknown)}")
    return problems
