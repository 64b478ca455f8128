"""The file of API keys, and new keys."""

from pathlib import Path

import pytest

from adacache_engines.errors import InputError
from adacache_serve.commands.serve import main
from adacache_serve.keys import Client, client_of, read_keys


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("alice", "SHA-256"),
        ("alice ada-thekeyitself", "SHA-256"),
        (f"al/ice {'0' * 64}", "name"),
        (f"{'a' * 201} {'0' * 64}", "name"),
        (f"alice {'0' * 64} high", "priority"),
        (f"alice {'0' * 64} 11", "priority"),
        (f"alice {'0' * 64} 0 0", "wait"),
        (f"alice {'0' * 64} 0 5 6", "nothing else"),
        (f"bob {'1' * 64}", "also in line 2"),
    ],
)
def test_a_wrong_line_of_a_key_file_is_named(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "keys").write_text(f"# keys\nbob {'1' * 64} 3\n\n{line}\n")
    with pytest.raises(InputError, match="line 4: ") as refused:
        read_keys(tmp_path / "keys")
    assert told in str(refused.value)
    assert "thekeyitself" not in str(refused.value)


def test_files_without_keys_are_refused(tmp_path: Path) -> None:
    for content in (b"", b"# none\n", b"\xff\xfe"):
        (tmp_path / "keys").write_bytes(content)
        with pytest.raises(InputError, match="keys"):
            read_keys(tmp_path / "keys")
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "missing")


def test_a_new_key_is_printed_once_and_its_hash_lets_it_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--new-key", "dave"]) == 0
    printed = capsys.readouterr()
    key = printed.err.split()[-1]
    assert key not in printed.out
    (tmp_path / "keys").write_text(printed.out)
    (dave,) = read_keys(tmp_path / "keys")
    assert client_of(key, [dave]) == dave == Client("dave", dave.digest, max_priority=0)
    assert client_of(key[:-1], [dave]) is None
    upper = Client("erin", dave.digest)
    (tmp_path / "keys").write_text(f"erin {dave.digest.upper()}")
    assert client_of(key, read_keys(tmp_path / "keys")) == upper
    assert main(["--new-key", "two words"]) == 1
    assert "not a possible name" in capsys.readouterr().err
