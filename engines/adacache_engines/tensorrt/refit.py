"""Make the plan of one block from that of another by replacing its weights, which TensorRT alone can do.

A plan that is built to be refitted may lack weights: TensorRT 11.3 drops the bias of some products, computes without it
and does not list it ("Refitting an Engine" in its documentation). So a plan is used, and made into others, only where
the library lists every weight of the graph.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adacache_engines.bundle.tensors import ELEMENT_TYPES, DType
from adacache_engines.errors import EngineError, require
from adacache_engines.tensorrt.library import InstalledLibrary

if TYPE_CHECKING:
    import tensorrt as trt

DTYPES: Mapping[int, DType] = {kind.onnx: name for name, kind in ELEMENT_TYPES.items()}


def kind_of(path: Path) -> str:
    """Return a digest that is the same for graphs that differ only in the names and places of their weights.

    Raises:
        MissingDependencyError: onnx is not installed.
    """
    model = _load(path)
    names = {weight.name: f"weight {index}" for index, weight in enumerate(_weights(model))}
    model.graph.name = ""
    del model.graph.value_info[:]  # names the weights once more
    for weight in _weights(model):
        weight.name = names[weight.name]
        del weight.external_data[:]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def fixed_weights(library: InstalledLibrary, plan: bytes | memoryview, path: Path) -> list[str]:
    """Return the weights of a graph that its plan cannot change, and perhaps does not have; all, if it was built so.

    Args:
        library: the installed library that built the plan.
        plan: plan of the graph.
        path: ONNX file of the graph.

    Raises:
        EngineError: the library cannot open the plan.
    """
    _engine, refitter = _opened(library, plan, path)
    return _unlisted(refitter, path)


def refit(library: InstalledLibrary, plan: bytes, base: Path, other: Path) -> memoryview:
    """Return the plan of ``other``, made from that of ``base``.

    Args:
        library: the installed library that built the plan.
        plan: plan of ``base``, built to be refitted.
        base, other: ONNX files of one kind; their weights lie beside them.

    Raises:
        EngineError: the library cannot open the plan, or a weight cannot be replaced.
    """
    api = library.api
    engine, refitter = _opened(library, plan, base)
    fixed = _unlisted(refitter, base)
    if fixed or refitter is None:
        raise EngineError(f"the plan of {base} cannot change {', '.join(fixed)}; build without --refit")
    held = []  # until they are taken over
    for old, new in zip(_weights(_load(base)), _weights(_load(other)), strict=True):
        content = _content(other, new)
        held.append(content)
        dtype = DTYPES[new.data_type]
        count = content.nbytes // ELEMENT_TYPES[dtype].numpy.itemsize
        values = api.Weights(library.data_type(dtype), content.ctypes.data, count)
        if not refitter.set_named_weights(old.name, values):
            raise EngineError(f"{library.name} does not take {new.name} for {old.name}: {library.complaints()}")
    missing = refitter.get_missing_weights()
    if missing or not refitter.refit_cuda_engine():
        raise EngineError(
            f"{library.name} cannot put the weights of {other} into the plan of {base} "
            f"(missing: {', '.join(missing) or 'none'}): {library.complaints()}"
        )
    return memoryview(engine.serialize())


def _opened(
    library: InstalledLibrary, plan: bytes | memoryview, path: Path
) -> tuple["trt.ICudaEngine", "trt.Refitter | None"]:
    """Return the engine of a plan, and what changes its weights; None = it was not built for that."""
    runtime: trt.Runtime = library.api.Runtime(library.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{library.name} {library.version} cannot open the plan of {path}: {library.complaints()}")
    return engine, library.api.Refitter(engine, library.logger) if engine.refittable else None


def _unlisted(refitter: "trt.Refitter | None", path: Path) -> list[str]:
    known = set() if refitter is None else set(refitter.get_all_weights())
    return [weight.name for weight in _weights(_load(path)) if weight.name not in known]


def _load(path: Path) -> Any:
    return require("onnx", "trt").load(str(path), load_external_data=False)


def _weights(model: Any) -> Iterator[Any]:
    """Return the initializers that lie in the weights file, in the graph's order; the others are constants."""
    return (value for value in model.graph.initializer if value.external_data)


def _content(path: Path, weight: Any) -> np.ndarray:
    """Return the bytes of a weight, mapped from the file."""
    place = {entry.key: entry.value for entry in weight.external_data}
    file, offset, nbytes = path.parent / place["location"], int(place["offset"]), int(place["length"])
    return np.memmap(file, np.uint8, mode="r", offset=offset, shape=(nbytes,))
