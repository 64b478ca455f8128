"""Describe the machine and the packages on which numbers were measured."""

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from adacache_engines.errors import require

PACKAGES = (
    "adacache-export",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "polygraphy",
    "tensorrt",
    "tensorrt-rtx",
)


def machine(on_gpu: bool) -> dict[str, str | int]:
    """Return processor, cores, memory in bytes where it is known, system, Python, and the GPU if one was used."""
    described: dict[str, str | int] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        described["memory_nbytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if on_gpu:
        described["gpu"] = gpu()
    return described


def gpu() -> str:
    """Return the name of the first GPU."""
    api = require("cuda.bindings.runtime", "gpu")
    status, properties = api.cudaGetDeviceProperties(0)
    return str(properties.name.decode()) if status == api.cudaError_t.cudaSuccess else f"unknown ({status})"


def versions() -> Mapping[str, str]:
    """Return the versions of the installed packages that numbers depend on."""
    found = {name: next(iter(metadata.distributions(name=name)), None) for name in PACKAGES}
    return {name: distribution.version for name, distribution in found.items() if distribution}


def _processor() -> str:
    """Return the processor's model, which Linux tells, or the platform's word for it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
