"""Hostile files of prompts, pictures, clips, arrays and traces, and hostile files in the folders of stopped runs."""

import io
import json
import math
import os
import pickle
import signal
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from adacache_engines.errors import AdaCacheError, InputError
from adacache_runtime.commands.array_files import read_captions, read_latents
from adacache_runtime.media.pictures import read_image, read_last_frames
from adacache_runtime.reports.flops import work_of_run
from adacache_runtime.trace import CallRecord, Trace, read_trace
from adacache_tune.calibration.records import load_record
from adacache_tune.commands import compare as comparing
from adacache_tune.comparison.quality import Lpips
from adacache_tune.prompts import MAX_CHARACTERS, read_prompts
from tests.helpers.model.fake_lpips import write_lpips
from tests.helpers.model.fake_prompts import prompted
from tests.helpers.policies.calibration_command import PSNR, Command, command_in
from tests.helpers.tiny_models.operation_counts import counted_fake

Tries = Callable[[Iterable[Any]], Iterator[Any]]
Capture = pytest.CaptureFixture[str]
LINE = 1000  # characters that a person reads of an error


def refused(read: Callable[[Path], object], path: Path) -> str:
    """Return the message with which a file is refused, one line that can be read."""
    with pytest.raises(AdaCacheError) as caught:
        read(path)
    message = str(caught.value)
    assert message.isprintable(), message[:LINE]
    assert len(message) < LINE
    return message


def one_line(capsys: Capture) -> str:
    """Return what a command printed to standard error, one line without a traceback."""
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1, shown[:LINE]
    assert "Traceback" not in shown
    assert len(shown) < LINE
    return shown


# pictures and clips


def clip(container: str = "mp4", codec: str = "libx264", size: tuple[int, int] = (32, 32), frames: int = 4) -> bytes:
    encoded = io.BytesIO()
    with av.open(encoded, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 40 * number, np.uint8), format="rgb24")
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return encoded.getvalue()


def sound() -> bytes:
    encoded = io.BytesIO()
    with av.open(encoded, "w", format="mp4") as file:
        stream: Any = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return encoded.getvalue()


def png(width: int, height: int, rows: int) -> bytes:
    """A black picture of one bit a pixel, of which only the first rows are there."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(((width + 7) // 8 + 1) * rows))
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


NAMES_OTHERS = {
    "playlist.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
    "playlist.png": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "list.mp4": "ffconcat version 1.0\nfile '{}'\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 26\n"
    "a=control:{}\n",
    "manifest.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    '<AdaptationSet mimeType="video/mp4"><Representation id="0"><BaseURL>{}</BaseURL></Representation></AdaptationSet>'
    "</Period></MPD>",
    "picture.svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{}" width="9" height="9"/></svg>',
}
READERS: tuple[Callable[[Path], object], ...] = (read_image, partial(read_last_frames, count=2))


def test_a_file_that_names_others_opens_none_of_them(tmp_path: Path, tries: Tries) -> None:
    """The file that is named is a pipe: whoever opens it to read lets the test open it to write."""
    (tmp_path / "good.ts").write_bytes(clip("mpegts", "mpeg2video"))
    assert read_image(tmp_path / "good.ts").shape == (1, 32, 32, 3)
    named = tmp_path / "named.ts"
    os.mkfifo(named)
    listener = os.open(named, os.O_RDONLY | os.O_NONBLOCK)  # so that who opens it does not wait for a writer
    os.close(listener)
    for name, text in NAMES_OTHERS.items():
        for target in tries((named.name, str(named), named.as_uri(), "http://127.0.0.1:9/x.ts", "/etc/hostname")):
            (tmp_path / name).write_text(text.format(target))
            for read in READERS:
                assert "cannot be read as an image or a clip" in refused(read, tmp_path / name)
    with pytest.raises(OSError, match="No such device"):  # nobody reads it
        os.open(named, os.O_WRONLY | os.O_NONBLOCK)


def test_a_playlist_of_a_good_clip_is_refused(tmp_path: Path, tries: Tries) -> None:
    """It would be read, were it opened."""
    (tmp_path / "secret.ts").write_bytes(clip("mpegts", "mpeg2video"))
    for name, text in tries(NAMES_OTHERS.items()):
        (tmp_path / name).write_text(text.format("secret.ts"))
        assert "cannot be read as an image or a clip" in refused(read_image, tmp_path / name)


def test_names_that_are_addresses_or_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: Tries) -> None:
    monkeypatch.chdir(tmp_path)
    Path("0.png").write_bytes(png(8, 8, 8))
    Path("a.ts").write_bytes(clip("mpegts", "mpeg2video"))
    names = ("%d.png", "?.png", "file:0.png", "concat:a.ts|a.ts", "http://127.0.0.1:9/0.png", "subfile,,start,0,,:a.ts")
    names += ("crypto:0.png", "data:image/png;base64,AAAA", "pipe:0", "tcp://127.0.0.1:9", "0.png\0", "x" * 5000)
    for name in tries(names):
        for read in READERS:
            with pytest.raises(InputError, match="cannot be read as an image or a clip"):
                read(Path(name))


def test_pictures_that_are_none(tmp_path: Path, tries: Tries) -> None:
    whole, raw = clip(), clip("mpegts", "libx264")
    contents = [
        b"",
        b"\0",
        b"\xff" * 4096,
        b"GIF89a",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        b"BM",
    ]
    contents += [whole[:size] for size in (8, 100, len(whole) // 2)]
    contents += [
        png(60_000, 60_000, 10),
        png(2**31 - 1, 2**31 - 1, 0),
        png(2**31 - 1, 1, 0),
        png(0, 0, 0),
        png(9, 9, 1)[:40],
    ]
    contents += [sound(), b"GIF89a" + bytes(7) + b";", pickle.dumps([1]), b"#!/bin/sh\necho x\n"]
    contents += [whole.replace(b"avc1", b"zzzz"), b"".join(raw[at : at + 188] for at in range(0, 376, 188))]
    for content in tries(contents):
        (tmp_path / "picture").write_bytes(content)
        for read in READERS:
            refused(read, tmp_path / "picture")


def test_a_clip_whose_frames_change_their_size(tmp_path: Path, tries: Tries) -> None:
    path = tmp_path / "clip.ts"
    for codec in tries(("mpeg2video", "libx264")):
        path.write_bytes(clip("mpegts", codec) + clip("mpegts", codec, (64, 48)))
        assert read_image(path).shape == (1, 32, 32, 3)
        assert read_last_frames(path, 2).shape == (2, 48, 64, 3)
        assert "different sizes" in refused(partial(read_last_frames, count=6), path)
        assert "100 are needed" in refused(partial(read_last_frames, count=100), path)


# prompts


def test_prompts_that_are_none(tmp_path: Path, tries: Tries) -> None:
    path = tmp_path / "prompts.txt"
    contents = (b"", b"\n\n", b"# remark", "﻿".encode(), "﻿# remark".encode(), b"\xff\xfea\0", b"a\0b", b"a\x1b[2Jb")
    contents += (b"\x08", b"a" * (MAX_CHARACTERS + 1), b"\xed\xa0\x80", b"\0" * 10**6, "a boat\n".encode("utf-16"))
    for content in tries(contents):
        path.write_bytes(content)
        refused(read_prompts, path)
    for other in tries((tmp_path, tmp_path / "absent", Path("/dev/zero"), Path("x" * 5000), Path("\0"))):
        with pytest.raises(InputError, match="cannot be read"):
            read_prompts(other)


def test_prompts_in_other_spellings(tmp_path: Path, tries: Tries) -> None:
    path = tmp_path / "prompts.txt"
    for content in tries(
        ("﻿a boat\na bird", "a boat\r\na bird\r\n", "a boat\ra bird", "\n a boat \n#x\na bird\na boat")
    ):
        path.write_bytes(content.encode())
        assert read_prompts(path) == ["a boat", "a bird"]
    path.write_text("a\u2028boat\na\u0085bird", encoding="utf-8")
    assert len(read_prompts(path)) == 2, "a prompt a line, whatever else might be taken for a line"


# arrays


class Runs:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def bomb(nbytes: int) -> bytes:
    """A file whose one array is zeros of this size, and says so."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("embeddings.npy", "w") as member:
        member.write(npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({nbytes},)}}"))
        member.write(bytes(2**20))
    content = file.getvalue()
    size = struct.pack("<I", archive.infolist()[0].file_size)
    return content.replace(size, struct.pack("<I", 2**32 - 2))  # in both of its headers


def array_files(mark: Path) -> dict[str, bytes]:
    """Files that are no captions, no latents and no records."""
    code = pickle.dumps(Runs(mark))
    described = "{{'descr': {}, 'fortran_order': False, 'shape': {}}}"
    members = {
        "pickled": npy(described.format("'|O'", "(1,)"), code),
        "bytes": b"no array",
        "negative": npy(described.format("'<f4'", "(-1, 4)")),
        "huge": npy(described.format("'<f4'", f"({10**15},)")),
        "overflow": npy(described.format("'<f4'", f"({2**62}, {2**62})")),
        "short": npy(described.format("'<f4'", "(1000,)"), bytes(16)),
        "code": npy("__import__('os').system('x')"),
        "deep": npy("(" * 50 + ")" * 50),
        "dtype": npy(described.format("'<f99'", "(1,)")),
        "version": b"\x93NUMPY\x09\x09" + bytes(64),
    }
    files = {name: zipped({"embeddings.npy": content, "latents.npy": content}) for name, content in members.items()}
    plain = np.ones((1, 4, 4), np.float32)
    dtypes: dict[str, Any] = {
        "text": np.array(["a"]),
        "bytes of text": np.array([b"a"]),
        "times": np.array(["2020"], "M8[Y]"),
        "records": np.zeros(3, [("a", "f4"), ("b\x1b", "i4")]),
        "complex": plain.astype(complex),
        "void": np.zeros(3, "V5"),
        "bool": plain.astype(bool),
    }
    files |= {f"dtype of {name}": npz(embeddings=value, latents=value) for name, value in dtypes.items()}
    whole = npz(embeddings=plain, latents=plain)
    files |= {
        "empty": b"",
        "no archive": b"PK\x03\x04" + bytes(60),
        "a pickle": code,
        "an array": npy(described.format("'<f4'", "(1,)"), bytes(4)),
        "a pickled array": npy(described.format("'|O'", "(1,)"), code),
        "cut": whole[: len(whole) // 2],
        "flipped": whole.replace(plain.tobytes(), bytes(plain.nbytes)),
        "others": npz(**{"x\x1b[2J": plain, "y" * 3000: plain}),
        "no arrays": zipped({}),
        "many": zipped({f"{number}.npy": b"" for number in range(2000)}),
        "bomb": bomb(2**32 - 200),
        "deflated": zipped({"embeddings.npy": members["huge"]}, zipfile.ZIP_LZMA),
    }
    return files


def test_arrays_that_are_none(tmp_path: Path, tries: Tries) -> None:
    mark, path = tmp_path / "code-ran", tmp_path / "arrays.npz"
    for content in tries(array_files(mark).values()):
        path.write_bytes(content)
        for read in (read_captions, read_latents, load_record):
            with pytest.raises(InputError) as caught:
                read(path)
            assert len(str(caught.value)) < LINE
    for other in tries((tmp_path, tmp_path / "absent", Path("\0"))):
        for read in (read_captions, read_latents, load_record):
            with pytest.raises(InputError):
                read(other)
    assert not mark.exists()


def test_arrays_in_other_orders_and_dtypes(tmp_path: Path, tries: Tries) -> None:
    path, plain = tmp_path / "arrays.npz", np.arange(60, dtype=np.float32).reshape(1, 5, 12)
    arrays = [plain.astype(kind) for kind in (">f4", ">f8", "<f2", ">i8", "<u4", "longdouble")]
    arrays += [np.asfortranarray(plain), np.stack([plain, plain])[::-2][0], plain[:, ::-1][:, ::-1]]
    for array in tries(arrays):
        path.write_bytes(npz(embeddings=array, latents=array, mask=np.ones((1, 5), array.dtype)))
        for read in (read_captions(path).embeddings, read_latents(path)["latents"]):
            assert read.dtype == np.float32
            assert read.flags.c_contiguous
            np.testing.assert_array_equal(read, plain)
        assert read_captions(path).mask.dtype == np.bool_
    path.write_bytes(npz(embeddings=np.full((1, 2, 3), 1e300), mask=np.array([["a", ""]])))
    refused(read_captions, path)


# traces

CALL = CallRecord(1, 900.0, (True,), {"distance": 0.1}, {"embed": 1.0}, 2.0)
SIZES = {"batch": 2, "samples": 1, "patch_frames": 2, "tokens": 4, "text": 4}


def spoiled_traces() -> list[bytes]:
    whole = json.loads(Trace((CALL, CALL), SIZES, "stack").to_json())

    def with_call(**changes: Any) -> Any:
        return {**whole, "calls": [whole["calls"][0], {**whole["calls"][0], **changes}]}

    sizes: list[Any] = [{}, {"batch": 0}, {"batch": -1}, {"batch": 10**400}, {"tokens": 2**31}, {"batch": 1.5}, []]
    contents = [{**whole, "sizes": value if not value else {**SIZES, **value}} for value in sizes]
    contents += [{**whole, "sizes": {name: size for name, size in SIZES.items() if name != left}} for left in SIZES]
    contents += [{**whole, "sizes": {**SIZES, "samples": samples}} for samples in (2**31, 3, 0)]
    contents += [
        {**whole, "calls": []},
        {**whole, "granularity": "x" * 10**5},
        {**whole, "contexts": "many"},
        with_call(groups=[]),
        with_call(groups=[True] * 10**5),
        with_call(groups=[[True]] * 7),
        with_call(groups=[[True], [True, False]]),
        with_call(groups="yes"),
        with_call(timestep=math.nan),
        with_call(wall_ms=math.inf),
        with_call(engine_ms={"x": -math.inf}),
        with_call(distance="far"),
        with_call(**{"\x1b[2J": "far"}),
        with_call(**{"y" * 10**5: "far"}),
    ]
    texts = [json.dumps(content).encode() for content in contents]
    deep = [b"[" * 10**6, b'{"calls":' * 10**5, b'{"calls": ' + b"9" * 10**5 + b"}", b'{"calls": 1e999}']
    return [*texts, *deep, b"", b"\0", b"\xff\xfe" * 100, b'"\\ud800"', b"null", b"NaN", b'{"\\ud800": 1}']


def test_traces_that_are_none(tmp_path: Path, tries: Tries) -> None:
    path, manifest = tmp_path / "trace.json", counted_fake()
    path.write_text(Trace((CALL, CALL), SIZES, "stack").to_json())
    assert work_of_run(manifest, read_trace(path)) is not None
    counted = 0
    for content in tries(spoiled_traces()):
        path.write_bytes(content)
        try:
            work_of_run(manifest, read_trace(path))
            counted += 1
        except InputError as error:
            assert len(str(error)) < LINE, str(error)[:LINE]
    assert counted <= 2, "sizes that nothing is counted with may be missing"
    refused(read_trace, Path("/dev/zero"))


# folders of stopped runs


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Compares on the fake model in a folder of its own, and goes on there."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a boat\na bird\n")

    def run() -> int:
        opened = prompted(tmp_path / "fake.adacache")
        monkeypatch.setattr(comparing.Pipeline, "open", lambda *_, **__: opened)
        usual = ["--prompts", "prompts.txt", "--policies", "interval-2", "--videos", "0", "--size", "8x8", "-o", "out"]
        return comparing.main(["fake.adacache", *usual])

    return run


def spoiled_runs(content: bytes) -> Iterator[bytes]:
    """Variants of the file of finished runs that no comparison wrote."""
    head, *lines = content.splitlines(keepends=True)
    yield from (b"[" * 10**6 + b"\n", b'{"a":' * 10**5 + b"\n", b"\xff\n", b"\0\n", b"NaN\n", b"9" * 10**5 + b"\n")
    yield from (head + line + b"\n" for line in (b"", b"{}", b"[" * 10**6, b"\xff", b"null", b'{"prompt": NaN}'))
    run = json.loads(lines[0])

    def with_row(**changes: Any) -> bytes:
        rows = [run["rows"][0], {**run["rows"][1], **changes}]
        return head + json.dumps({**run, "rows": rows}).encode() + b"\n" + b"".join(lines[1:])

    for rows in ([], run["rows"][:1], run["rows"] * 2, run["rows"][:1] * 2, [{}], "rows"):
        yield head + json.dumps({**run, "rows": rows}).encode() + b"\n"
    for value in (math.nan, math.inf, -math.inf, "x", [], 10**400):
        yield from (with_row(**{name: value}) for name in ("wall_ms", "time_ratio", "psnr_db", "latent_l2"))
    yield with_row(calls=0)
    for value in (-1, 10**300, "x", None, 1.5):
        yield from (with_row(**{name: value}) for name in ("calls", "passes"))
    yield from (with_row(wall_ms=0.0), with_row(time_ratio=-1.0), with_row(computed=10**9), with_row(policy="never"))
    yield from (with_row(adherence={"x": math.nan}), with_row(policy="x\x1b[2J"), with_row(same="perhaps"))


def test_a_comparison_goes_on_from_no_spoiled_file(compare: Callable[[], int], capsys: Capture, tries: Tries) -> None:
    assert compare() == 0
    path = Path("out/runs.jsonl")
    before = {file: file.read_bytes() for file in Path("out").rglob("*") if file.is_file()}
    for content in tries(spoiled_runs(before[path])):
        path.write_bytes(content)
        capsys.readouterr()
        assert compare() == 1, content.splitlines()[1:2]
        assert "out/runs.jsonl" in one_line(capsys)
        assert path.read_bytes() == content
        assert {file for file in Path("out").rglob("*") if file.is_file()} == before.keys()
    path.write_bytes(before[path])
    assert compare() == 0


def test_seeds_without_end(capsys: Capture, tries: Tries) -> None:
    for seeds in tries(("0-99999999999999", f"0-{'9' * 4000}", "9" * 5000)):
        with pytest.raises(SystemExit, match="2"):
            comparing.main(["x", "--prompts", "prompts.txt", "--policies", "interval-2", "--seeds", seeds])
        assert "--seeds" in capsys.readouterr().err


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``adacache-calibrate`` on the fake model in a folder of its own, on a clock that its engines move."""
    return command_in(tmp_path, monkeypatch)


def spoiled_records(content: bytes, mark: Path) -> Iterator[bytes]:
    """Variants of a record that no calibration wrote."""
    yield from array_files(mark).values()
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    calls = len(arrays["timesteps"])
    for name in ("timesteps", "error", "calls_by_expert"):
        yield npz(**{key: value for key, value in arrays.items() if key != name})
        for other in (np.array(["a"]), np.zeros(0), np.zeros((2, calls + 1)), np.array(1.0), np.full(calls, np.nan)):
            if name != "calls_by_expert" or other.size:  # which is empty where there is one transformer
                yield npz(**{**arrays, name: other})
    for name in [key for key in arrays if key.startswith("sites/residual")][:2]:
        yield from (
            npz(**{**arrays, name: other}) for other in (np.zeros((1, calls - 1)), np.zeros((0, calls)), np.ones(3))
        )
    yield npz(**{key: value for key, value in arrays.items() if not key.startswith("sites/residual")})
    yield npz(**{key: value for key, value in arrays.items() if not key.endswith("magnitude")})
    yield npz(**{**arrays, "roles/default": np.array(["nowhere"])})
    shorter = {key: value[..., :-1] if value.ndim == 2 else value for key, value in arrays.items()}
    yield npz(**{**shorter, "timesteps": arrays["timesteps"][:-1], "error": arrays["error"][:, :-1]})
    yield npz(**{**arrays, "error": arrays["error"][:1]})


def test_records_that_are_none(command: Command, tmp_path: Path, tries: Tries) -> None:
    """One that has fewer gaps than those beside it is refused where they are read together."""
    command(*PSNR, methods=["interval"])
    whole, path = Path("fake-calibration/record-001.npz").read_bytes(), tmp_path / "record.npz"
    taken = 0
    for content in tries(spoiled_records(whole, tmp_path / "code-ran")):
        path.write_bytes(content)
        try:
            load_record(path)
            taken += 1
        except InputError as error:
            assert len(str(error)) < LINE
    assert taken == 1
    assert not (tmp_path / "code-ran").exists()


def test_a_calibration_goes_on_from_no_spoiled_file(
    command: Command, tmp_path: Path, capsys: Capture, tries: Tries
) -> None:
    methods = ["interval", "magcache"]
    assert command(*PSNR, methods=methods) in (0, 1)  # whether it reaches its goal does not matter here
    folder, mark = Path("fake-calibration"), tmp_path / "code-ran"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    runs = min((path for path in before if path.name.startswith("runs-")), key=lambda path: path.stat().st_mtime_ns)
    record, settings = folder / "record-001.npz", folder / "settings.json"
    spoiled = [(record, content) for content in list(spoiled_records(before[record], mark))[::5]]
    spoiled += [(settings, content) for content in (b"", b"[" * 10**6, b"\xff", b"[]", b"{}", b"9" * 10**5)]
    spoiled += [(runs, content) for content in list(spoiled_runs(before[runs]))[::5]]
    manifest = (command.folder / "manifest.json").read_bytes()
    for path, content in tries(spoiled):
        path.write_bytes(content)
        capsys.readouterr()
        assert command(*PSNR, methods=methods) == 1, (path, content[:200])
        assert str(folder) in capsys.readouterr().err.splitlines()[-1]
        assert path.read_bytes() == content
        assert {*folder.iterdir()} == before.keys()
        path.write_bytes(before[path])
    assert (command.folder / "manifest.json").read_bytes() == manifest
    assert not mark.exists()


def test_a_calibration_that_is_interrupted_leaves_no_half_file(command: Command, tries: Tries) -> None:
    folder = Path("fake-calibration")
    for after in tries((3, 20, 60)):
        command.stop_after = after
        assert command(*PSNR, methods=["interval"]) == 128 + signal.SIGINT
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    assert [path.name for path in command.folder.iterdir() if path.name.startswith(".")] == []


def test_an_lpips_model_that_is_none(tmp_path: Path, tries: Tries) -> None:
    import onnx

    path = tmp_path / "lpips.onnx"
    write_lpips(path)
    whole = path.read_bytes()
    for value in tries(("x", "-1", "", "9" * 5000, "1e9", "٣", "7\x1b[2J")):
        model = onnx.load(path)
        onnx.helper.set_model_props(model, {"smallest_side": value})
        onnx.save(model, path)
        assert "smallest_side" in refused(Lpips, path)
    for content in tries((b"", b"\0", whole[:50], b"[" * 10**6)):
        path.write_bytes(content)
        refused(Lpips, path)
