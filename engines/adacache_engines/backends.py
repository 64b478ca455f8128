"""Back ends by name."""

from typing import Literal, get_args

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Library
from adacache_engines.contract.device import HostDevice
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import InputError
from adacache_engines.onnxruntime.engine import OrtBackend
from adacache_engines.tensorrt.backend import TrtBackend
from adacache_engines.tensorrt.library import open_library

ONNXRUNTIME = "onnxruntime"
TextDevice = Literal["backend", "cpu"]
TEXT_DEVICES: tuple[TextDevice, ...] = get_args(TextDevice)
BACKENDS: tuple[str, ...] = (ONNXRUNTIME, *get_args(Library))


def open_backend(
    bundle: Bundle,
    name: str = ONNXRUNTIME,
    provider: str = "cpu",
    threads: int = 0,
    shared_threads: bool = True,
    cuda_graphs: bool = True,
    weight_budget: int | None = None,
) -> Backend:
    """
    Args:
        bundle: whose graphs or plans it will load.
        name: ``onnxruntime``, ``tensorrt-rtx`` or ``tensorrt``.
        provider, threads, shared_threads: of ONNX Runtime; see :class:`adacache_engines.onnxruntime.engine.OrtBackend`.
        weight_budget: of TensorRT, bytes of GPU memory for weights; None = all of them.
        cuda_graphs: of TensorRT, record sequences of engines as CUDA graphs and replay them.

    Raises:
        InputError: there is no such back end, it has not the options, or the provider cannot be had here.
        MissingDependencyError: it is not installed.
        EngineError: there is no GPU, or the bundle has no plans for it.
        BundleError: plans are missing or were changed.
    """
    if name not in BACKENDS:
        raise InputError(f"backend {name!r} is unknown; known: {', '.join(BACKENDS)}")
    if weight_budget is not None and (name == ONNXRUNTIME or weight_budget < 0):
        raise InputError(
            f"a weight budget of {weight_budget} bytes is not possible with {name}; TensorRT takes 0 or more"
        )
    if name == ONNXRUNTIME:
        return OrtBackend(bundle.folder, provider, threads, shared_threads)
    refused = [option for option, given in (("provider", provider != "cpu"), ("threads", threads != 0)) if given]
    if refused:
        raise InputError(f"{' and '.join(refused)} can be chosen for onnxruntime only; {name} runs on the GPU")
    return TrtBackend(bundle, open_library(name), graphs=cuda_graphs, weight_budget=weight_budget)


def open_text_backend(bundle: Bundle, backend: Backend, device: TextDevice, threads: int = 0) -> Backend:
    """What runs the text encoder of a bundle whose model runs on ``backend``.

    Args:
        bundle: whose graphs or plans it will load.
        backend: of the model.
        device: ``backend`` = the same; ``cpu`` = ONNX Runtime on the host, so that the encoder takes no memory of a
            GPU and needs no plans.
        threads: of ONNX Runtime.

    Raises:
        InputError: the device is unknown.
        MissingDependencyError: onnxruntime is not installed.
    """
    if device not in TEXT_DEVICES:
        raise InputError(f"text device {device!r} is unknown; known: {', '.join(TEXT_DEVICES)}")
    if device == "backend" or isinstance(backend.device, HostDevice):
        return backend
    return OrtBackend(bundle.folder, "cpu", threads)
