"""JPEGs that contradict themselves, and one that paints all of its pixels many times."""

import struct

from PIL import Image as Pillow

from tests.helpers.hostile_pictures.pictures import Named, encoded, picture

JPEG = b"\xff\xd8"


def segments(content: bytes) -> list[bytes]:
    """Return the segments of a JPEG file, each with the compressed data that follows it."""
    found, at = [], 0
    while at < len(content):
        if content[at + 1] in (0xD8, 0xD9):
            end = at + 2
        else:
            end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
            if content[at + 1] == 0xDA:
                while content[end] != 0xFF or content[end + 1] == 0 or 0xD0 <= content[end + 1] <= 0xD7:
                    end += 1
        found.append(content[at:end])
        at = end
    return found


def many_scans(width: int, height: int, scans: int) -> bytes:
    """Return a progressive JPEG that paints all of its pixels this many times more."""
    parts = segments(encoded(Pillow.new("L", (width, height), 99), "JPEG", progressive=True))
    painted = [part for part in parts if part[1] == 0xDA]
    return b"".join([*parts[:-1], *([painted[-1]] * scans), parts[-1]])


def jpegs() -> Named:
    """Yield JPEGs that contradict themselves."""
    plain, progressive = (encoded(picture(), "JPEG", progressive=choice) for choice in (False, True))
    for name, whole in (("plain", plain), ("progressive", progressive)):
        for length in range(3, len(whole), 11):
            yield f"{length} bytes of {len(whole)}, {name}", whole[:length]
        parts = segments(whole)
        for number, part in enumerate(parts[1:-1], 1):
            before, after = parts[:number], parts[number + 1 :]
            marker = f"{part[1]:x} in place {number}"
            yield f"{name} without its marker {marker}", b"".join([*before, *after])
            yield f"{name} with its marker {marker} twice", b"".join([*before, part, part, *after])
            for length in (0, 1, 2, 2**16 - 1):
                wrong = part[:2] + struct.pack(">H", length) + part[4:]
                yield f"{name}, marker {marker} of {length} bytes", b"".join([*before, wrong, *after])
        frame = next(number for number, part in enumerate(parts) if part[1] in (0xC0, 0xC2))
        for marker in range(0xC0, 0xD0):
            changed = b"\xff" + bytes([marker]) + parts[frame][2:]
            yield f"{name} as coding {marker:x}", b"".join([*parts[:frame], changed, *parts[frame + 1 :]])
        for at, values in (
            (4, (0, 1, 12, 255)),
            (9, (0, 2, 4, 255)),
            (11, (0, 0x14, 0x41, 0x44, 0xFF)),
            (12, (4, 255)),
        ):
            for value in values:
                head = parts[frame]
                changed = head[:at] + bytes([value]) + head[at + 1 :]
                yield f"{name}, byte {at} of its head {value}", b"".join([*parts[:frame], changed, *parts[frame + 1 :]])
        for height, width in ((0, 16), (16, 0), (0xFFFF, 0xFFFF), (0xFFFF, 1), (1, 0xFFFF), (8193, 16)):
            head = parts[frame]
            changed = head[:5] + struct.pack(">HH", height, width) + head[9:]
            yield f"{name}, {width} x {height}", b"".join([*parts[:frame], changed, *parts[frame + 1 :]])
    profile = b"\xff\xe2" + struct.pack(">H", 0xFFFF) + b"ICC_PROFILE\0\1\xff" + bytes(0xFFFF - 16)
    yield "a colour profile in 100 parts", JPEG + profile * 100 + plain[2:]
    for count in (0, 1, 0xFFFF, 2**32 - 1):
        exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, min(count, 0xFFFF)) + struct.pack(">HHII", 274, 3, count, 9)
        yield f"an orientation of {count}", JPEG + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    yield "many scans", many_scans(64, 64, 2000)
    yield "a comment in 100 parts", JPEG + (b"\xff\xfe\xff\xff" + bytes(0xFFFD)) * 100 + plain[2:]
    yield "a million bytes between segments", JPEG + b"\xff" * 10**6 + plain[2:]
