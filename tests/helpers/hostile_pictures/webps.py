"""WebPs that contradict themselves, and animated ones."""

import struct

from tests.helpers.hostile_pictures.pictures import Named, encoded, picture


def riff(*chunks: bytes, nbytes: int | None = None) -> bytes:
    """Return a WebP file of some chunks."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if nbytes is None else nbytes) + body


def part(kind: bytes, data: bytes, nbytes: int | None = None) -> bytes:
    """Return a chunk of a WebP file."""
    return kind + struct.pack("<I", len(data) if nbytes is None else nbytes) + data + b"\0" * (len(data) % 2)


def webps() -> Named:
    """Yield WebPs that contradict themselves, and animated ones."""
    lossy, lossless = (encoded(picture(), "WEBP", lossless=choice) for choice in (False, True))
    for name, whole in (("lossy", lossy), ("lossless", lossless)):
        for length in range(12, len(whole), 9):
            yield f"{length} bytes of {len(whole)}, {name}", whole[:length]
        for nbytes in (0, 4, 2**31, 2**32 - 1):
            yield f"{name}, {nbytes} bytes in all", whole[:4] + struct.pack("<I", nbytes) + whole[8:]
            yield f"{name}, {nbytes} bytes of pixels", whole[:16] + struct.pack("<I", nbytes) + whole[20:]
        for at in range(20, 32):
            yield f"{name}, byte {at} all ones", whole[:at] + b"\xff" + whole[at + 1 :]
    image = lossless[12:]
    for flags in range(0, 256, 2):
        for side in (15, 2**24 - 1):
            canvas = part(b"VP8X", bytes([flags, 0, 0, 0]) + 2 * side.to_bytes(3, "little"))
            yield f"flags {flags:x}, a canvas of {side + 1}", riff(canvas, image)
    canvas = part(b"VP8X", bytes([2, 0, 0, 0]) + (15).to_bytes(3, "little") * 2)
    for place in (0, 8, 2**24 - 1):
        frame = part(b"ANMF", place.to_bytes(3, "little") * 2 + (15).to_bytes(3, "little") * 2 + b"\1\0\0\0" + image)
        for count in (1, 3000):
            yield f"{count} frames at {place}", riff(canvas, part(b"ANIM", bytes(6)), *([frame] * count))
    yield "a colour profile of 1 MB", riff(part(b"VP8X", b"\x20" + bytes(9)), part(b"ICCP", bytes(10**6)), image)
    yield "transparency without sense", riff(part(b"VP8X", b"\x10" + bytes(9)), part(b"ALPH", b"\xff" * 99), lossy[12:])
    for side in (1, 2**13 + 1, 2**14):
        packed = (side - 1) | (side - 1) << 14
        yield f"lossless, {side} x {side}", riff(part(b"VP8L", b"\x2f" + struct.pack("<I", packed) + image[13:]))
        head = b"\x30\x01\0\x9d\x01\x2a" + struct.pack("<HH", side & 0x3FFF, side & 0x3FFF)
        yield f"lossy, {side} x {side}", riff(part(b"VP8 ", head + lossy[30:]))
