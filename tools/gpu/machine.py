"""Describe the machine: its GPU, its libraries, and which of them are missing and why."""

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from adacache_engines.cuda.calls import checked
from adacache_engines.errors import AdaCacheError, InputError, MissingDependencyError, require
from adacache_engines.tensorrt.library import LIBRARIES, open_library

CUDA = "cuda.bindings.runtime"
PACKAGES = (
    "tensorrt-rtx", "tensorrt", "onnxruntime-gpu", "onnxruntime", "onnx", "torch", "triton", "cuda-bindings", "numpy",
)  # fmt: skip
ONNXRUNTIME = "onnxruntime-cuda"
EAGER, COMPILED = "torch-eager", "torch-compile"
BACKENDS: tuple[str, ...] = (*LIBRARIES, ONNXRUNTIME, EAGER, COMPILED)


@dataclass(frozen=True)
class Gpu:
    """A GPU and its CUDA.

    Attributes:
        capability: compute capability, such as ``9.0``.
        driver, runtime: newest CUDA that the driver knows, and CUDA of cuda-bindings, such as ``13.0``.
    """

    name: str
    capability: str
    memory_mb: float
    multiprocessors: int
    driver: str
    runtime: str


def find_gpu(api: Any = None) -> Gpu:
    """Return the first GPU; ``api`` stands in for ``cuda.bindings.runtime``.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        EngineError: CUDA finds no GPU; the message has CUDA's reason.
    """
    api = require(CUDA, "gpu") if api is None else api
    found = checked(api, api.cudaGetDeviceProperties(0), "looking for a GPU")
    versions = [
        checked(api, ask(), "asking for versions") for ask in (api.cudaDriverGetVersion, api.cudaRuntimeGetVersion)
    ]
    return Gpu(
        name=found.name.decode() if isinstance(found.name, bytes) else str(found.name),
        capability=f"{found.major}.{found.minor}",
        memory_mb=found.totalGlobalMem / 1e6,
        multiprocessors=int(found.multiProcessorCount),
        driver=_cuda_version(versions[0]),
        runtime=_cuda_version(versions[1]),
    )


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def machine(gpu: Gpu) -> dict[str, Any]:
    """Return the machine and versions that the results hold for."""
    versions = {package: number for package in PACKAGES if (number := _version(package))}
    return {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "gpu": asdict(gpu),
        "versions": versions,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _library(name: str) -> None:
    open_library(name)


def _onnxruntime() -> None:
    runtime = require("onnxruntime", "gpu")
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        raise InputError("the onnxruntime that is installed has no CUDAExecutionProvider; onnxruntime-gpu has it")


def _torch() -> None:
    if not require("torch", "export").cuda.is_available():
        raise InputError("the torch that is installed sees no GPU")


def _compiler() -> None:
    _torch()
    require("triton", "export")


CHECKS: Mapping[str, Callable[[], None]] = {
    **{name: lambda name=name: _library(name) for name in LIBRARIES},  # type: ignore[misc]
    ONNXRUNTIME: _onnxruntime,
    EAGER: _torch,
    COMPILED: _compiler,
}


def available(wanted: tuple[str, ...] = BACKENDS) -> tuple[list[str], dict[str, str]]:
    """Return the backends that can be used here, and what keeps each of the others from it.

    Raises:
        InputError: one of ``wanted`` is unknown.
    """
    unknown = [name for name in wanted if name not in CHECKS]
    if unknown:
        raise InputError(f"backend {', '.join(unknown)} is unknown; known: {', '.join(BACKENDS)}")
    usable, skipped = [], {}
    for name in BACKENDS:
        if name not in wanted:
            skipped[name] = "not asked for"
            continue
        try:
            CHECKS[name]()
            usable.append(name)
        except (AdaCacheError, OSError, ImportError) as error:  # a library that does not load is one that is not there
            skipped[name] = str(error)
    return usable, skipped


def exporter_missing() -> str | None:
    """Return what keeps checkpoints from being exported here; None = nothing."""
    try:
        for module in ("torch", "onnx", "onnx_ir", "onnxscript"):
            require(module, "export")
        require("onnxruntime", "cpu")
    except MissingDependencyError as error:
        return str(error)
    return None
