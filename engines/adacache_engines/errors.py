"""The project's errors, one tree.

AdaCacheError
├── InputError               an option, a prompt, a size or a file of the user's that is not possible
│   └── OutOfRangeError      a number or size outside what the model or the bundle allows
├── MissingDependencyError   an optional package is not installed; the message has the line that installs it
├── CheckpointError          a checkpoint that cannot be read, is not known, or does not fit its configuration
├── ExportError              a stage that could not be traced, or whose engine disagrees with it
├── BundleError              a bundle that is incomplete, changed, or of another version
├── EngineError              an engine that cannot be loaded, bound or run
│   └── DeviceLostError      a GPU that this process cannot use any more, since work on it has failed
├── PolicyError              a caching policy broke its contract
└── NonFiniteError           NaN or infinity in the latents; names the call and the stage

A message says what is wrong, with the value; what is expected; and what to do.
"""

import importlib
from types import ModuleType

from adacache_engines.printable import without_controls


class AdaCacheError(Exception):
    """Base of every error that the project raises on purpose."""

    def __str__(self) -> str:
        """Return the message, without characters from a file's text that a terminal would obey."""
        return without_controls(super().__str__())


class InputError(AdaCacheError):
    """An option, a prompt, a size or a file of the user's is not possible."""


class OutOfRangeError(InputError):
    """A number or a size is outside what the model or the bundle allows."""


class MissingDependencyError(AdaCacheError):
    """An optional package is not installed."""


class CheckpointError(AdaCacheError):
    """A checkpoint cannot be read, is not known, or does not fit its configuration."""


class ExportError(AdaCacheError):
    """A stage cannot be traced, or its engine disagrees with it."""


class BundleError(AdaCacheError):
    """A bundle is incomplete, changed, or of another version."""


class EngineError(AdaCacheError):
    """An engine cannot be loaded, bound or run."""


class DeviceLostError(EngineError):
    """Work on a GPU has failed, and this process cannot use the GPU any more."""


class PolicyError(AdaCacheError):
    """A caching policy broke its contract."""


class NonFiniteError(AdaCacheError):
    """NaN or infinity in the latents."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Raises:
        MissingDependencyError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise MissingDependencyError(
            f'{error.name} is not installed and is needed here: pip install "adacache-export[{extra}]"'
        ) from error
