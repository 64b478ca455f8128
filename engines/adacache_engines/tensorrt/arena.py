"""Activation memory that all execution contexts share, since they run one after another on one stream."""

import weakref

from adacache_engines.cuda.device import CudaDevice
from adacache_engines.cuda.memory import Memory


class Arena:
    """Memory for the largest of the living claims; freed when the last of them is gone."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._claims: weakref.WeakSet[Claim] = weakref.WeakSet()
        self._current: weakref.ref[Memory] | None = None

    def claim(self, nbytes: int) -> "Claim":
        """Announce a context that needs so many bytes; nothing is allocated before a context runs."""
        with self._device.turn():
            claim = Claim(self, nbytes)
            self._claims.add(claim)
            return claim

    def memory(self) -> Memory:
        """Return memory for the largest claim; memory that was too small lives on with its users."""
        with self._device.turn():
            largest = max(claim.nbytes for claim in self._claims)
            memory = self._current() if self._current else None
            if memory is None or memory.nbytes < largest:
                memory = self._device.allocate(largest)
                self._current = weakref.ref(memory)
            return memory


class Claim:
    """A context's share of an arena."""

    def __init__(self, arena: Arena, nbytes: int) -> None:
        self.nbytes = nbytes
        self._arena = arena
        self._memory: Memory | None = None

    def memory(self) -> Memory:
        """Return memory that stays at one address as long as the claim lives, because recorded graphs need that."""
        if self._memory is None:
            self._memory = self._arena.memory()
        return self._memory
