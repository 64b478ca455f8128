"""What the rewrites of traced graphs leave, and the graphs that they refuse."""

from pathlib import Path

import onnx_ir as ir
import pytest

from adacache_engines.bundle.tensors import TensorSpec
from adacache_export.passes.declared_axes import DeclaredAxes
from adacache_export.passes.external_weights import ExternalWeights
from adacache_export.passes.trace_notes import RemoveTraceNotes
from adacache_export.writing.weights_file import Location

INPUT = TensorSpec(name="x", dtype="float32", axes=("batch", 4))
OUTPUT = TensorSpec(name="y", dtype="float32", axes=("batch", 4))
LOCATIONS = {"block.weight": Location(shape=(4,), dtype="float32", offset=128, nbytes=16)}


@pytest.fixture
def model() -> ir.Model:
    """Return a graph as tracing gives it: a parameter is an input, and axes have the names of the tracer."""
    return ir.from_onnx_text(
        '<ir_version: 11, opset_import: ["": 23]> traced (float[s0,4] x, float[4] weight) => (float[s0,4] y) '
        "{ y = Mul (x, weight) }"
    )


def weights(keys: dict[str, str], folder: Path = Path()) -> ExternalWeights:
    return ExternalWeights(keys, LOCATIONS, "weights.safetensors", str(folder))


def test_notes_of_the_tracing_are_removed(model: ir.Model) -> None:
    (node,) = model.graph
    node.doc_string, node.metadata_props["stack"], model.metadata_props["made"] = "a", "/home/somebody/file.py", "here"
    RemoveTraceNotes()(model)
    assert not model.metadata_props
    assert not node.metadata_props
    assert not node.doc_string


def test_parameters_become_initializers_in_the_weights_file(model: ir.Model, tmp_path: Path) -> None:
    assert weights({"weight": "block.weight"}, tmp_path)(model).modified
    assert [value.name for value in model.graph.inputs] == ["x"]
    (tensor,) = (value.const_value for value in model.graph.initializers.values())
    assert isinstance(tensor, ir.ExternalTensor)
    assert (tensor.name, tensor.offset, tensor.length, tensor.dtype) == ("block.weight", 128, 16, ir.DataType.FLOAT)
    assert [value.name for node in model.graph for value in node.inputs if value] == ["x", "block.weight"]
    assert not weights({"weight": "block.weight"}, tmp_path)(model).modified


def test_a_parameter_without_weights_is_refused(model: ir.Model) -> None:
    with pytest.raises(ir.passes.PreconditionError, match=r"no weights for the parameters \['weight'\]"):
        weights({"weight": "another.weight"})(model)
    assert [value.name for value in model.graph.inputs] == ["x", "weight"]


def test_axes_get_their_declared_names(model: ir.Model) -> None:
    weights({"weight": "block.weight"})(model)
    DeclaredAxes((INPUT,), (OUTPUT,))(model)
    assert [str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)] == ["[batch,4]"] * 2


def test_undeclared_inputs_and_outputs_are_refused(model: ir.Model) -> None:
    with pytest.raises(ir.passes.PreconditionError, match=r"undeclared inputs \['weight'\]"):
        DeclaredAxes((INPUT,), (OUTPUT,))(model)
    with pytest.raises(ir.passes.PreconditionError, match=r"the outputs \['y'\]"):
        weights({"weight": "block.weight"})(model)
        DeclaredAxes((INPUT,), (OUTPUT.model_copy(update={"name": "z"}),))(model)
