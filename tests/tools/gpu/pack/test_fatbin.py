"""Machine code of other GPUs becomes zeros, and nothing else does."""

from pathlib import Path

import pytest

from adacache_engines.errors import InputError
from tests.helpers.gpu.fat_binaries import CUBIN, PTX, fat_binary, library
from tools.gpu.pack.fatbin import architecture, trim


def code(letter: bytes, words: int = 3) -> bytes:
    return letter * (8 * words)


def test_only_code_for_the_gpu_stays(tmp_path: Path) -> None:
    """Two kernels: one with code for the GPU, one with portable code alone that it can compile."""
    first = fat_binary([(CUBIN, 80, code(b"a")), (CUBIN, 90, code(b"b", 5)), (PTX, 90, code(b"c"))])
    second = fat_binary(
        [(CUBIN, 75, code(b"d", 2)), (PTX, 75, code(b"e")), (PTX, 80, code(b"f")), (PTX, 120, code(b"g"))]
    )
    before = library([first, second], beside=first)
    file = tmp_path / "library.so"
    file.write_bytes(before)
    told = trim(file, "9.0")
    after = file.read_bytes()
    assert told.kept == {90: 40, 80: 24}
    assert told.zeroed == {80: 24, 90: 24, 75: 16 + 24, 120: 24}
    wanted = first.replace(code(b"a"), bytes(24)).replace(code(b"c"), bytes(24))
    for letter, words in ((b"d", 2), (b"e", 3), (b"g", 3)):
        second = second.replace(code(letter, words), bytes(8 * words))
    assert after == library([wanted, second], beside=first), "headers and other sections are as they were"


@pytest.mark.parametrize(
    ("capability", "kept"), [("8.0", b"a"), ("8.6", b"b"), ("8.9", b"b"), ("9.0", b"d"), ("7.5", b"c")]
)
def test_the_entry_that_cuda_takes_is_kept(capability: str, kept: bytes, tmp_path: Path) -> None:
    """Machine code runs on its own major capability, from its minor one up; else portable code is compiled."""
    file = tmp_path / "library.so"
    codes = [(CUBIN, 80, code(b"a")), (CUBIN, 86, code(b"b")), (PTX, 75, code(b"c")), (PTX, 86, code(b"d"))]
    file.write_bytes(library([fat_binary(codes)], section="__nv_relfatbin"))
    trim(file, capability)
    content = file.read_bytes()
    assert [letter for letter in (b"a", b"b", b"c", b"d") if code(letter) in content] == [kept]


def test_a_library_without_code_for_the_gpu_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "library.so"
    content = library([fat_binary([(CUBIN, 80, code(b"a")), (PTX, 100, code(b"b"))])])
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"library.so has no code for compute capability 9.0, but for .* 80, 100;"):
        trim(file, "9.0")
    file.write_bytes(library([]))
    with pytest.raises(InputError, match="architectures none"):
        trim(file, "9.0")
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"'90' is no compute capability; expected a number such as 9\.0"):
        trim(file, "90")
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no library at all", "expected an ELF file"),
        (library([fat_binary([(CUBIN, 90, code(b"a"))])[:-8]]), "ends outside its section"),
        (
            library([fat_binary([(CUBIN, 90, code(b"a"))]).replace(b"\x40\0\0\0\x18", b"\x40\0\0\0\x20", 1)]),
            "at byte 80",
        ),
    ],
)
def test_another_layout_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "library.so"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        trim(file, "9.0")
    assert file.read_bytes() == content


def test_an_architecture_is_ten_times_the_capability() -> None:
    assert [architecture(capability) for capability in ("7.5", "9.0", "10.3", "12.1")] == [75, 90, 103, 121]
