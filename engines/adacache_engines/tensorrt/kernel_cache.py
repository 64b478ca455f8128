"""The kernels that TensorRT-RTX compiled for this machine, in a file beside the plans.

The file only saves time. It belongs to one machine, so the bundle does not hash it, and a run never fails for it:
what cannot be read or written is logged.
"""

import contextlib
import logging
import secrets
import threading
from pathlib import Path
from typing import Any

from adacache_engines.errors import EngineError
from adacache_engines.tensorrt.library import InstalledLibrary

LOG = logging.getLogger(__name__)


class RuntimeCache:
    """One cache of compiled kernels for all engines of a backend.

    Args:
        path: file of the cache; it need not be there.
        library: the installed TensorRT-RTX.
    """

    def __init__(self, path: Path, library: InstalledLibrary) -> None:
        self._path, self._library = path, library
        self._lock = threading.Lock()
        self._cache: Any = None
        self._saved = b""

    def attach(self, config: Any) -> Any:
        """Give the cache to an engine's runtime configuration and return it; the first time reads the file.

        Raises:
            EngineError: the library refuses the cache.
        """
        with self._lock:
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                self._read()
            if not config.set_runtime_cache(self._cache):
                raise EngineError(f"{self._library.name} takes no runtime cache: {self._library.complaints()}")
            return self._cache

    def save(self) -> None:
        """Write the file, whole or not at all, if there is anything new."""
        with self._lock:
            if self._cache is None:
                return
            content = bytes(self._cache.serialize() or b"")
            if not content or content == self._saved:
                return
            part = self._path.with_name(f".{secrets.token_hex(6)}.part")  # renamed in one step
            try:
                part.write_bytes(content)
                part.replace(self._path)
                self._saved = content
            except OSError as error:
                LOG.warning(
                    "compiled kernels cannot be kept in %s (%s); every start compiles them again",
                    self._path,
                    error.strerror or error,
                )
            finally:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            LOG.warning("%s cannot be read (%s); kernels are compiled again", self._path, error.strerror or error)
            return
        if self._cache.deserialize(content):
            self._saved = content
        else:
            LOG.warning(
                "%s is damaged or of another version, driver or GPU, and is not used: %s",
                self._path,
                self._library.complaints(),
            )
