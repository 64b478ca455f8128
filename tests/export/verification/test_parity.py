"""The comparison of a stage with its engine: what it holds in memory, and how it multiplies."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from adacache_engines.bundle.manifest import Graph
from adacache_engines.bundle.tensors import TensorSpec
from adacache_export.stages import Stage
from adacache_export.verification.parity import WideProducts, compare

WIDTH = 300


class LoadedError(Exception):
    """The end of a comparison whose engine is being loaded."""


def test_a_stage_gives_its_weights_back_before_its_engine_is_loaded() -> None:
    spec = TensorSpec(name="hidden", dtype="float32", axes=("batch", WIDTH))
    with torch.device("meta"):
        stage = Stage("linear", "linear", nn.Linear(WIDTH, WIDTH), "", (spec,), (spec,))
    read: list[str] = []

    def weight(key: str) -> torch.Tensor:
        read.append(key)
        return torch.zeros(stage.module.get_parameter(key).shape)

    class Backend:
        def load(self, _graph: Graph) -> Any:
            assert read == ["weight", "bias"]
            assert all(parameter.is_meta for parameter in stage.module.parameters())
            raise LoadedError

    sizes: Sequence[dict[str, int]] = [{"batch": 2}]
    with pytest.raises(LoadedError):
        compare(stage, Graph(name="linear", path="x", inputs=(spec,), outputs=(spec,)), Backend(), weight, sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_products_of_half_precision_are_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(WIDTH, 7).to(dtype), torch.randn(5, WIDTH).to(dtype)
    with WideProducts():
        made = layer(x)
    assert made.dtype == dtype
    assert layer.bias is not None
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    assert (made.double() - exact).abs().max() < torch.finfo(dtype).eps * exact.abs().max()
    with WideProducts():
        wide = layer.float()(x.float())
    torch.testing.assert_close(wide.double(), exact, rtol=0, atol=1e-5)
