"""PNGs that contradict themselves, and small ones that contain a lot."""

import struct
import zlib
from collections.abc import Iterator

from PIL import Image as Pillow

from tests.helpers.hostile_pictures.pictures import Named, encoded, picture

PNG = b"\x89PNG\r\n\x1a\n"
MEGABYTE = 2**20


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """Return a chunk of a PNG file."""
    checked = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checked)


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    """Return a PNG file of a head, some chunks, and the end."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return PNG + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IEND", b"")


def zeros(megabytes: int) -> bytes:
    """Return zlib's compressed form of this many MiB of zeros, without ever having them."""
    deflate = zlib.compressobj(9)
    first = deflate.compress(bytes(MEGABYTE)) + deflate.flush(zlib.Z_FULL_FLUSH)
    head, block = first[:2], first[2:]
    nbytes = megabytes * MEGABYTE
    return head + block * megabytes + b"\x03\x00" + struct.pack(">I", (nbytes % 65521) << 16 | 1)


def black(width: int, height: int) -> bytes:
    """Return a black PNG."""
    return encoded(Pillow.new("RGB", (width, height)), "PNG")


def bombs(megabytes: int) -> Named:
    """Yield small pictures that contain this many MiB, in some of the places where a PNG has something compressed."""
    rows = chunk(b"IDAT", zlib.compress(b"\0" * (3 * 16 + 1) * 16))
    packed = zeros(megabytes)
    yield "a colour profile", png(16, 16, chunk(b"iCCP", b"p\0\0" + packed), rows)
    yield "a text", png(16, 16, chunk(b"zTXt", b"Comment\0\0" + packed), rows)
    yield "an international text", png(16, 16, chunk(b"iTXt", b"Comment\0\1\0\0\0" + packed), rows)
    yield "pixels", png(16, 16, chunk(b"IDAT", packed))
    yield "pixels in many parts", png(16, 16, *(chunk(b"IDAT", part) for part in _parts(packed, 1000)))


def _parts(content: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def pngs() -> Named:
    """Yield PNGs that contradict themselves."""
    whole = encoded(picture(), "PNG")
    rows = chunk(b"IDAT", zlib.compress(b"\0" * (3 * 16 + 1) * 16))
    for length in range(8, len(whole), 7):
        yield f"{length} bytes of {len(whole)}", whole[:length]
    for depth in (0, 1, 2, 4, 8, 16, 17, 255):
        for colour in range(8):
            yield f"depth {depth} of colour {colour}", png(16, 16, rows, depth=depth, colour=colour)
    for side in (0, 1, 2**13, 2**13 + 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1):
        yield f"{side} columns", png(side, 16, rows)
        yield f"{side} rows", png(16, side, rows)
        yield f"{side} x {side}", png(side, side, rows)
    grey = chunk(b"IDAT", zlib.compress(bytes(range(17)) * 16))
    for colours in (0, 1, 255, 256, 257, 3000):
        yield f"a palette of {colours}", png(16, 16, chunk(b"PLTE", bytes(3 * colours)), grey, colour=3)
        yield f"transparency of {colours}", png(16, 16, chunk(b"tRNS", bytes(colours)), rows)
    yield "no palette", png(16, 16, grey, colour=3)
    yield "half a colour", png(16, 16, chunk(b"PLTE", bytes(4)), grey, colour=3)
    yield "unknown filters", png(16, 16, chunk(b"IDAT", zlib.compress(b"\xff" * (3 * 16 + 1) * 16)))
    yield "an unknown interlacing", png(16, 16, rows, interlace=9)
    yield "interlaced, without the passes", png(16, 16, rows, interlace=1)
    yield "no pixels", png(16, 16)
    yield "an empty part", png(16, 16, chunk(b"IDAT", b""))
    yield "not compressed", png(16, 16, chunk(b"IDAT", bytes(800)))
    yield "too few rows", png(16, 16, chunk(b"IDAT", zlib.compress(bytes(49))))
    yield "a preset dictionary", png(16, 16, chunk(b"IDAT", b"\x78\xbb" + bytes(100)))
    yield "two heads", PNG + 2 * whole[8:33] + whole[33:]
    yield "no head", PNG + whole[33:]
    yield "the end first", PNG + chunk(b"IEND", b"") + whole[8:]
    yield "an unknown critical chunk", png(16, 16, chunk(b"EVIL", bytes(99)), rows)
    yield "100,000 empty chunks", png(16, 16, chunk(b"tEXt", b"") * 100_000, rows)
    for kind in (b"IHDR", b"IDAT", b"IEND"):
        at = whole.index(kind)
        yield f"a wrong checksum of {kind!r}", whole[: at + 4] + bytes([whole[at + 4] ^ 255]) + whole[at + 5 :]
        for length in (0, 2**31 - 1, 2**31, 2**32 - 1):
            yield f"{kind!r} of {length} bytes", whole[: at - 4] + struct.pack(">I", length) + whole[at:]
    yield from animated_pngs(rows)


def animated_pngs(rows: bytes) -> Named:
    """Yield animated PNGs with frames that are too many, or lie elsewhere."""
    packed = zlib.compress(b"\0" * (3 * 16 + 1) * 16)
    for count, frames in ((5000, 5000), (2**31, 1), (0, 3)):
        parts = []
        for number in range(frames):
            parts.append(chunk(b"fcTL", struct.pack(">IIIIIHHBB", 2 * number, 16, 16, 0, 0, 1, 10, 0, 0)))
            parts.append(chunk(b"fdAT", struct.pack(">I", 2 * number + 1) + packed))
        yield (
            f"{frames} frames that say {count}",
            png(16, 16, chunk(b"acTL", struct.pack(">II", count, 0)), rows, *parts),
        )
    for place in ((2**31, 2**31, 0, 0), (16, 16, 2**31, 2**31), (0, 0, 0, 0), (16, 16, 1, 1)):
        control = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, *place, 1, 10, 1, 1))
        yield f"a frame at {place}", png(16, 16, chunk(b"acTL", struct.pack(">II", 1, 0)), control, rows)
