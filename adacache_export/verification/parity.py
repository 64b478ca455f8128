"""The comparison of a stage's engine with its torch stage on random inputs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from adacache_engines.bundle.manifest import TOLERANCES, Check, Graph, Precision
from adacache_engines.bundle.tensors import NUMPY_DTYPES, DType, TensorSpec
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import ExportError
from adacache_export.stages import Stage
from adacache_export.verification.examples import example
from adacache_export.writing.weights_file import TORCH_DTYPES

HALVES: tuple[DType, ...] = ("float16", "bfloat16")
HALF_DTYPES = tuple(TORCH_DTYPES[name] for name in HALVES)


def verified(
    stage: Stage,
    graph: Graph,
    precision: Precision,
    backend: Backend,
    read: Callable[[str], Tensor],
    sizes: Sequence[Mapping[str, int]],
) -> Graph:
    """Return the graph with the result of comparing its engine with its torch stage."""
    error = compare(stage, graph, backend, read, sizes)
    tolerance = TOLERANCES[precision] if stage.tolerance is None else stage.tolerance
    check = Check(error=error, tolerance=tolerance, engine=backend.name)
    return graph.model_copy(update={"check": check})


def check_errors(graphs: Iterable[Graph]) -> None:
    """Check that every engine is as close to its torch stage as its precision allows.

    Raises:
        ExportError: an engine is further from its torch stage; lists all of them.
    """
    checks = [(graph.name, graph.check) for graph in graphs if graph.check]
    wrong = [(name, check) for name, check in checks if not check.error <= check.tolerance]
    if wrong:
        lines = [f"  {name}: {check.error:.2e}, at most {check.tolerance:.0e} expected" for name, check in wrong]
        raise ExportError(
            "these engines disagree with their torch stages:\n"
            + "\n".join(lines)
            + "\nTry fp32 (--precision, --text-precision, --vae-precision); if it persists, the installed onnxruntime "
            "or torch is at fault."
        )


def compare(
    stage: Stage, graph: Graph, backend: Backend, read: Callable[[str], Tensor], shapes: Sequence[Mapping[str, int]]
) -> float:
    """Run a torch stage and its engine on the same seeded inputs, and return how far they are apart.

    The torch stage runs in float32 where all its inputs and outputs are, as
    :class:`adacache_engines.bundle.entries.Check` says.

    Args:
        stage: stage with a module on the meta device.
        graph: graph that was made from the stage.
        backend: backend that the engine is loaded by.
        read: function that returns a weight by its key, in the dtype that it has in the graph.
        shapes: sizes of the dynamic axes to compare at, one mapping for each comparison.

    Returns:
        The largest max |engine - torch| / max(1, rms(torch)) over all outputs and shapes; NaN where either gave one.
    """
    wide = not any(spec.dtype in HALVES for spec in (*stage.inputs, *stage.outputs))
    weights = {name: read(key).float() if wide else read(key) for name, key in stage.keys().items()}
    generator = torch.Generator().manual_seed(0)
    inputs = [tuple(example(spec, sizes, generator) for spec in stage.inputs) for sizes in shapes]
    # one after the other: a stage's weights are in memory once, whoever has converted or packed them for itself
    expected = _results(stage, weights, inputs)
    del weights
    engine = backend.load(graph)
    errors = []
    for given, wanted in zip(inputs, expected, strict=True):
        buffers = {}
        for spec, value in zip(stage.inputs, given, strict=True):
            buffers[spec.name] = backend.device.empty(tuple(value.shape), NUMPY_DTYPES[spec.dtype])
            buffers[spec.name].write(_to_numpy(value, spec))
        for spec, value in zip(stage.outputs, wanted, strict=True):
            buffers[spec.name] = backend.device.empty(tuple(value.shape), NUMPY_DTYPES[spec.dtype])
        engine.bind(buffers)()
        for spec, value in zip(stage.outputs, wanted, strict=True):
            reference = value.double()
            got = torch.from_numpy(buffers[spec.name].read().astype(np.float64))
            scale = max(1.0, float(reference.square().mean().sqrt()))
            errors.append(float((got - reference).abs().max()) / scale)
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _results(
    stage: Stage, weights: Mapping[str, Tensor], inputs: Sequence[tuple[Tensor, ...]]
) -> list[tuple[Tensor, ...]]:
    """Return what a torch stage makes of each of several sets of inputs; its module is on the meta device again then.

    The module holds ``weights`` meanwhile, and no copy of them.
    """
    stage.module.load_state_dict(weights, assign=True)
    try:
        with torch.no_grad(), WideProducts():
            results = [stage.module(*given) for given in inputs]
    finally:
        stage.module.to("meta")
    return [result if isinstance(result, tuple) else (result,) for result in results]


class WideProducts(TorchFunctionMode):
    """Linear layers of half precision that compute in float32 and round what they return.

    That is what a device does that adds up in float32, and in bfloat16 four times as fast as torch's own product on a
    processor without bfloat16.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is F.linear and args[0].dtype in HALF_DTYPES:
            return F.linear(*(value if value is None else value.float() for value in args)).to(args[0].dtype)
        return function(*args, **(kwargs or {}))


def _to_numpy(value: Tensor, spec: TensorSpec) -> np.ndarray:
    if spec.dtype == "bfloat16":
        return value.contiguous().view(torch.int16).numpy().view(NUMPY_DTYPES["bfloat16"])
    assert value.dtype == TORCH_DTYPES[spec.dtype]
    return value.contiguous().numpy()
