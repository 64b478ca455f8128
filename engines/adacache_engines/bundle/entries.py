"""The base class of all entries of a manifest, and the entry of one graph."""

from typing import Annotated

from pydantic import AllowInfNan, BaseModel, ConfigDict, Field

from adacache_engines.bundle.names import BundlePath, Name, Nbytes
from adacache_engines.bundle.tensors import DType, TensorSpec


class Entry(BaseModel):
    """Base class of a manifest's entries, which are frozen and refuse unknown fields, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Check(Entry):
    """The comparison, at export, of an engine's outputs with those of its torch stage.

    Both use the bundle's weights. Where all inputs and outputs of the graph are float32, torch computes in float32, so
    that the error of a graph that computes in less precision inside is the error of that precision; elsewhere torch
    computes in the engine's precision.

    Attributes:
        error: max |engine - torch| / max(1, rms(torch)); in a bundle at most ``tolerance``, and infinite or NaN only
            until export refuses the engine for it.
        tolerance: largest error that was accepted.
        engine: name of the backend that ran the engine.
    """

    error: Annotated[float, AllowInfNan(True)]
    tolerance: float
    engine: Name


class Graph(Entry):
    """The manifest's entry for one ONNX file.

    Attributes:
        name: name of the graph, unique in the bundle.
        path: path of the file in the bundle.
        inputs, outputs: the graph's tensors, in its own order.
        check: comparison with the graph's torch stage; None = there is none.
        weights_nbytes: bytes of the graph's weights in the weights file; None = they were not counted.
        weight_dtypes: dtypes of the graph's weights, each once; empty = the graph has none, or they were not noted.
        independent_axes: axes along which the work can be divided among devices without an exchange, each device
            getting a part of every tensor that has the axis: ``patch_frames`` or ``frames``, ``tokens``, ``text``.
            Along the batch all work is independent.
        carried: outputs that the call for the next chunk of a video takes: name of the output -> name of the input.
    """

    name: Name
    path: BundlePath
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    check: Check | None = None
    weights_nbytes: Nbytes | None = None
    weight_dtypes: tuple[DType, ...] = ()
    independent_axes: tuple[Name, ...] = ()
    carried: dict[Name, Name] = Field(default_factory=dict)
