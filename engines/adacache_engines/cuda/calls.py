"""The results of CUDA calls: values, addresses of handles, and statuses as errors of this project."""

from typing import Any

from adacache_engines.errors import DeviceLostError, EngineError, require

# Statuses after which "the process must be terminated and relaunched", by the documentation of cudaError_t.
LOST = frozenset(
    f"cudaError{name}"
    for name in (
        "IllegalAddress", "LaunchTimeout", "Assert", "HardwareStackError", "IllegalInstruction", "MisalignedAddress",
        "InvalidAddressSpace", "InvalidPc", "LaunchFailure", "TensorMemoryLeak", "ExternalDevice",
        "MpsClientTerminated", "Contained",
    )
)  # fmt: skip


def checked(api: Any, result: tuple[Any, ...], doing: str) -> Any:
    """Return the value of a CUDA call, which returns (status,) or (status, value).

    Raises:
        DeviceLostError: earlier work has failed on the GPU, which this process cannot use any more.
        EngineError: the status is another one than success.
    """
    status, *value = result
    if status == api.cudaError_t.cudaSuccess:
        return value[0] if value else None
    name = getattr(status, "name", str(status))
    if name in LOST:
        raise DeviceLostError(
            f"CUDA failed {doing}: {name}. Work that was enqueued before has failed, and this process cannot use the "
            "GPU any more; start it again"
        )
    forget_error(api)
    raise EngineError(f"CUDA failed {doing}: {name}")


def forget_error(api: Any) -> None:
    """Take back the status that CUDA keeps of a failed call, which a library would take for that of its own."""
    api.cudaGetLastError()


def native_handle(handle: Any) -> int:
    """Return the address of a CUDA object, for libraries that take an integer."""
    if isinstance(handle, int):  # of a runtime that stands in for CUDA
        return handle
    return int(require("cuda.bindings.utils", "gpu").get_cuda_native_handle(handle))
