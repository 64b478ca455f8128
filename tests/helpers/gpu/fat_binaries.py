"""Libraries with fat binaries that hold bytes instead of code, in the layout of nvcc's."""

import struct
from collections.abc import Sequence

PTX, CUBIN = 1, 2
Code = tuple[int, int, bytes]  # kind, architecture, code


def fat_binary(codes: Sequence[Code]) -> bytes:
    """Return a fat binary with an entry for each piece of code, whose sizes must be multiples of 8."""
    entries = b""
    for kind, architecture, code in codes:
        assert len(code) % 8 == 0
        rest = struct.pack("<IIHH", len(code), 64, 0, 0)  # size before padding, options' place, versions of the code
        header = struct.pack("<HHIQ", kind, 0x101, 64, len(code)) + rest + struct.pack("<I", architecture)
        entries += header.ljust(64, b"\0") + code
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def library(fat_binaries: Sequence[bytes], section: str = ".nv_fatbin", beside: bytes = b"") -> bytes:
    """Return an ELF file for 64 bits with the fat binaries in a section, 24 bytes apart, and ``beside`` in another."""
    content = bytes(24).join(fat_binaries)
    names = b"\0" + section.encode() + b"\0.data\0.shstrtab\0"
    places, body = [], b""
    for data in (content, beside, names):
        body += bytes(-len(body) % 8)
        places.append((64 + len(body), len(data)))
        body += data
    body += bytes(-len(body) % 8)
    labels = [names.index(label) + 1 for label in (f"\0{section}".encode(), b"\0.data", b"\0.shstrtab")]
    table = bytes(64)  # the first section is none
    for label, (offset, nbytes) in zip(labels, places, strict=True):
        table += struct.pack("<IIQQQQIIQQ", label, 1, 0, 0, offset, nbytes, 0, 0, 8, 0)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, 4, 3)
    return identity + header + body + table
