"""Execution contexts of the faked TensorRT, which run a plan's numpy function."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from adacache_engines.bundle.tensors import NUMPY_DTYPES
from tests.helpers.gpu.fake_cuda import Bytes, FakeCuda
from tests.helpers.gpu.fake_tensorrt.configuration import Settings
from tests.helpers.gpu.fake_tensorrt.contents import Contents
from tests.helpers.gpu.fake_tensorrt.lives import Life, at_death, interrupted, living
from tests.helpers.gpu.fake_tensorrt.names import CudaGraphStrategy, Dims, DynamicShapesKernelSpecializationStrategy

if TYPE_CHECKING:
    from tests.helpers.gpu.fake_tensorrt.module import Module


ALIGNMENT = 256
IN_PLACE = {  # graphs of one element-wise kernel, by the input and the output that may be the same memory
    "add": ("hidden", "hidden_out"),
    "blend": ("hidden", "hidden_out"),
    "select": ("latents", "latents_out"),
}


@interrupted
class IExecutionContext:
    def __init__(self, module: "Module", contents: Contents, settings: Settings | None, uses: Sequence[Life]) -> None:
        self.module, self._contents, self._settings = module, contents, settings
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory: tuple[int, int] | None = None
        self._ran_with: dict[str, tuple[int, ...]] | None = None  # shapes of the last run that was no recording
        self._asked = False
        self._pending = [0]  # runs that were enqueued and are not done
        module.contexts.add(self)
        module.made += 1
        living(self, module.cuda, f"a context of {contents.plan['function']}", *uses)
        at_death(self, functools.partial(_check_idle, module.cuda, self._pending))

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.module.cuda.enqueue(stream_handle, lambda: None, "choosing a profile")
        self._profile, self._shapes = profile_index, {}
        return 0 <= profile_index < len(self._contents.plan["profiles"])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._profile is None:
            self.module.error("no profile is chosen")
            return False
        least, _, most = (tuple(dims) for dims in self._contents.profile_shape(name, self._profile))
        if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            self.module.error(f"{name} {shape} is outside the profile")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [spec.name for spec in self._contents.inputs if spec.name not in self._shapes]

    def _sizes(self) -> dict[str, int]:
        sizes = {
            axis: size
            for spec in self._contents.inputs
            for axis, size in zip(spec.axes, self._shapes[spec.name], strict=True)
            if isinstance(axis, str)
        }
        # what the model makes of the sizes of its inputs
        if "batch" in sizes:
            sizes.setdefault("samples", sizes["batch"] // 2)
        if "frames" in sizes:
            sizes.setdefault("patch_frames", sizes["frames"])
        if {"height", "width"} <= sizes.keys():
            sizes.setdefault("tokens", sizes["height"] * sizes["width"])
        return self._coded(sizes, self._contents.plan.get("factor", 1), self._contents.plan.get("stretch", 1))

    def _coded(self, sizes: Mapping[str, int], factor: int, stretch: int) -> dict[str, int]:
        """Return the sizes of a VAE's outputs, by those of its inputs."""
        times = {"height": factor, "width": factor, "frames": stretch}
        larger = {f"pixel_{axis}": sizes[axis] * n for axis, n in times.items() if axis in sizes}
        padded = {"height": 0, "width": 0, "frames": stretch - 1}
        smaller = {
            axis: (sizes[f"pixel_{axis}"] + padded[axis]) // n for axis, n in times.items() if f"pixel_{axis}" in sizes
        }
        return {**larger, **smaller, **sizes}

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self._contents.specs[name].shape(self._sizes()))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory % ALIGNMENT:
            self.module.cuda.fault(f"{name} of {self._contents.plan['function']} is bound at {memory:#x}: not aligned")
        self._addresses[name] = memory
        return name in self._contents.specs

    def update_device_memory_size_for_shapes(self) -> int:
        if self.infer_shapes():
            return 0
        return self._contents.need([self._shapes[spec.name] for spec in self._contents.inputs])

    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % ALIGNMENT:
            raise RuntimeError("the memory is not aligned")
        if size < self.update_device_memory_size_for_shapes():
            raise RuntimeError("the memory is too small")
        self._memory = (memory, size)

    def is_stream_capturable(self, stream: int) -> bool:
        if self.module.cuda.capturing():
            self.module.cuda.fault("a context is asked whether it can be recorded when the recording has begun")
        self._asked = True
        return self.module.capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        contents, module = self._contents, self.module
        need = self.update_device_memory_size_for_shapes()
        missing = [name for name in contents.specs if name not in self._addresses] + self.infer_shapes()
        name = contents.plan["function"]
        if missing or name == module.refuse or (need and self._memory is None):
            module.error(f"{name}: not set: {missing}" if missing else f"{name}: no device memory, or refused")
            return False
        tensors = {
            spec.name: (spec, tuple(self.get_tensor_shape(spec.name))) for spec in (*contents.inputs, *contents.outputs)
        }

        def range_of(tensor: str) -> tuple[int, int]:
            spec, shape = tensors[tensor]
            return self._addresses[tensor], math.prod(shape) * NUMPY_DTYPES[spec.dtype].itemsize

        ranges = {tensor: range_of(tensor) for tensor in tensors}
        self._check_overlaps(name, ranges)
        self._prepare(name)

        def function(inputs: Sequence[Bytes], outputs: Sequence[Bytes]) -> None:
            given = {
                spec.name: data.view(NUMPY_DTYPES[spec.dtype]).reshape(tensors[spec.name][1])
                for spec, data in zip(contents.inputs, inputs, strict=True)
            }
            results = module.run(name, given)
            for spec, data in zip(contents.outputs, outputs, strict=True):
                value = np.ascontiguousarray(results[spec.name], NUMPY_DTYPES[spec.dtype])
                assert value.shape == tensors[spec.name][1]
                data[:] = value.reshape(-1).view(np.uint8)
            pending[0] -= once

        pending, once = self._pending, int(not module.cuda.capturing())
        pending[0] += once
        reads = [ranges[spec.name] for spec in contents.inputs]
        writes = [ranges[spec.name] for spec in contents.outputs]
        memory = (self._memory[0], need) if self._memory else None
        module.cuda.launch(stream_handle, name, reads, writes, function, memory)
        return True

    def _check_overlaps(self, name: str, ranges: Mapping[str, tuple[int, int]]) -> None:
        """An output is written while inputs are still read, and may hold what other outputs are made of."""
        for output in self._contents.outputs:
            start, nbytes = ranges[output.name]
            for other, (address, size) in ranges.items():
                if other == output.name or address >= start + nbytes or start >= address + size:
                    continue
                if (other, output.name) != IN_PLACE.get(name) or (address, size) != (start, nbytes):
                    self.module.cuda.fault(f"{output.name} of {name} overlaps {other}")

    def _prepare(self, name: str) -> None:
        """The first run with its shapes compiles, unless the cache has the kernel; a capture cannot hold that."""
        cuda, settings = self.module.cuda, self._settings
        if cuda.capturing():
            if self._ran_with != self._shapes:
                cuda.fault(f"{name} has not run with its shapes before it is recorded")
            if settings is not None and not self._asked:
                cuda.fault(f"{name} is recorded and was not asked whether it can be")
            if settings is not None and not self.module.capturable:
                cuda.fault(f"{name} is recorded and cannot be")
        first, self._ran_with = self._ran_with != self._shapes, dict(self._shapes)
        if settings is None or not first:
            return
        if settings.graphs is not CudaGraphStrategy.DISABLED:
            cuda.fault("a graph of the library's own would be captured")
        if settings.kernels is not DynamicShapesKernelSpecializationStrategy.EAGER:
            cuda.fault("a kernel that is to be replaced could be captured")
        kernel = f"{name} {sorted(self._shapes.items())}"
        if settings.cache is None or kernel not in settings.cache.names:
            self.module.compiled.append(kernel)
        if settings.cache is not None:
            settings.cache.names.add(kernel)


def _check_idle(cuda: FakeCuda, pending: list[int]) -> None:
    if pending[0] > 0:
        cuda.faults.append("a context is destroyed before its work is done")
