"""Tables of positions, which a stage of their own makes once a generation, and no block makes anew."""

from collections.abc import Iterable
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adacache_engines.bundle.manifest import ExportGranularity
from adacache_engines.bundle.tensors import TensorSpec
from adacache_export.families.registry import FAMILIES, Family, maker
from adacache_export.stages import Stage
from adacache_export.tracing.trace import trace
from adacache_export.verification.examples import example
from adacache_runtime.pipeline import Pipeline
from tests.helpers.made_up_family import family as made_up
from tests.helpers.tiny_models.configurations import LATTE, SIZES, SMALL

MODELS: dict[str, tuple[Family, Any]] = {
    **{name: (family, SMALL[name]) for name, family in FAMILIES.items()},
    made_up.NAME: (made_up, LATTE),
}
CASES = [
    (name, granularity, conditioned)
    for name, (family, _) in MODELS.items()
    for granularity in ("block", "module")
    for conditioned in ((False, True) if family.conditioned_stages else (False,))
]
MADE_IN_TORCH = {"arange", "sin", "cos"}
MADE_IN_ONNX = {"Range", "Sin", "Cos"}


def stages_of(name: str, granularity: ExportGranularity, conditioned: bool, device: str = "meta") -> list[Stage]:
    family, config = MODELS[name]
    with torch.device(device):
        return maker(family, conditioned)(config, (), "float32", granularity)


class Operators(TorchDispatchMode):
    """Notes the names of the operators that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operators(stages: Iterable[Stage], device: str) -> set[str]:
    with torch.no_grad(), torch.device(device), Operators() as seen:
        for stage in stages:
            stage.module(*(example(spec, SIZES).to(device) for spec in stage.inputs))
    return seen.names


@pytest.mark.parametrize(("name", "granularity", "conditioned"), CASES)
def test_tables_are_made_once_a_generation(name: str, granularity: ExportGranularity, conditioned: bool) -> None:
    stages = stages_of(name, granularity, conditioned)
    (positions,) = (stage for stage in stages if stage.role == "positions")
    assert positions.per_generation
    for table in positions.outputs:
        axis, *rest = table.axes
        assert (axis, table.dtype) in (("tokens", "float32"), ("patch_frames", "float32"))
        assert all(isinstance(size, int) for size in rest)
        takers = {stage.role for stage in stages if table in stage.inputs}
        assert takers
        assert takers <= {"embed", "block"}
    assert "arange" in operators([positions], "cpu")  # so the check of the blocks would find it
    assert not operators((stage for stage in stages if stage.block), "meta") & MADE_IN_TORCH


def test_no_graph_of_a_block_makes_a_table(pipeline: Pipeline) -> None:
    stages = pipeline.bundle.manifest.stages
    made = {
        stage.graph.name: {node.op_type for node in onnx.load(pipeline.bundle.path(stage.graph.path)).graph.node}
        for stage in stages
    }
    assert made["positions"] >= MADE_IN_ONNX
    assert {name: ops & MADE_IN_ONNX for name, ops in made.items() if "." in name and ops & MADE_IN_ONNX} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_no_graph_of_any_family_makes_a_table_in_a_block(name: str) -> None:
    blocks = {stage.traced_as: stage for stage in stages_of(name, "block", conditioned=False) if stage.block}
    for stage in blocks.values():
        model: ir.Model = trace(stage, SIZES)
        assert not {node.op_type for node in model.graph} & MADE_IN_ONNX, stage.name


# a stage's work can be cut along its independent axes, and its tables are cut with it


def place_of(spec: TensorSpec, axis: str) -> int | None:
    """Return which axis of a tensor is cut where the tokens are cut along ``axis``; None = the tensor stays whole."""
    names = {axis, "frames"} if axis == "patch_frames" else {axis}
    return next((place for place, name in enumerate(spec.axes) if name in names), None)


def part(tensor: torch.Tensor, place: int | None, first: bool) -> torch.Tensor:
    return tensor if place is None else tensor.tensor_split([1], place)[0 if first else 1]


@pytest.mark.parametrize(("name", "granularity", "conditioned"), CASES)
def test_parts_along_independent_axes_are_those_of_the_whole(
    name: str, granularity: ExportGranularity, conditioned: bool
) -> None:
    torch.manual_seed(0)
    cut: set[str] = set()
    for stage in stages_of(name, granularity, conditioned, "cpu"):
        for parameter in stage.module.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        inputs = [(spec, example(spec, SIZES)) for spec in stage.inputs]
        for axis in stage.independent_axes:
            halves = ([part(value, place_of(spec, axis), first) for spec, value in inputs] for first in (True, False))
            with torch.no_grad():
                whole, *parts = (stage.module(*given) for given in ([value for _, value in inputs], *halves))
            results = [result if isinstance(result, tuple) else (result,) for result in (whole, *parts)]
            for spec, expected, *some in zip(stage.outputs, *results, strict=True):
                place = place_of(spec, axis)
                for made in some if place is None else [torch.cat(some, place)]:
                    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
            cut |= {spec.name for spec in stage.inputs if place_of(spec, axis) is not None}
    assert "hidden" in cut
