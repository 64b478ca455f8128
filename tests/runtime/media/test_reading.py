"""Files of a user's, read with a bound on what they take."""

from pathlib import Path

import numpy as np
import pytest

from adacache_engines.errors import InputError
from adacache_runtime.media import arrays
from adacache_runtime.media.arrays import read_arrays
from adacache_runtime.media.pictures import read_image
from adacache_runtime.media.reading import parse_json, read_bytes


def test_a_file_is_read_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(b"12345")
    assert read_bytes(path, "settings", 5) == b"12345"
    with pytest.raises(InputError, match=r"settings .*settings\.json cannot be read: it has more than 4 bytes"):
        read_bytes(path, "settings", 4)
    for other in (tmp_path, tmp_path / "absent", Path("a\0b")):
        with pytest.raises(InputError, match=r"^settings .* cannot be read: "):
            read_bytes(other, "settings")


def test_json_in_utf_8() -> None:
    assert parse_json(b'{"a": [1, null]}') == {"a": [1, None]}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(b"[" * 100_000)
    for content in (b"", b"\xff", b"{"):
        with pytest.raises(ValueError, match=r"."):
            parse_json(content)


def test_arrays_of_numbers_and_no_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, numbers = tmp_path / "some.npz", np.arange(6.0)
    np.savez(path, numbers=numbers)
    np.testing.assert_array_equal(read_arrays(path, "record", "remove it")["numbers"], numbers)
    monkeypatch.setattr(arrays, "MAX_NBYTES", 100)
    with pytest.raises(InputError, match="has arrays of 176 bytes; expected at most 100"):
        read_arrays(path, "record", "remove it")
    monkeypatch.undo()
    np.savez(path, objects=np.array([{}], object))
    with pytest.raises(InputError, match=r"is no record \(Object arrays cannot be loaded.*; remove it"):
        read_arrays(path, "record", "remove it")


def test_a_playlist_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nb.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(InputError, match=r"a\.m3u8 cannot be read as an image or a clip: .*; expected PNG"):
        read_image(tmp_path / "a.m3u8")
