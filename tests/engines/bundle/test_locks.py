"""The lock on a bundle, between this process and itself; between processes it is tested among the attacks."""

import os
import threading
from pathlib import Path

import pytest

from adacache_engines.bundle.locks import LOCK, changing, check_changeable, try_lock
from adacache_engines.errors import BundleError
from tests.helpers.waiting import HANG_SECONDS


def test_the_second_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    told, waits = [], threading.Event()

    def say(sentence: str) -> None:
        told.append(sentence)
        waits.set()

    def second() -> None:
        with changing(tmp_path, say):
            told.append("changed")

    thread = threading.Thread(target=second)
    with changing(tmp_path):
        thread.start()
        assert waits.wait(HANG_SECONDS)
        check_changeable(tmp_path)
        told.append("released")
    thread.join()
    assert told[0].startswith(f"{tmp_path} is being changed by process {os.getpid()} on ")
    assert told[1:] == ["released", "changed"]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_given_up_on_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), changing(tmp_path):
        assert try_lock(tmp_path) is None
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / LOCK).write_text("of a process that was killed")
    lock = try_lock(tmp_path)
    assert lock is not None
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_folder_or_no_lock(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(BundleError, match="is not a bundle: there is no such folder"):
            check_changeable(path)
    (tmp_path / LOCK).symlink_to(tmp_path / "file")
    with pytest.raises(BundleError, match="cannot be changed: Too many levels of symbolic links"):
        check_changeable(tmp_path)
