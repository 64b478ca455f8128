"""The table of element types agrees with each library whose names it has."""

from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load, save

from adacache_engines.bundle.tensors import DTYPES, ELEMENT_TYPES, DType, Precision


def test_every_name_has_a_row() -> None:
    assert set(ELEMENT_TYPES) == set(get_args(DType))
    assert set(DTYPES) == set(get_args(Precision))


@pytest.mark.parametrize("name", ELEMENT_TYPES)
def test_a_row(name: DType) -> None:
    kind = ELEMENT_TYPES[name]
    assert kind.numpy == onnx.helper.tensor_dtype_to_np_dtype(kind.onnx)
    assert (
        kind.numpy.itemsize == getattr(torch, name).itemsize == np.dtype(name if name != "bfloat16" else "u2").itemsize
    )
    assert ir.DataType(kind.onnx).name == onnx.TensorProto.DataType.Name(kind.onnx)
    assert onnx.parser.parse_graph(f"g ({kind.onnx_text}[1] x) => () {{ }}").input[0].type.tensor_type.elem_type == (
        kind.onnx
    )
    saved = save({"x": torch.zeros(2, dtype=getattr(torch, name))})
    assert f'"dtype":"{kind.safetensors}"'.encode() in saved
    assert load(saved)["x"].dtype == getattr(torch, name)


@pytest.mark.parametrize("name", ELEMENT_TYPES)
def test_tensorrt_has_the_name(name: DType) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    if not hasattr(trt, "DataType"):
        pytest.skip("only the type stubs of TensorRT-RTX are installed")
    kind = getattr(trt.DataType, ELEMENT_TYPES[name].tensorrt)
    assert kind.itemsize == ELEMENT_TYPES[name].numpy.itemsize
