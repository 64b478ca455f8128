"""A pass that gives a graph's inputs and outputs the axes that its stage declares."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from adacache_engines.bundle.tensors import TensorSpec


class DeclaredAxes(ir.passes.InPlacePass):
    """Replace the shapes that tracing inferred by the declared ones, so that equal axes have equal names everywhere.

    Needs a graph whose inputs and outputs are exactly the declared ones, by name; tracing may have dropped an input
    that no node uses. Leaves their declared shapes.

    Args:
        inputs: declared inputs of the stage.
        outputs: declared outputs of the stage.
    """

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        super().__init__()
        self._inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in inputs}
        self._outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in outputs}

    def requires(self, model: ir.Model) -> None:
        """Check that the graph has the declared inputs and outputs and no others."""
        inputs = [value.name for value in model.graph.inputs if value.name not in self._inputs]
        outputs = [value.name for value in model.graph.outputs]
        if inputs or outputs != [*self._outputs]:
            raise ir.passes.PreconditionError(
                f"the graph has the undeclared inputs {inputs} and the outputs {outputs}, of which {[*self._outputs]} "
                "are declared"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set the shapes of one model."""
        for values, specs in ((model.graph.inputs, self._inputs), (model.graph.outputs, self._outputs)):
            for value in values:
                value.shape = ir.Shape(specs[str(value.name)].axes)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Check that every axis of an input or output has its declared name or size."""
        for values, specs in ((model.graph.inputs, self._inputs), (model.graph.outputs, self._outputs)):
            for value in values:
                if value.shape is None or value.shape != specs[str(value.name)].axes:
                    raise ir.passes.PostconditionError(f"{value.name} has the shape {value.shape}")
