"""Raw frames on standard output, and nothing else there."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adacache_engines.errors import InputError
from adacache_runtime.commands.run import main as run
from adacache_runtime.media import raw_frames
from tests.helpers.originals.reference import arrays

Capture = pytest.CaptureFixture[bytes]


def command(folder: Path, *more: str) -> list[str]:
    return [str(folder), "--prompt", "a red circle", "--steps", "2", "--frames", "5", "--size", "48x32", *more]


def test_standard_output_is_the_frames(decoding_folder: Path, tmp_path: Path, capsysbinary: Capture) -> None:
    files = ["--trace", str(tmp_path / "trace.json"), "--save-latents", str(tmp_path / "latents.npz")]
    assert run(command(decoding_folder, *files, "-o", "-")) == 0
    out, error = capsysbinary.readouterr()
    assert b"5 frames rgb24 48x32 (width x height), 8 a second" in error
    assert all(name.encode() in error for name in files[1::2])
    assert run(command(decoding_folder, "-o", str(tmp_path / "frames.npz"))) == 0
    frames = arrays(tmp_path / "frames.npz")["frames"]
    assert frames.shape == (5, 32, 48, 3)
    assert out == frames.tobytes()
    capsysbinary.readouterr()
    assert run(command(decoding_folder, "-o", "-", "--zoom", "2")) == 0
    zoomed = np.frombuffer(capsysbinary.readouterr().out, np.uint8).reshape(5, 64, 96, 3)
    np.testing.assert_array_equal(zoomed[:, ::2, 1::2], frames)


def test_one_frame_as_a_picture(decoding_folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    assert run([*command(decoding_folder), "--duration", "image", "-o", str(picture)]) == 1  # both lengths
    image = [argument for argument in command(decoding_folder) if argument not in ("--frames", "5")]
    assert run([*image, "--duration", "image", "-o", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_refused(decoding_folder: Path, capsysbinary: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(command(decoding_folder, "--prompt", "two", "-o", "-")) == 1
    assert b"-o - is one video, and there are 2 prompts" in capsysbinary.readouterr().err
    assert run(command(decoding_folder, "-o", "-", "--zoom", "0")) == 1
    assert b"zoom 0" in capsysbinary.readouterr().err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(command(decoding_folder, "-o", "-")) == 1
    out, error = capsysbinary.readouterr()
    assert b"standard output is a terminal" in error
    assert not out


def test_a_reader_that_goes_away() -> None:
    code = (
        "import numpy as np; from adacache_runtime.media.raw_frames import write_raw\n"
        "try: write_raw(np.zeros((900, 64, 64, 3), np.uint8))\n"
        "except Exception as error: import sys; print(type(error).__name__, error, file=sys.stderr)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(10)
        child.stdout.close()
        assert child.stderr.read().decode() == (
            f"{InputError.__name__} standard output was closed before all frames were written\n"
        )
        assert child.wait() == 0
    assert Path("-") == raw_frames.STANDARD_OUTPUT
