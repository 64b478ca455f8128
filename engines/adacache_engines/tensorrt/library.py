"""The two libraries that compile and run plans: TensorRT, and TensorRT for RTX. Their Python API is the same."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from adacache_engines.bundle.manifest import Library
from adacache_engines.bundle.tensors import ELEMENT_TYPES, DType
from adacache_engines.errors import InputError, MissingDependencyError, require

LIBRARIES: tuple[Library, ...] = get_args(Library)
MODULES: Mapping[Library, str] = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
EXTRAS: Mapping[Library, str] = {"tensorrt-rtx": "trt-rtx", "tensorrt": "trt"}
# The first TensorRT whose ONNX parser reads Attention; the first TensorRT-RTX that says whether it can be recorded.
OLDEST: Mapping[Library, str] = {"tensorrt-rtx": "1.2", "tensorrt": "10.14"}
# Compute capabilities that TensorRT for RTX builds for, whether or not such a GPU is there, by its own names.
TARGETS: Mapping[str, str] = {
    "7.5": "SM75",
    "8.0": "SM80",
    "8.6": "SM86",
    "8.9": "SM89",
    "12.0": "SM120",
    "12.1": "SM121",
    "current": "CURRENT",
}
CURRENT = "current"  # the GPU that is there, which need not be one of the others


@dataclass(frozen=True)
class InstalledLibrary:
    """A library that compiles and runs plans, as it is installed here.

    Attributes:
        name: name of the library.
        api: the library's Python module.
        version: version that the library tells.
        logger: logger for all objects of the API.
        errors: messages that the library has logged as errors; whoever reports them empties the list.
    """

    name: Library
    api: Any
    version: str
    logger: Any
    errors: list[str]

    def data_type(self, dtype: DType) -> Any:
        """Return the library's own object for a type of elements."""
        return getattr(self.api.DataType, ELEMENT_TYPES[dtype].tensorrt)

    def complaints(self) -> str:
        """Return the errors logged so far, and forget them."""
        told = "; ".join(dict.fromkeys(self.errors)) or "it gave no reason"
        self.errors.clear()
        return told


def open_library(name: str) -> InstalledLibrary:
    """Import one of the two libraries.

    Raises:
        InputError: there is no library of this name.
        MissingDependencyError: it is not installed, or older than :data:`OLDEST`; the message names the extra that
            brings it.
    """
    known = {library: library for library in LIBRARIES}
    if name not in known:
        raise InputError(f"backend {name!r} is unknown; known: {', '.join(known)}")
    library = known[name]
    api = require(MODULES[library], EXTRAS[library])
    if not hasattr(api, "Builder"):  # the folder of a package with type stubs alone imports as an empty module
        raise MissingDependencyError(
            f'{MODULES[library]} is not installed and is needed here: pip install "adacache-export[{EXTRAS[library]}]"'
        )
    version = str(api.__version__)
    if _numbers(version) < _numbers(OLDEST[library]):
        raise MissingDependencyError(
            f"{library} {version} is installed, and {OLDEST[library]} or newer is needed here: "
            f'pip install --upgrade "adacache-export[{EXTRAS[library]}]"'
        )
    errors: list[str] = []
    return InstalledLibrary(library, api, version, _logger(api, errors), errors)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _logger(api: Any, errors: list[str]) -> Any:
    """Return a logger that puts errors into the list, and warnings into Python's log at level INFO."""
    log = logging.getLogger(__name__)

    class Logger(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (api.Logger.INTERNAL_ERROR, api.Logger.ERROR):
                errors.append(message)
            elif severity == api.Logger.WARNING:
                log.info(message)  # they concern the author of the graph

    return Logger()


def gpu_target(index: int = 0) -> str | None:
    """Return the compute capability of a GPU, such as ``8.9``; None = there is no GPU."""
    cuda = require("cuda.bindings.runtime", "gpu")
    attribute = cuda.cudaDeviceAttr
    numbers = []
    for part in (attribute.cudaDevAttrComputeCapabilityMajor, attribute.cudaDevAttrComputeCapabilityMinor):
        status, value = cuda.cudaDeviceGetAttribute(part, index)
        if status != cuda.cudaError_t.cudaSuccess:
            return None
        numbers.append(value)
    return f"{numbers[0]}.{numbers[1]}"
