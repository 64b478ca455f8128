"""A backend value that opens what a test has made."""

from dataclasses import dataclass

from adacache_engines.bundle.files import Bundle
from adacache_engines.contract.engine import Backend


@dataclass(frozen=True)
class Opens:
    """A choice of the backend that is given, or of none: then opening one fails the test."""

    made: Backend | None = None

    def open(self, bundle: Bundle) -> Backend:
        if self.made is None:
            raise AssertionError("a backend was asked for")
        return self.made
