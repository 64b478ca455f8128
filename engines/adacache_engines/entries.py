"""What all parts of a manifest are made of."""

from pydantic import BaseModel, ConfigDict

from adacache_engines.tensors import TensorSpec


class Entry(BaseModel):
    """Base of the manifest's parts."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(Entry):
    """How an engine's outputs compared with its torch stage at export: max |engine - torch| / max(1, rms(torch))."""

    error: float
    tolerance: float
    engine: str


class Graph(Entry):
    """One ONNX file.

    Attributes:
        weights_nbytes: of its weights, in the file that it points to; None = exported before they were counted.
    """

    name: str
    path: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    check: Check | None = None
    weights_nbytes: int | None = None
