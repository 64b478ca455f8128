"""Zero the machine code of other GPUs in a library, so that the library compresses to a part of its size.

nvcc puts a kernel's code for each kind of GPU into a fat binary, and a library has its fat binaries one after another
in a section of its own. CUDA picks the entry for the GPU that is there by the entries' headers, which stay as they are:
what it would not pick on the GPU in question becomes zeros. Such a copy is for one kind of GPU and for a transfer, not
for distribution.

The layout is not documented. These facts were read off libraries:

- an ELF section named as in ``SECTIONS`` holds fat binaries at multiples of 8 bytes, with zeros between them;
- a fat binary is a header (magic number, version, the header's size, the size of all entries) and its entries;
- an entry is a header (kind, version, the header's size, the code's size, ..., the architecture at byte 28) and code;
- the architecture of compute capability 9.0 is 90, that of 12.1 is 121.
"""

import mmap
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adacache_engines.errors import InputError

MAGIC = 0xBA55ED50
SECTIONS = (".nv_fatbin", "__nv_relfatbin")
PTX, CUBIN = 1, 2  # kinds of entries: portable code that CUDA compiles at start, and machine code
FATBIN = struct.Struct("<IHHQ")
ENTRY = struct.Struct("<HHIQ12xI")
ALIGNMENT = 8  # bytes
Bytes = bytes | bytearray | mmap.mmap


@dataclass(frozen=True)
class Entry:
    """A kernel's code for one architecture.

    Attributes:
        kind: :data:`PTX`, :data:`CUBIN`, or a kind that is not known.
        architecture: ten times the compute capability, such as 90.
        offset: first byte of the code in the library.
        nbytes: size of the code.
    """

    kind: int
    architecture: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Trimmed:
    """Sizes in bytes of the code that was kept and that became zeros, by architecture."""

    kept: Mapping[int, int]
    zeroed: Mapping[int, int]


def trim(library: Path, capability: str) -> Trimmed:
    """Zero the code that a GPU of this compute capability does not run, in place.

    Raises:
        InputError: the file is no library for Linux on 64 bits, its fat binaries cannot be read, or it has no code for
            this GPU. The file is as it was then.
    """
    with library.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        binaries = list(fat_binaries(data, library.name))
        wanted = [set(chosen(entries, architecture(capability))) for entries in binaries]
        kept, zeroed = Counter[int](), Counter[int]()
        if not any(wanted):
            there = sorted({entry.architecture for entries in binaries for entry in entries})
            raise InputError(
                f"{library.name} has no code for compute capability {capability}, but for the architectures "
                f"{', '.join(map(str, there)) or 'none'}; choose another version of it or another capability"
            )
        for entries, keep in zip(binaries, wanted, strict=True):
            for entry in entries:
                (kept if entry in keep else zeroed)[entry.architecture] += entry.nbytes
                if entry not in keep:
                    data[entry.offset : entry.offset + entry.nbytes] = bytes(entry.nbytes)
    return Trimmed(kept, zeroed)


def architecture(capability: str) -> int:
    """Return the number in fat binaries of a compute capability such as ``9.0``.

    Raises:
        InputError: it is no compute capability.
    """
    major, dot, minor = capability.partition(".")
    if not (dot and major.isdecimal() and minor.isdecimal() and len(minor) == 1):
        raise InputError(f"{capability!r} is no compute capability; expected a number such as 9.0")
    return 10 * int(major) + int(minor)


def chosen(entries: Sequence[Entry], wanted: int) -> list[Entry]:
    """Return the entries of one fat binary that CUDA takes on a GPU of architecture ``wanted``.

    Machine code runs on its own major capability, from its minor one up; where there is none, the newest portable code
    that is not newer than the GPU is compiled.
    """
    machine = [one for one in entries if one.kind != PTX and wanted // 10 * 10 <= one.architecture <= wanted]
    portable = [one for one in entries if one.kind == PTX and one.architecture <= wanted]
    candidates = machine or portable
    best = max((one.architecture for one in candidates), default=None)
    return [one for one in candidates if one.architecture == best]


def fat_binaries(data: Bytes, name: str) -> Iterator[list[Entry]]:
    """Yield the entries of each fat binary of a library; ``name`` is for messages.

    Raises:
        InputError: the library or one of its fat binaries cannot be read.
    """
    for offset, end in _sections(data, name):
        while offset + FATBIN.size <= end:
            magic, _, header, content = FATBIN.unpack_from(data, offset)
            if magic != MAGIC:
                offset += ALIGNMENT
                continue
            start, offset = offset + header, offset + header + content
            if offset > end:
                raise InputError(f"a fat binary of {name} ends outside its section; its layout is not the known one")
            yield list(_entries(data, start, offset, name))


def _entries(data: Bytes, offset: int, end: int, name: str) -> Iterator[Entry]:
    while offset + ENTRY.size <= end:
        kind, _, header, nbytes, number = ENTRY.unpack_from(data, offset)
        if header < ENTRY.size or offset + header + nbytes > end:
            raise InputError(f"a fat binary of {name} has an entry that its layout does not explain, at byte {offset}")
        yield Entry(kind, number, offset + header, nbytes)
        offset += header + nbytes


def _sections(data: Bytes, name: str) -> Iterator[tuple[int, int]]:
    """Yield the first byte and the end of each section with fat binaries."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise InputError(f"{name} is no library for Linux on 64 bits; expected an ELF file")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    sections = [struct.unpack_from("<II16xQQ", data, table + index * size) for index in range(count)]
    _, _, labels, _ = sections[names]
    for label, _, offset, nbytes in sections:
        first = labels + label
        if data[first : data.find(b"\0", first)].decode() in SECTIONS:
            yield offset, offset + nbytes
