"""What all parts of a manifest are made of."""

from pydantic import BaseModel, ConfigDict

from adacache_engines.bundle.tensors import DType, TensorSpec


class Entry(BaseModel):
    """Base of the manifest's parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(Entry):
    """How an engine's outputs compared with its torch stage at export: max |engine - torch| / max(1, rms(torch)).

    Both have the weights as the bundle has them. Torch computes in float32 where none of the graph's inputs and outputs
    is narrower, so that the error of one that is narrower inside is that of its precision; else as the engine does.
    """

    error: float
    tolerance: float
    engine: str


class Graph(Entry):
    """One ONNX file.

    Attributes:
        weights_nbytes: of its weights, in the file that it points to; None = exported before they were counted.
        weight_dtypes: of its weights, each once; empty = it has none, or was exported before they were noted.
        independent_axes: axes along which the work can be cut, each device getting a part of every tensor that has the
            axis, without an exchange: ``patch_frames`` or ``frames``, ``tokens``, ``text``. Along the batch all work is
            independent.
    """

    name: str
    path: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    check: Check | None = None
    weights_nbytes: int | None = None
    weight_dtypes: tuple[DType, ...] = ()
    independent_axes: tuple[str, ...] = ()
