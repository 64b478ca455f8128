"""The file of API keys, and new keys."""

import hashlib
import logging
import os
from pathlib import Path

import pytest

from adacache_engines.errors import InputError
from adacache_serve.commands.serve import main
from adacache_serve.keys import Client, KeyFile, client_of, read_keys


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
            KeyFile(tmp_path / "keys")
    with pytest.raises(InputError, match="cannot be read"):
        KeyFile(tmp_path / "missing")


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


def line(name: str, key: str) -> str:
    return f"{name} {hashlib.sha256(key.encode()).hexdigest()}\n"


def test_a_file_that_changes_lets_clients_in_and_out(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(line("alice", "a"))
    keys = KeyFile(path)

    def names() -> list[str]:
        return [client.name for client in keys.clients()]

    assert names() == ["alice"]
    with path.open("a") as file:
        file.write(line("bob", "b"))
    assert names() == ["alice", "bob"]
    path.write_text(line("carol", "c") + line("bob", "b"))  # as long as before, and in the same moment
    assert names() == ["carol", "bob"]
    (tmp_path / "new").write_text(line("carol", "c"))
    (tmp_path / "new").replace(path)
    assert names() == ["carol"]
    path.write_text("# nobody any more\n")
    assert names() == []
    path.write_text(line("dave", "d"))
    assert names() == ["dave"]


def test_a_file_that_goes_wrong_changes_nothing_until_it_is_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    path.write_text(line("alice", "a"))
    keys = KeyFile(path)

    def garbage() -> None:
        path.write_text(line("mallory", "m") + "bob ada-thekeyitself\n")

    def bytes_of_something() -> None:
        path.write_bytes(b"\xff\x00" * 1000)

    def pipe() -> None:
        path.unlink()
        os.mkfifo(path)

    for damage, told in (
        (garbage, "line 2: expected the key's SHA-256"),
        (bytes_of_something, "cannot be read"),
        (path.unlink, "is not there"),
        (path.touch, None),
        (pipe, "is not a file"),
    ):
        caplog.clear()
        damage()
        for _ in range(3):
            assert [client.name for client in keys.clients()] == (["alice"] if told else [])
        errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(errors) == (1 if told else 0)  # once, however many requests there are
        assert all("stay" in error and str(told) in error and "thekeyitself" not in error for error in errors)
        if told is None:
            path.write_text(line("alice", "a"))
            assert [client.name for client in keys.clients()] == ["alice"]
    path.unlink()
    path.write_text(line("bob", "b"))
    assert [client.name for client in keys.clients()] == ["bob"]


def test_keys_from_a_pipe_are_read_once() -> None:
    reading, writing = os.pipe()
    os.write(writing, line("alice", "a").encode())
    os.close(writing)
    keys = KeyFile(Path(f"/dev/fd/{reading}"))
    os.close(reading)
    assert [client.name for client in keys.clients()] == ["alice"]
