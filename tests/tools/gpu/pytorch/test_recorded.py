"""PyTorch on the project's buffers: what can be seen of it without a GPU."""

import ml_dtypes
import numpy as np
import pytest

from adacache_engines.contract.device import HostBuffer, HostDevice
from adacache_engines.cuda.device import CudaDevice
from tests.helpers.gpu.fake_cuda import FakeCuda

torch = pytest.importorskip("torch")

from tools.gpu.pytorch.recorded import Constants, CudaArray, tensor_on  # noqa: E402 - it imports torch


@pytest.mark.parametrize("dtype", ["bool", "int64", "float16", "float32", ml_dtypes.bfloat16])
def test_a_tensor_shares_a_buffers_memory(dtype: str) -> None:
    buffer = HostDevice().empty((3, 2), np.dtype(dtype))
    tensor = tensor_on(buffer)
    buffer.write(np.ones((3, 2), dtype))
    assert (tensor == 1).all()
    tensor[1:] = 0
    np.testing.assert_array_equal(buffer.read(), np.array([[1, 1], [0, 0], [0, 0]], dtype))
    assert (str(tensor.dtype) == "torch.bfloat16") == (np.dtype(dtype) == ml_dtypes.bfloat16)


def test_views_of_a_buffer_are_tensors_too() -> None:
    buffer = HostBuffer(np.arange(6, dtype=np.float32).reshape(3, 2))
    assert tensor_on(buffer.part(1, 3)).tolist() == [[2, 3], [4, 5]]
    assert tensor_on(buffer.row(2)).tolist() == [4, 5]


def test_device_memory_is_described_to_torch() -> None:
    buffer = CudaDevice(api=FakeCuda()).empty((3, 2), np.dtype(np.float16)).part(1, 3)
    told = CudaArray(buffer).__cuda_array_interface__
    assert told == {"shape": (2, 2), "typestr": "<f2", "data": (buffer.address, False), "version": 2}
    wide = CudaDevice(api=FakeCuda()).empty((1,), np.dtype(ml_dtypes.bfloat16))
    assert CudaArray(wide).__cuda_array_interface__["typestr"] == "<i2", "bfloat16 goes as its bits"


def test_constants_are_made_once() -> None:
    """A recording finds what the run before it has made."""
    constants = Constants()

    def run(values: list[float]) -> "torch.Tensor":
        with constants:
            return torch.tensor(values, dtype=torch.float32, device="cpu")

    first = run([1.0, 2.0])
    assert run([1.0, 2.0]) is first
    assert run([1.0, 3.0]) is not first
    assert torch.tensor([1.0, 2.0]) is not first
