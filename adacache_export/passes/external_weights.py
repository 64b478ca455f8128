"""A pass that turns a graph's parameters into initializers which point into the bundle's weights file."""

from collections.abc import Mapping

import onnx_ir as ir

from adacache_engines.bundle.tensors import ELEMENT_TYPES
from adacache_export.writing.weights_file import Location


class ExternalWeights(ir.passes.InPlacePass):
    """Replace inputs for parameters by initializers whose data lie in a weights file beside the graph.

    Needs an input for each parameter that the weights file has; those that tracing found to be unused may be missing.
    Leaves a graph whose inputs are the stage's own.

    Args:
        keys: name of a parameter in the graph -> key of its weight in the file.
        locations: place of every weight in the file, by key.
        file: name of the weights file in the graph's folder, which is the only place that ONNX allows.
        folder: path of that folder.
    """

    def __init__(self, keys: Mapping[str, str], locations: Mapping[str, Location], file: str, folder: str) -> None:
        super().__init__()
        self._keys, self._locations, self._file, self._folder = keys, locations, file, folder

    def requires(self, model: ir.Model) -> None:
        """Check that the weights file has every parameter of the graph."""
        lacking = [
            value.name for value in self._parameters(model) if self._keys[str(value.name)] not in self._locations
        ]
        if lacking:
            raise ir.passes.PreconditionError(f"{self._file} has no weights for the parameters {lacking[:12]}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the parameters of one model."""
        parameters = self._parameters(model)
        for value in parameters:
            key = self._keys[str(value.name)]
            location = self._locations[key]
            model.graph.inputs.remove(value)
            value.name = key
            value.const_value = ir.ExternalTensor(
                self._file,
                location.offset,
                location.nbytes,
                ir.DataType(ELEMENT_TYPES[location.dtype].onnx),
                name=key,
                shape=ir.Shape(location.shape),
                base_dir=self._folder,
            )
            model.graph.register_initializer(value)
        return ir.passes.PassResult(model, modified=bool(parameters))

    def ensures(self, model: ir.Model) -> None:
        """Check that no parameter is an input any more."""
        left = [value.name for value in self._parameters(model)]
        if left:
            raise ir.passes.PostconditionError(f"parameters {left[:12]} are still inputs of the graph")

    def _parameters(self, model: ir.Model) -> list[ir.Value]:
        return [value for value in model.graph.inputs if value.name in self._keys]
