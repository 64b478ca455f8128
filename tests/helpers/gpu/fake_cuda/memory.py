"""Calls of the faked CUDA runtime that allocate, free, clear and copy."""

import ctypes

import numpy as np

from tests.helpers.gpu.fake_cuda.objects import OK, POISON, Block, Status, overlap
from tests.helpers.gpu.fake_cuda.state import State, api_call


class Memory(State):
    # allocations

    @api_call(1)
    def cudaMalloc(self, nbytes: int) -> tuple[Status, int | None]:
        if self._prohibited():
            return Status.cudaErrorStreamCaptureUnsupported, None
        if self.device_nbytes(self._current) + nbytes > self.capacity:
            return Status.cudaErrorMemoryAllocation, None
        data = np.full(nbytes, POISON, np.uint8)
        return Status.cudaSuccess, self._allocated(Block(next(self._addresses), data, False, self._current))

    @api_call(1)
    def cudaMallocHost(self, nbytes: int) -> tuple[Status, int | None]:
        if self._prohibited():
            return Status.cudaErrorStreamCaptureUnsupported, None
        self._waiting(True, "pinning memory")
        self.pins += 1
        held = ctypes.create_string_buffer(nbytes)
        data = np.frombuffer(held, np.uint8)
        data[:] = POISON
        block = Block(ctypes.addressof(held), data, True, self._current, held=held)
        return Status.cudaSuccess, self._allocated(block)

    def _allocated(self, block: Block) -> int:
        self.blocks[block.address] = block
        self.peak_nbytes = max(self.peak_nbytes, self.device_nbytes(self._current))
        self._all.insert(0, block)
        return block.address

    @api_call()
    def cudaFree(self, address: int) -> tuple[Status]:
        return self._free(address, pinned=False)

    @api_call()
    def cudaFreeHost(self, address: int) -> tuple[Status]:
        return self._free(address, pinned=True)

    def _free(self, address: int, pinned: bool) -> tuple[Status]:
        if self._prohibited():
            self.fault("memory is freed inside a capture")
        block = self.blocks.get(address)
        if block is None or block.pinned != pinned:
            return (Status.cudaErrorInvalidValue,)
        for operation in self.queue:
            if any(overlap(range_, (address, len(block))) for range_ in operation.ranges):
                self.fault(f"memory is freed before {operation.what}, which is enqueued, has used it")
        self._waiting(True, "freeing memory")
        self._run_all(block.device)
        del self.blocks[address]
        block.freed = True
        if pinned:
            self._all.remove(block)  # the host may give the address to somebody else
        return OK

    # copies

    @api_call()
    def cudaMemsetAsync(self, address: int, value: int, nbytes: int, stream: int) -> tuple[Status]:
        def clear() -> None:
            self.memory(address, nbytes, "clearing")[:] = value

        if self._stream(stream, "clearing").device != self._current:
            return (Status.cudaErrorInvalidResourceHandle,)
        return (self.enqueue(stream, clear, "clearing", [(address, nbytes)]),)

    @api_call()
    def cudaMemcpyAsync(self, target: int, source: int, nbytes: int, kind: int, stream: int) -> tuple[Status]:
        host = {1: source, 2: target}.get(kind)
        if host is not None and self._block(host) is None:
            if self._prohibited():
                return (Status.cudaErrorStreamCaptureUnsupported,)
            self._waiting(True, "a copy of ordinary memory")
            self._run_all()
            ctypes.memmove(*(self._pointer(address, nbytes) for address in (target, source)), nbytes)
            return OK
        for name, address, on_device in (("from", source, kind != 1), ("to", target, kind != 2)):
            block = self._block(address)
            if nbytes and (block is None or block.pinned == on_device):
                self.fault(f"a copy of kind {kind} goes {name} the wrong kind of memory")
        if overlap((source, nbytes), (target, nbytes)):
            self.fault("a copy overlaps its source")
        if kind == 2 and nbytes:
            # who reads before the copy ran does not see last time's values
            self.memory(target, nbytes, "a copy to the host")[:] = POISON
        before = self.memory(source, nbytes, "a copy").copy() if kind == 1 and nbytes and not self.capturing() else None

        def copy() -> None:
            if not nbytes:
                return
            data = self.memory(source, nbytes, "a copy")
            if before is not None and not np.array_equal(before, data):
                self.fault("host memory was changed before its copy ran")
            self.memory(target, nbytes, "a copy")[:] = data

        return (self.enqueue(stream, copy, "a copy", [(source, nbytes), (target, nbytes)]),)

    def _pointer(self, address: int, nbytes: int) -> int:
        if self._block(address) is None:
            return address
        return int(self.memory(address, nbytes, "a copy").ctypes.data)
