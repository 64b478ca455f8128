"""The base of all parts of a manifest, and the entry of one graph."""

from pydantic import BaseModel, ConfigDict

from adacache_engines.bundle.tensors import DType, TensorSpec


class Entry(BaseModel):
    """Base of the manifest's parts: frozen, and without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(Entry):
    """The comparison of an engine's outputs with its torch stage's at export.

    Both use the bundle's weights. Torch computes in float32 where none of the graph's inputs and outputs is narrower,
    so that the error of a graph that is narrower inside is that of its precision; else it computes as the engine does.

    Attributes:
        error: max |engine - torch| / max(1, rms(torch)).
        tolerance: largest error that was accepted.
        engine: name of the backend that ran the engine.
    """

    error: float
    tolerance: float
    engine: str


class Graph(Entry):
    """The entry of one ONNX file.

    Attributes:
        name: name of the graph, unique in the bundle.
        path: path of the file in the bundle.
        inputs, outputs: tensors in the order in which the graph has them.
        check: comparison with the graph's torch stage; None = there is none.
        weights_nbytes: bytes of the graph's weights in the weights file; None = they were not counted.
        weight_dtypes: dtypes of the graph's weights, each once; empty = the graph has none, or they were not noted.
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
