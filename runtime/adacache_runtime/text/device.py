"""Where the text encoder runs: where the model does, or on the CPU."""

from dataclasses import replace
from typing import Literal, get_args

from adacache_engines.bundle.files import Bundle
from adacache_engines.contract.device import HostDevice
from adacache_engines.contract.engine import Backend, BackendConfig
from adacache_engines.errors import InputError
from adacache_engines.onnxruntime.backend import OnnxRuntime

TextDevice = Literal["backend", "cpu"]
TEXT_DEVICES: tuple[TextDevice, ...] = get_args(TextDevice)


def check_text_device(name: str) -> TextDevice:
    """Return the name if it is one of :data:`TEXT_DEVICES`.

    Raises:
        InputError: it is not; the message lists the known ones.
    """
    for known in TEXT_DEVICES:
        if name == known:
            return known
    raise InputError(f"text device {name!r} is unknown; known: {', '.join(TEXT_DEVICES)}")


def open_text_backend(bundle: Bundle, chosen: BackendConfig, opened: Backend, device: TextDevice) -> Backend:
    """Return the backend that runs the text encoder of a bundle.

    Args:
        bundle: the opened bundle.
        chosen: the model's backend, as it was chosen.
        opened: the model's backend.
        device: ``backend`` = the model's backend; ``cpu`` = ONNX Runtime on the host, so that the encoder takes no
            memory of a GPU and needs no plans.

    Raises:
        InputError: the device is unknown.
        MissingDependencyError: onnxruntime is not installed.
    """
    if check_text_device(device) == "backend" or isinstance(opened.device, HostDevice):
        return opened
    on_host = replace(chosen, provider="cpu") if isinstance(chosen, OnnxRuntime) else OnnxRuntime()
    return on_host.open(bundle)
