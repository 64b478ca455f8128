"""The graphs of a set of stages, traced once a kind, written and verified."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from adacache_engines.bundle.manifest import Graph, Precision
from adacache_engines.contract.engine import Backend
from adacache_export.phases import Progress
from adacache_export.stages import Stage
from adacache_export.tracing.graph_file import write_graph
from adacache_export.tracing.trace import trace
from adacache_export.tracing.written_down import written_down
from adacache_export.verification.parity import check_errors, verified
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
    """Write one ONNX file for each stage beside the weights file, and verify its engine.

    Args:
        stages: stages with modules on the meta device; those with one ``traced_as`` are traced once.
        precision: precision of the stages, which decides how much an engine may differ from its stage.
        weights: file that the graphs point into; its folder receives them.
        locations: place of every weight in that file, each with its dtype.
        read: function that returns a weight by its key, in that dtype.
        sizes: sizes of the dynamic axes that each engine is verified at; the first ones, none of them 1, serve for
            tracing.
        backend: backend that is opened on the folder above that of ``weights``.
        progress: object that is told of both phases.

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
            carried=dict(stage.carried),
        )
        write_graph(path, traced[stage.traced_as], stage, weights, locations)
        graphs[stage.name] = verified(stage, graph, precision, backend, read, sizes)
        step(1)
    check_errors(graphs.values())
    return graphs
