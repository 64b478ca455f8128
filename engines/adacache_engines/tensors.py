"""What a tensor at a stage's border is: its name, dtype and named axes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

DType = Literal["float32", "float16", "bfloat16", "int64", "bool"]


class TensorSpec(BaseModel):
    """Name, dtype and axes of a stage's input or output.

    Attributes:
        name: the tensor's name in the stage's graph.
        dtype: numpy's name of the element type (``bfloat16`` is the one of ``ml_dtypes``).
        axes: per axis its fixed size, or the name of a dynamic axis; a name means the same size throughout a call.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: DType
    axes: tuple[int | str, ...]
