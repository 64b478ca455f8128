"""From a torch stage to an ONNX file whose weights stay in the bundle's one weights file.

A stage is traced with its parameters as graph inputs, once per kind; for each stage of that kind these inputs then
become initializers that point into the weights file.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from adacache_engines.bundle.tensors import INPUT_RANGES, DType, TensorSpec
from adacache_engines.errors import ExportError
from adacache_export.stages import Stage
from adacache_export.writing.weights_file import TORCH_DTYPES, Location

OPSET = 23  # has Attention and RMSNormalization, which ONNX Runtime and TensorRT map to fused kernels
IR_VERSION = 11  # that goes with it
TEXT_DTYPES: Mapping[DType, str] = {
    "float32": "float",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "int64": "int64",
    "bool": "bool",
}
IR_DTYPES: Mapping[DType, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}


class _Functional(nn.Module):
    """Calls a module with parameters that are arguments."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.__dict__["module"] = module  # not registered: its own parameters must not be traced
        self.names = names

    def forward(self, inputs: tuple[Tensor, ...], parameters: tuple[Tensor, ...]) -> object:
        named = dict(zip(self.names, parameters, strict=True))
        return torch.func.functional_call(self.__dict__["module"], named, inputs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Torch's exporter reports to its own developers on stdout, in warnings and in the log."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


def example(spec: TensorSpec, sizes: Mapping[str, int], generator: torch.Generator | None = None) -> Tensor:
    """A random tensor for an input: normal numbers, conditions within their range, a mask that hides the end of every
    second row, or indices.
    """
    shape = spec.shape(sizes)
    if spec.dtype == "bool":
        mask = torch.ones(shape, dtype=torch.bool)
        mask[::2, (shape[-1] + 1) // 2 :] = False
        return mask
    if spec.dtype == "int64":
        return torch.arange(shape[-1]).expand(shape).contiguous()
    if spec.name in INPUT_RANGES:
        low, high = INPUT_RANGES[spec.name]
        return torch.empty(shape, dtype=TORCH_DTYPES[spec.dtype]).uniform_(low, high, generator=generator)
    return torch.randn(shape, generator=generator).to(TORCH_DTYPES[spec.dtype])


def trace(stage: Stage, sizes: Mapping[str, int]) -> ir.Model:
    """The stage's graph, with inputs for its tensors and then for its parameters.

    ``sizes`` are those of the dynamic axes while tracing: any that are not 1, which tracing takes for a constant.

    Raises:
        ExportError: torch could not trace it.
    """
    parameters = dict(stage.module.named_parameters())
    inputs = tuple(example(spec, sizes) for spec in stage.inputs)
    dynamic = tuple(
        {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(spec.axes) if isinstance(axis, str)}
        for spec in stage.inputs
    )
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Functional(stage.module, list(parameters)).eval(),
                (inputs, tuple(torch.empty(value.shape, dtype=value.dtype) for value in parameters.values())),
                dynamic_shapes=(dynamic, tuple({} for _ in parameters)),
                input_names=[*(spec.name for spec in stage.inputs), *parameters],
                output_names=[spec.name for spec in stage.outputs],
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"stage {stage.name} could not be traced: {error}") from error
    assert program is not None
    return program.model


def written_down(stage: Stage) -> ir.Model:
    """The graph of a stage with ``nodes``."""

    def typed(spec: TensorSpec) -> str:
        return f"{TEXT_DTYPES[spec.dtype]}[{', '.join(map(str, spec.axes))}] {spec.name}"

    inputs, outputs = (", ".join(map(typed, specs)) for specs in (stage.inputs, stage.outputs))
    return ir.from_onnx_text(
        f'<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]>\n'
        f"{stage.name} ({inputs}) => ({outputs}) {{\n{stage.nodes}\n}}"
    )


def write_graph(path: Path, traced: ir.Model, stage: Stage, weights: Path, locations: Mapping[str, Location]) -> None:
    """Writes ``traced``, the graph of the stage's kind, with the stage's own weights as external data.

    ``weights`` must lie in the folder of ``path``: ONNX forbids external data elsewhere.
    """
    model = traced.clone()
    graph = model.graph
    graph.name = stage.name
    model.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
    specs = {spec.name: spec for spec in (*stage.inputs, *stage.outputs)}
    keys = stage.keys()
    for value in list(graph.inputs):
        if value.name in keys:
            assert value.name is not None
            location = locations[keys[value.name]]
            graph.inputs.remove(value)
            value.name = keys[value.name]
            value.const_value = ir.ExternalTensor(
                weights.name,
                location.offset,
                location.nbytes,
                IR_DTYPES[location.dtype],
                name=value.name,
                shape=ir.Shape(location.shape),
                base_dir=str(path.parent),
            )
            graph.register_initializer(value)
    for value in (*graph.inputs, *graph.outputs):
        assert value.name is not None
        value.shape = ir.Shape(specs[value.name].axes)
    ir.save(model, path)
