"""Describe the machine: its GPU, and the versions of what is installed. The first phase of a check."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from adacache_engines.cuda.calls import checked
from adacache_engines.errors import EngineError, MissingDependencyError, require
from tools.gpu.running.results import Report, reason

CUDA = "cuda.bindings.runtime"
PACKAGES = (
    "tensorrt-rtx", "tensorrt", "onnxruntime-gpu", "onnxruntime", "onnx", "torch", "triton", "cuda-bindings", "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """A GPU and its CUDA.

    Attributes:
        name: name that the GPU's maker gave it.
        capability: compute capability, such as ``9.0``.
        memory_mb: size of the device memory in MB.
        multiprocessors: number of its multiprocessors.
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


def machine() -> dict[str, Any]:
    """Return the machine and the versions that the results hold for, without the GPU."""
    versions = {package: number for package in PACKAGES if (number := _version(package))}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run(_arguments: Mapping[str, Any], report: Report) -> None:
    """Describe the machine; ``no_gpu`` says why, where CUDA finds no GPU or cannot be asked."""
    report.told |= machine()
    report.keep()
    try:
        report.told["gpu"] = asdict(find_gpu())
    except (EngineError, MissingDependencyError) as error:
        report.told["no_gpu"] = str(error)
    except Exception as error:  # CUDA may be there for others, though its bindings are not as they should be
        report.skipped("the GPU's description", reason(error))


def exporter_missing() -> str | None:
    """Return what keeps checkpoints from being exported here; None = nothing."""
    try:
        for module in ("torch", "onnx", "onnx_ir", "onnxscript"):
            require(module, "export")
        require("onnxruntime", "cpu")
    except MissingDependencyError as error:
        return str(error)
    return None
