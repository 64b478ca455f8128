"""A Polygraphy runner of this project's own engines, for tensors that ``OnnxrtRunner`` cannot feed.

numpy has no bfloat16, and tensors in a GPU's memory would be copied to and fro at every call. This one binds an
engine to buffers as the runtime does, and times the call alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.contract.device import Buffer, Call, Device
from adacache_engines.contract.engine import Engine
from adacache_engines.errors import require
from adacache_tune.profiling.subjects import fed_dtype, narrow

NAME = "BoundRunner"
Arrays = Mapping[str, NDArray[np.generic]]


def bind(engine: Engine, device: Device, sizes: Mapping[str, int]) -> tuple[dict[str, Buffer], Call]:
    """Return new buffers for all tensors of an engine, and the call that is bound to them."""
    specs = (*engine.graph.inputs, *engine.graph.outputs)
    buffers: dict[str, Buffer] = {
        spec.name: device.empty(spec.shape(sizes), NUMPY_DTYPES[spec.dtype]) for spec in specs
    }
    return buffers, engine.bind(buffers)


def write(buffers: Mapping[str, Buffer], feed: Arrays) -> None:
    """Fill buffers with arrays in the dtypes that Polygraphy takes."""
    for name, array in feed.items():
        buffers[name].write(array.astype(buffers[name].dtype))


def bound_runner(graph: Graph, load: Callable[[Graph], Engine], device: Device, sizes: Mapping[str, int]) -> Any:
    """Return a Polygraphy runner (``BaseRunner``) of the engine that ``load`` returns; bfloat16 is float32 outside."""
    base: Any = require("polygraphy.backend.base", "profile")
    common, types = require("polygraphy.common", "profile"), require("polygraphy.datatype", "profile").DataType

    class BoundRunner(base.BaseRunner):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(name=NAME)

        def activate_impl(self) -> None:
            self._buffers, self._call = bind(load(graph), device, sizes)

        def get_input_metadata_impl(self) -> Any:
            metadata = common.TensorMetadata()
            for spec in graph.inputs:
                metadata.add(spec.name, dtype=types.from_dtype(fed_dtype(spec)), shape=spec.shape(sizes))
            return metadata

        def infer_impl(self, feed_dict: Arrays) -> dict[str, NDArray[np.generic]]:
            write(self._buffers, feed_dict)
            start = device.mark()
            self._call()
            self.inference_time = device.milliseconds(start, device.mark()) / 1e3  # s
            return {spec.name: narrow(self._buffers[spec.name].read()) for spec in graph.outputs}

        def deactivate_impl(self) -> None:
            del self._buffers, self._call

    return BoundRunner()
