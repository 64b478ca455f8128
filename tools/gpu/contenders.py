"""The backends that are measured against each other on one bundle."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from adacache_engines.bundle.files import Bundle
from adacache_engines.contract.engine import Backend
from adacache_engines.errors import AdaCacheError
from adacache_engines.onnxruntime.backend import OnnxRuntime
from adacache_engines.tensorrt.backend import TrtBackend
from adacache_engines.tensorrt.library import LIBRARIES, open_library
from tools.gpu.machine import COMPILED, EAGER, ONNXRUNTIME

NO_GRAPHS = ", no graphs"  # after a library's name: its calls are not recorded as CUDA graphs
Contenders = dict[str, Backend]
Skips = list[dict[str, str]]


def open_contenders(bundle: Bundle, names: Sequence[str], targets: Mapping[str, str], skipped: Skips) -> Contenders:
    """Open the backends that can be opened; ``skipped`` gets the others, and why.

    Args:
        bundle: the opened bundle, with plans for the libraries among ``names``.
        names: names of backends.
        targets: compute capability whose plans are used on purpose, by library.
        skipped: list of skipped backends, which grows.
    """
    makers: dict[str, Callable[[], Backend]] = {}
    for name in names:
        if name in LIBRARIES:
            makers[name] = _tensorrt(bundle, name, True, targets)
            makers[name + NO_GRAPHS] = _tensorrt(bundle, name, False, targets)
        elif name == ONNXRUNTIME:
            makers[name] = lambda: OnnxRuntime(provider="cuda").open(bundle)
        else:
            makers[name] = _torch(bundle, name)
    opened = {}
    for name, make in makers.items():
        with_reason(skipped, name, lambda name=name, make=make: opened.update({name: make()}))  # type: ignore[misc]
    return opened


def with_reason(skipped: Skips, what: str, action: Callable[[], Any]) -> bool:
    """Return whether the action succeeded; if not, ``skipped`` gets the reason."""
    try:
        action()
    except (AdaCacheError, RuntimeError, ImportError, MemoryError) as error:
        skipped.append({"what": what, "why": f"{type(error).__name__}: {error}"})
        return False
    return True


def _tensorrt(bundle: Bundle, name: str, graphs: bool, targets: Mapping[str, str]) -> Callable[[], Backend]:
    return lambda: TrtBackend(bundle, open_library(name), graphs=graphs, target=targets.get(name))


def _torch(bundle: Bundle, name: str) -> Callable[[], Backend]:
    def make() -> Backend:
        from tools.gpu.torch_backend import TorchBackend  # here: torch need not be there

        assert name in (EAGER, COMPILED)
        return TorchBackend(bundle, compiled=name == COMPILED)

    return make
