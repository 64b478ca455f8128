"""Files of other kinds, files of several kinds at once, and files that chance has changed."""

import struct
import zlib

import numpy as np
from PIL import Image as Pillow

from tests.helpers.hostile_pictures.jpegs import JPEG
from tests.helpers.hostile_pictures.pictures import Named, encoded, picture
from tests.helpers.hostile_pictures.pngs import PNG, chunk, png


def mutated(count: int) -> Named:
    """Yield files with a few bytes changed by chance, and files of which a part is another's; always the same ones."""
    random = np.random.default_rng(0)
    wholes = {
        "png": encoded(picture(), "PNG"),
        "palette": encoded(picture("P"), "PNG"),
        "jpeg": encoded(picture(), "JPEG"),
        "progressive jpeg": encoded(picture(), "JPEG", progressive=True),
        "webp": encoded(picture(), "WEBP"),
        "lossless webp": encoded(picture("RGBA"), "WEBP", lossless=True),
    }
    names = list(wholes)
    for number in range(count):
        name = names[number % len(names)]
        changed = np.frombuffer(wholes[name], np.uint8).copy()
        places = random.integers(12, len(changed), 1 + number % 8)
        changed[places] = random.integers(0, 256, len(places))
        content = changed.tobytes()
        if number % 5 == 4:
            other = wholes[names[int(random.integers(len(names)))]]
            at = int(random.integers(12, len(content)))
            content = content[:at] + other[int(random.integers(len(other))) :]
        yield f"{name} {number}", content


def of_other_kinds() -> Named:
    """Yield what is no image of the kinds that are accepted, whatever it is called."""
    playlist = b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    for kind in ("GIF", "TIFF", "BMP", "ICO", "PPM", "TGA", "JPEG2000", "DDS", "PCX", "SGI", "AVIF"):
        if kind in Pillow.SAVE or (Pillow.init() and kind in Pillow.SAVE):
            yield kind, encoded(picture(), kind)
    yield "an animated GIF", encoded(picture("P"), "GIF", save_all=True, append_images=[picture("L").convert("P")] * 50)
    yield "a GIF of 65535 x 65535", b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x08\0;"
    yield "an mp4", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + struct.pack(">I", 2**32 - 1) + b"moov" + bytes(99)
    yield (
        "a mov that refers to a file",
        b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + b"\0\0\0\x20dref" + b"alisfile:///etc/passwd",
    )
    yield "a playlist", playlist
    yield "a playlist behind a space", b" " + playlist
    yield "a playlist behind a mark of order", b"\xef\xbb\xbf" + playlist
    yield "a list of files", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "a manifest of DASH", b'<?xml version="1.0"?><MPD><BaseURL>file:///etc/passwd</BaseURL></MPD>'
    yield "an SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "an SVG of entities", b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'
    yield "a PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file\n"
    yield "a PDF", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n"
    yield "a script of ImageMagick", b"push graphic-context\nimage over 0,0 0,0 'https://127.0.0.1/x.php?x=`id`'\n"
    yield "a zip", b"PK\3\4" + bytes(60)
    yield "an HTML", b"<html><script>alert(1)</script></html>"
    yield "an AVI", b"RIFF\x20\0\0\0AVI LIST" + bytes(40)
    yield "a wave", b"RIFF\x24\0\0\0WAVEfmt " + bytes(28)
    yield "a subtitle", b"1\n00:00:01,000 --> 00:00:02,000\nhello\n"
    yield "an image sequence", b"%d.png"
    yield "a URL", b"http://127.0.0.1/secret.png"
    yield "nothing", b""
    yield "a zero", b"\0"
    for begins in (PNG, b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"):
        yield f"all but the last byte of {begins!r}", begins[:-1]
        yield f"a space before {begins!r}", b" " + begins + bytes(99)


def polyglots() -> Named:
    """Yield images that are something else, too, or say to be another kind of image than they are."""
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    other = [playlist, b"PK\3\4" + bytes(60), b"<html><script>alert(1)</script>", b"GIF89a" + bytes(40), b"\x7fELF"]
    wholes = {
        "PNG": (PNG, encoded(picture(), "PNG")),
        "JPEG": (b"\xff\xd8\xff", encoded(picture(), "JPEG")),
        "WEBP": (b"RIFF\x20\0\0\0WEBP", encoded(picture(), "WEBP")),
    }
    for kind, (begins, whole) in wholes.items():
        for content in other:
            yield f"{kind}, followed by {content[:6]!r}", whole + content
            yield f"{content[:6]!r}, named {kind}", begins + content
        for another, (_, inside) in wholes.items():
            yield f"{kind}, followed by {another}", whole + inside
            yield f"{another}, named {kind}", begins + inside
    rows = chunk(b"IDAT", zlib.compress(b"\0" * (3 * 16 + 1) * 16))
    yield "a playlist in a PNG's text", png(16, 16, chunk(b"tEXt", playlist), rows)
    yield (
        "a playlist in a JPEG's comment",
        JPEG + b"\xff\xfe" + struct.pack(">H", len(playlist) + 2) + playlist + wholes["JPEG"][1][2:],
    )
