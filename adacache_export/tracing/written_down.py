"""Graphs of stages that are written down in ONNX's textual form, which saves tracing them."""

import onnx.parser
import onnx_ir as ir

from adacache_engines.bundle.tensors import ELEMENT_TYPES, TensorSpec
from adacache_engines.errors import ExportError
from adacache_export.stages import Stage
from adacache_export.tracing.trace import OPSET

IR_VERSION = 11  # the version of ONNX's format that has OPSET


def written_down(stage: Stage) -> ir.Model:
    """Return the graph of a stage whose ``nodes`` are given in ONNX's textual form.

    Raises:
        ExportError: they are no such text.
    """

    def typed(spec: TensorSpec) -> str:
        return f"{ELEMENT_TYPES[spec.dtype].onnx_text}[{', '.join(map(str, spec.axes))}] {spec.name}"

    inputs, outputs = (", ".join(map(typed, specs)) for specs in (stage.inputs, stage.outputs))
    try:
        return ir.from_onnx_text(
            f'<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]>\n'
            f"{stage.name} ({inputs}) => ({outputs}) {{\n{stage.nodes}\n}}"
        )
    except onnx.parser.ParseError as error:
        raise ExportError(f"the nodes of {stage.name} are not written in ONNX's textual form: {error}") from error
