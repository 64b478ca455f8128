"""Find out which backends can be used here, and what keeps each of the others from it. A phase of a check."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from adacache_engines.errors import InputError, require
from adacache_engines.onnxruntime.provider import check_starts, import_onnxruntime, settings, shared_device
from adacache_engines.tensorrt.library import CURRENT, TARGETS, gpu_target, open_library
from tools.gpu.phases import BACKENDS, COMPILED, EAGER, ONNXRUNTIME, RECORDED, TENSORRT
from tools.gpu.running.results import Report

RTX = "tensorrt-rtx"


def run(_arguments: Mapping[str, Any], report: Report) -> None:
    """Keep the names of the ``usable`` backends, and for each ``unusable`` one the reason."""
    report.told |= {"usable": [], "unusable": {}}
    for name in BACKENDS:
        why = unusable(name)
        if why is None:
            report.told["usable"].append(name)
        else:
            report.told["unusable"][name] = why
        report.keep()


def unusable(name: str) -> str | None:
    """Return what keeps a backend from being used here, or None where nothing does."""
    try:
        CHECKS[name]()
    except Exception as error:  # whatever a library raises when it is imported or asked
        return str(error) or type(error).__name__
    return None


def _tensorrt(name: str) -> None:
    """Open the library; TensorRT-RTX lists the GPUs that it compiles for, and no time is spent on others."""
    opened = open_library(name)
    capability = gpu_target()
    if name == RTX and capability is not None and capability not in TARGETS:
        listed = ", ".join(target for target in TARGETS if target != CURRENT)
        raise InputError(f"{name} {opened.version} compiles for compute capability {listed}; this GPU has {capability}")


def _onnxruntime() -> None:
    """Open a session: a provider that ONNX Runtime lists need not start."""
    runtime = import_onnxruntime("cuda")
    check_starts(runtime, "cuda", settings("cuda", shared_device()), runtime.SessionOptions())


def _torch() -> None:
    if not require("torch", "export").cuda.is_available():
        raise InputError("the torch that is installed sees no GPU")


def _recorded() -> None:
    _torch()
    require("cuda.bindings.runtime", "gpu")


def _compiler() -> None:
    _torch()
    require("triton", "export")


CHECKS: Mapping[str, Callable[[], None]] = {
    **{name: partial(_tensorrt, name) for name in TENSORRT},
    ONNXRUNTIME: _onnxruntime,
    RECORDED: _recorded,
    EAGER: _torch,
    COMPILED: _compiler,
}
