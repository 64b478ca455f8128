"""The ONNX file of a stage, whose weights stay in the one weights file beside it."""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from adacache_export.passes.declared_axes import DeclaredAxes
from adacache_export.passes.external_weights import ExternalWeights
from adacache_export.passes.trace_notes import RemoveTraceNotes
from adacache_export.stages import Stage
from adacache_export.writing.weights_file import Location


def write_graph(path: Path, traced: ir.Model, stage: Stage, weights: Path, locations: Mapping[str, Location]) -> None:
    """Write the graph of a stage with the stage's own weights as external data.

    Args:
        path: file to write.
        traced: graph of the stage's kind, with parameters as inputs; it is not changed.
        stage: stage whose weights the graph gets.
        weights: weights file, in the same folder as ``path``: ONNX forbids external data elsewhere.
        locations: place of every weight in that file, by key.
    """
    model = traced.clone()
    model.graph.name = stage.name
    rewritten = ir.passes.Sequential(
        NameFixPass(),  # tracing may give a value between nodes the name of an output
        RemoveTraceNotes(),
        ExternalWeights(stage.keys(), locations, weights.name, str(path.parent)),
        DeclaredAxes(stage.inputs, stage.outputs),
    )(model)
    ir.save(rewritten.model, path)
