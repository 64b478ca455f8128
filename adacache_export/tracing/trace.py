"""Tracing of a torch stage, with its parameters as inputs so that one graph serves all stages of a kind."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping

import onnx_ir as ir
import torch
from torch import Tensor, nn

from adacache_engines.errors import ExportError
from adacache_export.stages import Stage
from adacache_export.verification.examples import example

OPSET = 23  # has Attention and RMSNormalization, which ONNX Runtime and TensorRT map to fused kernels


class _Functional(nn.Module):
    """A module that is called with its parameters as arguments."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.__dict__["module"] = module  # not registered: its own parameters must not be traced
        self.names = names

    def forward(self, inputs: tuple[Tensor, ...], parameters: tuple[Tensor, ...]) -> object:
        named = dict(zip(self.names, parameters, strict=True))
        return torch.func.functional_call(self.__dict__["module"], named, inputs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's exporter, which reports to its own developers on stdout, in warnings and in the log."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


def trace(stage: Stage, sizes: Mapping[str, int]) -> ir.Model:
    """Return the graph of a stage, with inputs for its tensors and then for its parameters.

    Args:
        stage: stage with a module on the meta device.
        sizes: sizes of the dynamic axes while tracing; none may be 1, which tracing takes for a constant.

    Raises:
        ExportError: torch cannot trace the stage.
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
