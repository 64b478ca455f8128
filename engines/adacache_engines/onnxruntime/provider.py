"""Execution providers of ONNX Runtime: what each is told, whether one really starts, and the memory that it gets.

ONNX Runtime lists the providers that it was built with, whether or not their libraries can be loaded, and goes on with
the CPU where one cannot. So a provider is known to be there when a session has been opened with it, and not before.
"""

import contextlib
import ctypes
import functools
import importlib.util
import io
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import EngineError, InputError, MissingDependencyError, require

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
ARENA_AS_REQUESTED = 1  # grow by what is asked for, not to the next power of two
# y = |x|, float32 (1,), as a serialised ONNX model: the smallest that a session can be opened with
SMALLEST_MODEL = (
    b'\x08\x08:2\n\x0b\n\x01x\x12\x01y"\x03Abs\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)

Settings = Sequence[str | tuple[str, dict[str, str]]]  # as sessions take them

_devices: weakref.WeakValueDictionary[int, CudaDevice] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def import_onnxruntime(provider: str) -> ModuleType:
    """Return ONNX Runtime, with the libraries loaded that a provider is linked to.

    Args:
        provider: key of :data:`PROVIDERS`.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        InputError: this onnxruntime was built without the provider.
    """
    on_cpu = provider == "cpu"
    runtime = require("onnxruntime", "cpu" if on_cpu else "gpu")
    if PROVIDERS[provider] not in runtime.get_available_providers():
        raise InputError(
            f"this onnxruntime has no {PROVIDERS[provider]}; install the one that has it: "
            f'pip install "adacache-export[{"cpu" if on_cpu else "gpu"}]"'
        )
    if not on_cpu:
        _preload(runtime)
    return runtime


@functools.cache
def _preload(runtime: ModuleType) -> None:
    """Load CUDA's libraries from their Python packages, where the system's loader does not look for them.

    By itself ONNX Runtime looks for these packages beside its own only; they may be in another folder on Python's path.
    """
    if not hasattr(runtime, "preload_dlls"):
        return
    for folder in cuda_folders():
        with contextlib.redirect_stdout(io.StringIO()):  # what is not in this folder may be in the next
            runtime.preload_dlls(directory=str(folder))
    with contextlib.redirect_stdout(sys.stderr):  # it prints the names of those that it does not find
        runtime.preload_dlls()


def cuda_folders() -> list[Path]:
    """Return the folders of NVIDIA's Python packages that hold libraries."""
    package = importlib.util.find_spec("nvidia")
    places = package.submodule_search_locations if package is not None else None
    return [folder for place in places or () for folder in sorted(Path(place).glob("*/lib"))]


def settings(provider: str, device: Any) -> Settings:
    """Return a provider and its settings for sessions; CUDA's takes the operators that TensorRT's leaves."""
    if not isinstance(device, CudaDevice):
        return [PROVIDERS[provider]]
    options = {"device_id": str(device.index), "user_compute_stream": str(device.stream)}
    cuda = {
        **options,
        "use_tf32": "0",  # float32 products have float32's precision, here as elsewhere
        # by rule: a search by the clock takes seconds for each shape, and may end elsewhere each time
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    names = dict.fromkeys([PROVIDERS[provider], PROVIDERS["cuda"]])
    return [(name, cuda if name == PROVIDERS["cuda"] else options) for name in names]


def check_starts(runtime: ModuleType, provider: str, given: Settings, options: Any) -> None:
    """Check that a provider starts, by opening a session with it.

    Args:
        runtime: ONNX Runtime.
        provider: key of :data:`PROVIDERS`.
        given: the provider and its settings.
        options: options of the session.

    Raises:
        MissingDependencyError: a library that the provider is linked to cannot be loaded; names it.
        EngineError: the provider does not start for another reason.
    """
    name = PROVIDERS[provider]
    try:
        # 0: else Python's part of ONNX Runtime would catch the provider's error, and take the CPU
        session = runtime.InferenceSession(SMALLEST_MODEL, options, providers=given, enable_fallback=0)
    except Exception as error:
        raise EngineError(f"onnxruntime cannot start {name}: {error}") from error
    if name in session.get_providers():
        return
    why = missing_library(runtime, provider)
    if why is None:
        raise EngineError(f"onnxruntime took the CPU instead of {name}; its log says why")
    raise MissingDependencyError(
        f"onnxruntime took the CPU instead of {name}, because a library is missing: {why}; install the libraries with: "
        'pip install "adacache-export[gpu]"'
    )


def missing_library(runtime: ModuleType, provider: str) -> str | None:
    """Return the dynamic linker's complaint about a provider's own library; None where it has none."""
    capi = Path(str(runtime.__file__)).parent / "capi"
    file = next(capi.glob(f"*onnxruntime_providers_{provider}.*"), None)
    try:
        if file is not None:
            ctypes.CDLL(str(file))
    except OSError as error:
        return str(error)
    return None


def shared_device(index: int = 0) -> CudaDevice:
    """Return the device for all of ONNX Runtime's sessions of this process on a GPU.

    They share one arena, which hands out memory as soon as a session returns it, and does not know whose stream is
    still reading it. In the order of one stream that is right, and only there.
    """
    with _opening:
        device = _devices.get(index)
        if device is None:
            # without graphs: ONNX Runtime allocates while it runs, which no graph can hold
            device = _devices[index] = CudaDevice(index, graphs=False)
        return device


@functools.cache
def share_arena(runtime: ModuleType, index: int | None = None) -> None:
    """Set up one arena of activations for the sessions of all stages, since they run in turn.

    Args:
        runtime: ONNX Runtime.
        index: number of the GPU; None = the CPU.

    Raises:
        EngineError: ONNX Runtime cannot set up the arena of a GPU.
    """
    name = "Cpu" if index is None else "Cuda"
    kind, where = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, runtime.OrtMemType.DEFAULT
    memory = runtime.OrtMemoryInfo(name, kind, index or 0, where)
    arena = runtime.OrtArenaCfg({"arena_extend_strategy": ARENA_AS_REQUESTED})
    if index is None:
        with contextlib.suppress(Exception):  # the process has one already, for models of its own
            runtime.create_and_register_allocator(memory, arena)
        return
    try:
        options = {"device_id": str(index)}
        runtime.create_and_register_allocator_v2(PROVIDERS["cuda"], memory, options, arena)
    except Exception as error:  # also where the process has one already: nobody knows on which streams it is used
        raise EngineError(f"onnxruntime cannot set up an arena on GPU {index} for all stages: {error}") from error
