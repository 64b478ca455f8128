"""Generate videos from a bundle, without PyTorch.

>>> with Pipeline.open("wan.adacache", backend=OnnxRuntime(provider="cuda")) as pipeline:
...     video = pipeline("a boat at sunset", policy="adacache-fast", size="832x480", seed=0)
...     video.save("boat.mp4")

Names are loaded when they are first used, so importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adacache_engines.errors import (
        AdaCacheError,
        BundleError,
        EngineError,
        InputError,
        MissingDependencyError,
        NonFiniteError,
        OutOfRangeError,
        PolicyError,
    )
    from adacache_engines.onnxruntime.backend import OnnxRuntime
    from adacache_engines.tensorrt.backend import TensorRT
    from adacache_runtime.pipeline import Pipeline
    from adacache_runtime.policy_names import policies, policy
    from adacache_runtime.request import Request
    from adacache_runtime.trace import Trace
    from adacache_runtime.video import Video

    __version__: str

_ERRORS = "adacache_engines.errors"
_HOMES = {
    "AdaCacheError": _ERRORS,
    "BundleError": _ERRORS,
    "EngineError": _ERRORS,
    "InputError": _ERRORS,
    "MissingDependencyError": _ERRORS,
    "NonFiniteError": _ERRORS,
    "OnnxRuntime": "adacache_engines.onnxruntime.backend",
    "OutOfRangeError": _ERRORS,
    "Pipeline": "adacache_runtime.pipeline",
    "PolicyError": _ERRORS,
    "Request": "adacache_runtime.request",
    "TensorRT": "adacache_engines.tensorrt.backend",
    "Trace": "adacache_runtime.trace",
    "Video": "adacache_runtime.video",
    "policies": "adacache_runtime.policy_names",
    "policy": "adacache_runtime.policy_names",
}

__all__ = [
    "AdaCacheError",
    "BundleError",
    "EngineError",
    "InputError",
    "MissingDependencyError",
    "NonFiniteError",
    "OnnxRuntime",
    "OutOfRangeError",
    "Pipeline",
    "PolicyError",
    "Request",
    "TensorRT",
    "Trace",
    "Video",
    "__version__",
    "policies",
    "policy",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("adacache_runtime.version").project_version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
