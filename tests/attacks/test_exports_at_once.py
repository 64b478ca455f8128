"""Exports that change one bundle at once, and exports that are killed.

Processes meet by pipes: one says that it holds a lock, and goes on when it is told to.
"""

import errno
import fcntl
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.bundle.files import (
    MANIFEST,
    dump_manifest,
    open_bundle,
    read_manifest,
    replace_manifest,
    sha256_file,
)
from adacache_engines.bundle.locks import LOCK, changing, check_changeable
from adacache_engines.bundle.manifest import FileEntry, Manifest
from adacache_engines.contract.fake import FakeBackend
from adacache_engines.errors import BundleError, InputError
from adacache_export.phases import Progress
from adacache_export.writing import triton_repository
from adacache_export.writing.folder import building, check_destination, scratch
from adacache_runtime.pipeline import Pipeline
from tests.helpers.model import fake_model
from tests.helpers.policies.cosine import COSINE
from tests.helpers.serving.fake_server import write_model
from tests.helpers.waiting import HANG_SECONDS

Tries = Callable[[Iterable[Any]], Iterator[Any]]
ROOT = Path(__file__).parents[2]
SAY, HEAR = "print('ready', flush=True)", "sys.stdin.readline()"
NAMES = ("here", "there", "everywhere")

ADD_PRESET = f"""
from adacache_engines.bundle.manifest import Preset
from adacache_tune.calibration.results import write_presets
{SAY}; {HEAR}
write_presets(Path(sys.argv[1]), {{sys.argv[2]: Preset(policy={{"name": "never"}}, note="by a test")}})
"""
HOLD = f"""
from adacache_engines.bundle.locks import changing
with changing(Path(sys.argv[1])):
    {SAY}; {HEAR}
"""
WAIT = f"""
from adacache_engines.bundle.locks import changing
with changing(Path(sys.argv[1]), lambda _: {SAY}):
    print("changed")
"""
BUILD = f"""
from adacache_export.writing.folder import building
with building(Path(sys.argv[1]), 0, False) as folder:
    (folder / "weights").write_bytes(b"half")
    {SAY}; {HEAR}
"""
# ends between the two renames that replace a bundle, when the old one has left its place
REPLACE = """
import os, signal
from adacache_export.writing import folder as writing
rename = Path.rename
def renamed(path, target):
    if path.name == writing.CONTENT:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
Path.rename = renamed
with writing.building(Path(sys.argv[1]), 0, True) as folder:
    (folder / "manifest.json").write_text("new")
"""


@contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that runs this code, and is killed at the end if it is still there."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "engines", ROOT / "runtime")))
    command = [sys.executable, "-c", f"import sys\nfrom pathlib import Path\n{code}", *map(str, arguments)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env={**os.environ, "PYTHONPATH": paths}, **pipes) as made:
        try:
            yield made
        finally:
            made.kill()


def ready(made: subprocess.Popen[str]) -> None:
    """Wait until a process says that it is where the test wants it."""
    assert made.stdout is not None
    assert made.stdout.readline() == "ready\n", made.communicate()[1]


def go_on(made: subprocess.Popen[str]) -> None:
    """Let a process go on, and wait until it has ended."""
    _, errors = made.communicate("\n", timeout=HANG_SECONDS)
    assert made.returncode == 0, errors


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "room" / "fake.adacache"
    fake_model.write_bundle(folder)
    return folder


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def half(folder: Path, name: str) -> Path:
    """A hidden folder with what a killed process left in it."""
    left = folder / f".{name}.x1y2z3ab.partial"
    (left / "content").mkdir(parents=True)
    (left / "content" / "weights.safetensors").write_bytes(b"half")
    (left / LOCK).write_text("4194303 elsewhere\n")
    return left


class Waits(Progress):
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: queue.Queue[str] = queue.Queue()

    def note(self, sentence: str) -> None:
        self.notes.put(sentence)


def test_presets_of_several_processes_are_all_there(bundle: Path, tries: Tries) -> None:
    with ExitStack() as stack:
        made = [stack.enter_context(process(ADD_PRESET, bundle, name)) for name in tries(NAMES)]
        for one in made:
            ready(one)
        for one in made:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()
        for one in made:
            go_on(one)
    assert read_manifest(bundle).policies.keys() >= {*NAMES}
    open_bundle(bundle)
    assert hidden(bundle) == []


def test_two_additions_at_once_come_one_after_the_other(bundle: Path, tries: Tries) -> None:
    """The first is in the middle of its check when the second comes, which says for whom it waits."""
    from adacache_export.parts.add_signals import add_signals

    inside, may_end = threading.Event(), threading.Event()

    def reference(given: Any) -> Any:
        inside.set()
        assert may_end.wait(HANG_SECONDS)
        return COSINE.reference(given)

    other = replace(
        COSINE,
        name="other",
        numbers=("a", "b", "c"),
        nodes=COSINE.nodes.replace("product =", "a =").replace("cached_square", "b").replace("new_square", "c"),
        reference=lambda given: dict(zip("abc", COSINE.reference(given).values(), strict=True)),
    )
    failed: list[BaseException] = []
    progress = Waits()

    def add(signal: Any, progress: Progress) -> None:
        try:
            add_signals(bundle, [signal], progress)
        except BaseException as error:
            failed.append(error)

    first = threading.Thread(target=add, args=(replace(COSINE, reference=reference), Progress()))
    second = threading.Thread(target=add, args=(other, progress))
    for thread in tries((first, second)):
        thread.start()
        assert inside.wait(HANG_SECONDS)
    try:
        note = progress.notes.get(timeout=HANG_SECONDS)
        assert "cosine" not in read_manifest(bundle).signals
    finally:
        may_end.set()
        first.join()
        second.join()
    assert failed == []
    assert note.startswith(f"{bundle} is being changed by process {os.getpid()} on ")
    assert open_bundle(bundle).manifest.signals.keys() >= {"cosine", "other"}
    assert hidden(bundle) == []


def test_the_one_who_waits_goes_on_when_the_other_is_killed(bundle: Path) -> None:
    """It sweeps what that one left, and keeps what it does not know."""
    from adacache_export.parts.add_signals import add_signals

    left, mine = half(bundle, "signal"), bundle / "mine.partial"
    mine.mkdir()
    progress = Waits()
    with process(HOLD, bundle) as holding:
        ready(holding)
        thread = threading.Thread(target=add_signals, args=(bundle, [COSINE], progress))
        thread.start()
        assert f"process {holding.pid} on " in progress.notes.get(timeout=HANG_SECONDS)
        assert left.is_dir()
        holding.send_signal(signal.SIGKILL)
        thread.join()
    assert "cosine" in open_bundle(bundle).manifest.signals
    assert hidden(bundle) == []
    assert mine.is_dir()


def test_an_interrupt_ends_the_waiting(bundle: Path, tries: Tries) -> None:
    with process(HOLD, bundle) as holding:
        ready(holding)
        for number in tries((signal.SIGINT, signal.SIGTERM, signal.SIGKILL)):
            with process(WAIT, bundle) as waiting:
                ready(waiting)
                waiting.send_signal(number)
                output, _ = waiting.communicate(timeout=HANG_SECONDS)
                assert (waiting.returncode, output) == (-number, "")
        go_on(holding)
    assert hidden(bundle) == []


def test_what_a_killed_export_left_is_swept_and_what_a_living_one_holds_is_not(tmp_path: Path, tries: Tries) -> None:
    output = tmp_path / "new.adacache"
    neighbours = [half(tmp_path, "new.adacache.old"), half(tmp_path, "new"), half(tmp_path, "newXadacache")]
    with process(BUILD, output) as killed, process(BUILD, output) as living:
        for one in tries((killed, living)):
            ready(one)
        assert len(hidden(tmp_path)) == 2 + len(neighbours)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        check_destination(output, force=False)
        (kept,) = {*hidden(tmp_path)} - {path.name for path in neighbours}
        assert (tmp_path / kept / "content" / "weights").is_file()
        go_on(living)
    assert (output / "weights").read_bytes() == b"half"
    assert {*hidden(tmp_path)} == {path.name for path in neighbours}, "names that only begin alike"


def test_of_two_new_bundles_of_one_name_the_second_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "new.adacache"
    with process(BUILD, output) as other:
        ready(other)
        with pytest.raises(InputError, match="exists already"), building(output, 0, False) as folder:
            (folder / "weights").write_bytes(b"mine")
            go_on(other)
    assert (output / "weights").read_bytes() == b"half"
    assert hidden(tmp_path) == []


def test_a_bundle_whose_replacement_was_killed_is_put_back(bundle: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()
    with process(REPLACE, bundle) as replacing:
        assert replacing.wait(HANG_SECONDS) == -signal.SIGKILL
    assert not bundle.exists()
    with pytest.raises(InputError, match="exists already"):
        check_destination(bundle, force=False)
    assert (bundle / MANIFEST).read_bytes() == before
    assert hidden(bundle.parent) == []
    open_bundle(bundle)


def test_a_bundle_is_replaced_when_nobody_changes_it(bundle: Path) -> None:
    notes: list[str] = []
    with process(HOLD, bundle) as holding:
        ready(holding)

        def say(note: str) -> None:
            notes.append(note)
            assert read_manifest(bundle)
            go_on(holding)

        with building(bundle, 0, True, say) as folder:
            (folder / "weights").write_bytes(b"new")
    assert len(notes) == 1
    assert [path.name for path in bundle.iterdir()] == ["weights"]
    assert hidden(bundle.parent) == []


def test_the_one_who_waits_changes_the_bundle_that_took_the_place(bundle: Path) -> None:
    """Its lock on the file of the old bundle says nothing of the new one."""
    other = bundle.with_name("other")
    shutil.copytree(bundle, other)
    (other / "new").write_text("new")

    def replaced(_note: str) -> None:
        bundle.rename(bundle.with_name("old"))
        other.rename(bundle)
        go_on(holding)

    with process(HOLD, bundle) as holding:
        ready(holding)
        with changing(bundle, replaced):
            assert (bundle / "new").is_file()
            assert hidden(bundle) == [LOCK]
    assert hidden(bundle) == []


REFUSALS = {"read-only": errno.EROFS, "not ours": errno.EACCES, "full": errno.ENOSPC, "no descriptors": errno.EMFILE}


def test_a_bundle_that_cannot_be_changed_is_refused_at_once(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tries: Tries
) -> None:
    from adacache_export.parts.add_signals import add_signals

    really = os.open
    content = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    for number in tries(REFUSALS.values()):

        def refuse(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None, number: int = number) -> int:
            if flags & os.O_CREAT and dir_fd is not None:
                raise OSError(number, os.strerror(number))
            return really(path, flags, mode, dir_fd=dir_fd)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            with pytest.raises(BundleError, match=f"cannot be changed: {os.strerror(number)}"):
                add_signals(bundle, [COSINE], Progress())
            with pytest.raises(BundleError):
                check_destination(bundle, force=True)
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == content
    for folder in tries((bundle / "absent", bundle / MANIFEST)):
        with pytest.raises(BundleError, match="there is no such folder"):
            check_changeable(folder)


def test_a_file_system_without_locks_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch, tries: Tries) -> None:
    for number in tries((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)):

        def refuse(*_arguments: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        notes: list[str] = []
        left = half(bundle, "vae")
        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", refuse)
            with changing(bundle, notes.append), scratch(bundle, "vae", 0) as folder:
                assert folder.is_dir()
        assert len(notes) == 1
        assert "without locks" in notes[0]
        assert hidden(bundle) == [left.name], "nobody knows whether a process still holds it"
        shutil.rmtree(left)


def test_a_hostile_lock_is_neither_followed_nor_shown(bundle: Path, tmp_path: Path, tries: Tries) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")

    def pipe(path: Path) -> None:
        os.mkfifo(path)

    kinds: tuple[tuple[Callable[[Path], Any], bool], ...] = (
        (lambda path: path.symlink_to(precious), True),
        (lambda path: path.symlink_to(tmp_path / "absent"), True),
        (lambda path: path.mkdir(), True),
        (pipe, False),
        (lambda path: path.write_text("1 \x1b[2Jsomebody\n"), False),
        (lambda path: path.write_text("9" * 10**6), False),
    )
    for make, refused in tries(kinds):
        make(bundle / LOCK)
        if refused:
            with pytest.raises(BundleError, match="cannot be changed"), changing(bundle):
                pass
            (bundle / LOCK).rmdir() if (bundle / LOCK).is_dir() else (bundle / LOCK).unlink()
        else:
            with changing(bundle):
                pass
        assert hidden(bundle) == []
    assert precious.read_text() == "precious"
    assert not (tmp_path / "absent").exists()
    said: list[str] = []

    def spoil_and_end(note: str) -> None:
        said.append(note)
        go_on(holding)

    with process(HOLD, bundle) as holding:
        ready(holding)
        (bundle / LOCK).write_text("12 \x1b[2Jhost\n")  # who can write into the bundle can write this
        with changing(bundle, spoil_and_end):
            pass
    assert said == [f"{bundle} is being changed by another process; this waits until that has ended"]


def test_a_bundle_on_another_file_system(bundle: Path) -> None:
    """A link to it is replaced, and what it pointed to stays."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == bundle.stat().st_dev:
        pytest.skip("there is no other file system to write to")
    there = memory / f"adacache-test-{os.getpid()}"
    try:
        shutil.move(bundle, there)
        bundle.symlink_to(there)
        with process(HOLD, bundle) as holding, process(ADD_PRESET, there, "mine") as adding:
            ready(holding)
            ready(adding)
            go_on(holding)
            go_on(adding)
        with building(bundle, 0, True) as folder:
            (folder / "weights").write_bytes(b"new")
        assert [path.name for path in bundle.iterdir()] == ["weights"]
        assert "mine" in open_bundle(there).manifest.policies
        assert hidden(there) == hidden(bundle.parent) == []
    finally:
        shutil.rmtree(there, ignore_errors=True)


# readers


def replaced(bundle: Path, old: str, new: str) -> None:
    """Change the manifest from one graph's file to another's, as an added part does, and delete the old file."""
    manifest = read_manifest(bundle)
    (bundle / new).write_bytes(b"another graph")
    text = dump_manifest(manifest).replace(f'"{old}"', f'"{new}"')
    content = json.loads(text)
    del content["digest"]
    entry = FileEntry(sha256=sha256_file(bundle / new), nbytes=(bundle / new).stat().st_size)
    changed = Manifest.model_validate({**content, "files": {**content["files"], new: entry}})
    with changing(bundle):
        replace_manifest(bundle, changed)
        (bundle / old).unlink()


def test_who_opens_a_bundle_while_it_changes_gets_the_old_or_the_new_one(bundle: Path, tries: Tries) -> None:
    """Whichever file is being read when the change comes."""
    names, seen = ["onnx/embed.onnx"], []
    for moment in tries(range(len(read_manifest(bundle).files))):
        before, read = read_manifest(bundle), 0

        def change(_nbytes: int, moment: int = moment) -> None:
            nonlocal read
            read += 1
            if read == moment + 1:
                names.append(f"onnx/embed-{moment}.onnx")
                replaced(bundle, *names[-2:])

        opened = open_bundle(bundle, change).manifest
        assert len(names) == moment + 2
        seen.append(("old", "new")[(before, read_manifest(bundle)).index(opened)])
    assert {*seen} == {"old", "new"}


def test_who_has_opened_a_bundle_is_told_when_a_file_is_read_that_is_gone(bundle: Path) -> None:
    opened = open_bundle(bundle)
    replaced(bundle, "onnx/embed.onnx", "onnx/other.onnx")
    with pytest.raises(BundleError, match=r"onnx/embed\.onnx is missing.*open it anew"):
        opened.path("onnx/embed.onnx")
    assert opened.path("onnx/final.onnx").is_file()


def test_a_bundle_that_changes_while_it_is_copied_for_triton_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: Tries
) -> None:
    """A version has the manifest and the files of one bundle."""
    repository, bundle = tmp_path / "repository", tmp_path / "fake.adacache"
    write_model(bundle)
    changes: tuple[Callable[[], None], ...] = (
        lambda: replaced(bundle, "onnx/embed.onnx", "onnx/other.onnx"),
        lambda: (bundle / "encoder.onnx").unlink(),
    )
    for change in tries(changes):

        def versions(_model: Path, change: Callable[[], None] = change) -> list[int]:
            change()  # when the bundle has been checked
            return []

        monkeypatch.setattr(triton_repository, "_versions", versions)
        with pytest.raises(InputError, match=r"was changed meanwhile.*; try again"):
            triton_repository.add_to_repository(repository, bundle, ["cpu"], Progress())
        assert list(repository.iterdir()) == []


def test_a_bundle_that_is_spoiled_while_it_is_opened_is_refused(bundle: Path) -> None:
    def spoil(_nbytes: int) -> None:
        for path in (bundle / "onnx").iterdir():
            path.write_bytes(b"another")

    with pytest.raises(BundleError, match=r"embed\.onnx"):
        open_bundle(bundle, spoil)


def test_a_pipeline_whose_bundle_is_replaced_by_force_asks_to_be_opened_anew(bundle: Path) -> None:
    """The video that is being made is refused as well: nothing is made of two bundles."""
    asked = fake_model.request(steps=3)
    with Pipeline(open_bundle(bundle), FakeBackend(fake_model.functions())) as pipeline:
        pipeline.generate(asked)
        calls = pipeline.calls(asked)
        next(calls)
        with building(bundle, 0, True) as new:
            (new / MANIFEST).write_text("{}")
        for use in (lambda: list(calls), lambda: pipeline.generate(asked), lambda: bundle_path(pipeline)):
            with pytest.raises(BundleError, match=r"is missing.*open it anew"):
                use()


def bundle_path(pipeline: Pipeline) -> Path:
    return pipeline.bundle.path(pipeline.bundle.manifest.weights)
