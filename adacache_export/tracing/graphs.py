"""Traces, writes and verifies the graphs of a set of stages."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from adacache_engines.bundle.manifest import TOLERANCES, Check, Graph, Precision
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import ExportError
from adacache_export.phases import Progress
from adacache_export.stages import Stage
from adacache_export.tracing.trace import trace, write_graph, written_down
from adacache_export.verification.parity import compare
from adacache_export.writing.weights_file import TORCH_DTYPES, Location

Sizes = Mapping[str, int]


def export_graphs(
    stages: Sequence[Stage],
    precision: Precision,
    weights: Path,
    locations: Mapping[str, Location],
    read: Callable[[str], Tensor],
    sizes: Sequence[Sizes],
    backend: Backend,
    progress: Progress,
) -> dict[str, Graph]:
    """Makes one ONNX file a stage beside the weights file; stages that share ``traced_as`` are traced, or written
    down, once.

    Args:
        stages: with modules on the meta device.
        precision: theirs, which says how far an engine may be from its stage.
        weights: the file that the graphs point into; its folder receives them.
        locations: of the weights in that file, each with its dtype.
        read: a weight of the checkpoint by its key, in that dtype.
        sizes: of the dynamic axes, to verify each engine at; the first ones, without any 1, serve for tracing.
        backend: opened on the folder above that of ``weights``.
        progress: told of both phases.

    Raises:
        ExportError: a stage cannot be traced, or engines disagree with their torch stages; lists all of them.
    """
    different = {stage.traced_as: stage for stage in stages}
    step = progress.phase("tracing", len(different))
    traced: dict[str, ir.Model] = {}
    for name, stage in different.items():
        for weight, key in stage.keys().items():
            parameter = stage.module.get_parameter(weight)
            parameter.data = parameter.to(TORCH_DTYPES[locations[key].dtype])
        traced[name] = trace(stage, sizes[0]) if stage.nodes is None else written_down(stage)
        step(1)
    step = progress.phase("verifying", len(stages))
    graphs: dict[str, Graph] = {}
    for stage in stages:
        path = weights.with_name(f"{stage.name}.onnx")
        graph = Graph(
            name=stage.name,
            path=f"{path.parent.name}/{path.name}",
            inputs=stage.inputs,
            outputs=stage.outputs,
            weights_nbytes=sum(locations[key].nbytes for key in stage.keys().values()),
            weight_dtypes=tuple(sorted({locations[key].dtype for key in stage.keys().values()})),
            independent_axes=stage.independent_axes,
        )
        write_graph(path, traced[stage.traced_as], stage, weights, locations)
        graphs[stage.name] = verified(stage, graph, precision, backend, read, sizes)
        step(1)
    check_errors(graphs.values())
    return graphs


def verified(
    stage: Stage,
    graph: Graph,
    precision: Precision,
    backend: Backend,
    read: Callable[[str], Tensor],
    sizes: Sequence[Sizes],
) -> Graph:
    """The graph with what comparing its engine with its torch stage showed."""
    error = compare(stage, graph, backend, read, sizes)
    tolerance = TOLERANCES[precision] if stage.tolerance is None else stage.tolerance
    check = Check(error=error, tolerance=tolerance, engine=backend.name)
    return graph.model_copy(update={"check": check})


def check_errors(graphs: Iterable[Graph]) -> None:
    """
    Raises:
        ExportError: an engine is further from its torch stage than its precision explains.
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
