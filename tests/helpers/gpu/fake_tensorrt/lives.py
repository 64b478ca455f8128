"""Lives of the faked TensorRT's objects: what uses what, what ends too early, and finalisers in every call."""

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.helpers.gpu.fake_cuda import FakeCuda


@dataclass(eq=False)
class Life:
    """The life of an object of the library, which uses others until it is gone and keeps none of them alive.

    Attributes:
        cuda: records the faults.
        what: name of the object in faults.
        uses: lives of the objects that it uses.
        users: number of living objects that use it.
    """

    cuda: FakeCuda
    what: str
    uses: tuple["Life", ...] = ()
    users: int = 0

    def __post_init__(self) -> None:
        for used in self.uses:
            used.users += 1

    def end(self) -> None:
        for used in self.uses:
            used.users -= 1
        if self.users:
            self.cuda.faults.append(f"{self.what} is destroyed while {self.users} objects use it")


def living(owner: object, cuda: FakeCuda, what: str, *uses: Life) -> Life:
    """Return the life of an object, which ends when Python forgets the object."""
    life = Life(cuda, what, uses)
    at_death(owner, life.end)
    return life


def at_death(owner: object, action: Callable[[], None]) -> None:
    """Do something when an object is forgotten, but not at the end of the process."""
    weakref.finalize(owner, action).atexit = False


Class = TypeVar("Class", bound=type)


def interrupted(cls: Class) -> Class:
    """Let ``Module.interrupt`` come before each public method, as the garbage collector may."""

    def before(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(self: Any, *arguments: Any, **named: Any) -> Any:
            if self.module.interrupt is not None:
                self.module.interrupt()
            return method(self, *arguments, **named)

        return call

    for name, method in list(vars(cls).items()):
        if callable(method) and not name.startswith("_"):
            setattr(cls, name, before(method))
    return cls
