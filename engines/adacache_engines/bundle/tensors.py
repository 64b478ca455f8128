"""Element types, and the name, dtype and named axes of a tensor that enters or leaves a stage."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from adacache_engines.bundle.names import AnySize, Name

DType = Literal["float32", "float16", "bfloat16", "int64", "bool"]

MOST_AXES = 16

Precision = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class ElementType:
    """The names that libraries have for a type of a tensor's elements.

    torch and onnx_ir are not imported here; their objects are found by name: ``getattr(torch, name)``.

    Attributes:
        numpy: dtype of numpy or of ``ml_dtypes``.
        onnx: number in ``onnx.TensorProto``.
        onnx_text: name in ONNX's textual form.
        tensorrt: name in ``tensorrt.DataType``.
        safetensors: name in the header of a safetensors file.
        precision: short name of the precision that weights of this type have; None = they never have this type.
    """

    numpy: np.dtype
    onnx: int
    onnx_text: str
    tensorrt: str
    safetensors: str
    precision: Precision | None = None


ELEMENT_TYPES: Mapping[DType, ElementType] = {
    "float32": ElementType(np.dtype(np.float32), 1, "float", "FLOAT", "F32", "fp32"),
    "float16": ElementType(np.dtype(np.float16), 10, "float16", "HALF", "F16", "fp16"),
    "bfloat16": ElementType(np.dtype(ml_dtypes.bfloat16), 16, "bfloat16", "BF16", "BF16", "bf16"),
    "int64": ElementType(np.dtype(np.int64), 7, "int64", "INT64", "I64"),
    "bool": ElementType(np.dtype(np.bool_), 9, "bool", "BOOL", "BOOL"),
}
NUMPY_DTYPES: Mapping[DType, np.dtype] = {name: kind.numpy for name, kind in ELEMENT_TYPES.items()}
# dtypes of weights by the short names of precisions
DTYPES: Mapping[Precision, DType] = {kind.precision: name for name, kind in ELEMENT_TYPES.items() if kind.precision}

# Ranges of random inputs whose size matters: rounding grows with an angle, a size in pixels is not negative, and tables
# of rotations hold cosines and sines.
INPUT_RANGES: Mapping[str, tuple[float, float]] = {
    "timestep": (0.0, 1000.0),
    "fps": (1.0, 120.0),
    "height": (64.0, 1920.0),
    "width": (64.0, 1920.0),
    "rotary_frames": (-1.0, 1.0),
    "rotary_tokens": (-1.0, 1.0),
}


class TensorSpec(BaseModel):
    """Name, dtype and axes of a tensor that enters or leaves a stage.

    Attributes:
        name: the tensor's name in the stage's graph.
        dtype: key of :data:`ELEMENT_TYPES`.
        axes: for each axis its fixed size, or the name of a dynamic axis; one name means one size throughout a call.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    dtype: DType
    axes: tuple[AnySize | Name, ...] = Field(max_length=MOST_AXES)

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape for given sizes of the dynamic axes.

        Raises:
            KeyError: a dynamic axis has no size in ``sizes``.
        """
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.axes)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join(str(axis) for axis in self.axes)})"


def mismatches(specs: Iterable[TensorSpec], given: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> list[str]:
    """Return a phrase for each problem of tensors, given as name -> (shape, dtype), that should match ``specs``."""
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
