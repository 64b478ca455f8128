"""The backends that are measured against each other on one bundle."""

from collections.abc import Callable, Sequence
from typing import Any

from adacache_engines.bundle.files import Bundle
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import InputError, MissingDependencyError
from adacache_engines.onnxruntime.backend import OnnxRuntime
from adacache_engines.tensorrt.backend import TrtBackend
from adacache_engines.tensorrt.library import LIBRARIES, open_library
from tools.gpu.phases import BACKENDS, COMPILED, EAGER, NO_GRAPHS, ONNXRUNTIME, RECORDED
from tools.gpu.running.results import Report

Contenders = dict[str, Backend]
CANNOT_BE_HAD = (MissingDependencyError, InputError, ImportError)


def open_contenders(bundle: Bundle, names: Sequence[str], report: Report) -> Contenders:
    """Open the backends that can be opened; the report gets the others, and why.

    Args:
        bundle: the opened bundle, with plans for the libraries among ``names``.
        names: names of backends, each perhaps followed by :data:`tools.gpu.phases.NO_GRAPHS`.
        report: gets the reason where a backend is left out.
    """
    opened: Contenders = {}
    for name in names:
        succeeds(report, name, lambda name=name: opened.update({name: open_backend(bundle, name)}))  # type: ignore[misc]
    return opened


def open_backend(bundle: Bundle, name: str) -> Backend:
    """Open a backend by its name.

    Raises:
        InputError: no backend has this name, or it cannot be used here.
        MissingDependencyError: its library is not installed.
        EngineError: it cannot be opened; the message says why.
    """
    plain = name.removesuffix(NO_GRAPHS)
    graphs = plain == name
    if plain in LIBRARIES:
        return TrtBackend(bundle, open_library(plain), graphs=graphs)
    if name == ONNXRUNTIME:
        return OnnxRuntime(provider="cuda").open(bundle)
    if plain == RECORDED:
        from adacache_engines.cuda.device import CudaDevice
        from tools.gpu.pytorch.recorded import TorchOnBuffers  # here: torch need not be there

        return TorchOnBuffers(bundle, CudaDevice(graphs=graphs))
    if name in (EAGER, COMPILED):
        from tools.gpu.pytorch.eager import TorchBackend

        return TorchBackend(bundle, compiled=name == COMPILED)
    raise InputError(f"backend {name!r} is unknown; known: {', '.join(BACKENDS)}")


def succeeds(report: Report, what: str, action: Callable[[], Any]) -> bool:
    """Do an action for one contender, and return whether it succeeded; no error of it ends the others.

    What cannot be had here is skipped. Any other error is a failure: torch and its compiler raise errors of every kind.
    """
    try:
        action()
    except CANNOT_BE_HAD as error:
        report.skipped(what, error)
    except Exception as error:
        report.failed(what, error)
    else:
        return True
    return False
