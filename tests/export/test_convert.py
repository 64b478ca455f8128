"""Exports, with the slow parts left out: what fails leaves nothing, and what is there is replaced only by force."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adacache_engines.bundle.files import dump_manifest, open_bundle
from adacache_engines.bundle.manifest import Manifest
from adacache_engines.errors import ExportError, InputError
from adacache_export import convert
from adacache_export.options import Options
from adacache_export.tracing import graphs
from adacache_export.verification import parity
from adacache_export.writing import folder as bundle_writer
from tests.helpers.model.bundle_changes import Stubs
from tests.helpers.originals.reference import DATA


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> Stubs:
    stubs = Stubs()
    stubs.install(monkeypatch)
    return stubs


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder for exports; nothing half done may be in it when a test ends."""
    room = tmp_path / "room"
    room.mkdir()
    yield room
    assert [path.name for path in room.iterdir() if path.name.startswith(".")] == []


def export(checkpoint: Path, output: Path, **options: Any) -> Manifest:
    return convert.convert(checkpoint, output, Options(**options))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_is_a_bundle(checkpoint: Path, room: Path) -> None:
    manifest = export(checkpoint, room / "new")
    assert dump_manifest(open_bundle(room / "new").manifest) == dump_manifest(manifest)
    assert manifest.family == "open-sora-1.2"
    assert set(manifest.probes()) == {"temporal.1.attn"}
    assert (room / "new").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("folder", ["latte", "open-sora-plan"])
def test_an_export_with_a_text_encoder_and_a_vae(folder: str, vae_folder: Path, t5_folder: Path, room: Path) -> None:
    """The other parts stay float32 where the model does not."""
    from safetensors.torch import load_file

    options = {"precision": "fp16", "text_encoder": t5_folder, "vae": vae_folder}
    if folder == "open-sora-plan":
        del options["vae"]  # has another one
    export(DATA / folder, room / "new", **options)
    manifest = open_bundle(room / "new").manifest
    weights = {"model": manifest.weights, **manifest.part_weights}
    assert set(weights) == {"model", *options} - {"precision"}
    for part, name in weights.items():
        dtypes = {value.dtype for value in load_file(room / "new" / name).values()}
        assert dtypes == {torch.float16 if part == "model" else torch.float32}


FAULTS: dict[str, tuple[Any, str]] = {
    "tracing": (graphs, "trace"),
    "a graph": (graphs, "write_graph"),
    "verifying": (parity, "compare"),
    "the weights": (convert, "write_weights"),
    "hashing": (convert, "file_entries"),
    "the manifest": (convert, "dump_manifest"),
    "publishing": (bundle_writer, "_publish"),
}
KINDS = {
    "interrupt": (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    "full disk": (OSError(errno.ENOSPC, "No space left on device"), ExportError, "disk is full"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), ExportError, "disk is full"),
    "bug": (RuntimeError("a bug"), RuntimeError, "a bug"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", FAULTS)
def test_an_export_that_breaks_leaves_nothing(
    checkpoint: Path, room: Path, monkeypatch: pytest.MonkeyPatch, place: str, kind: str
) -> None:
    raised, expected, message = KINDS[kind]

    def fail(*_arguments: object, **_options: object) -> None:
        raise raised

    monkeypatch.setattr(*FAULTS[place], fail)
    with pytest.raises(expected, match=message):
        export(checkpoint, room / "new")
    assert list(room.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("place", FAULTS)
def test_an_export_that_breaks_leaves_the_old_bundle(
    checkpoint: Path, room: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    export(checkpoint, room / "old")
    before = snapshot(room / "old")

    def fail(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*FAULTS[place], fail)
        with pytest.raises(KeyboardInterrupt):
            export(checkpoint, room / "old", force=True)
    assert snapshot(room / "old") == before
    assert [path.name for path in room.iterdir()] == ["old"]


def test_an_interruption_between_old_and_new_leaves_the_old(
    checkpoint: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replacing takes two renames; the second fails."""
    export(checkpoint, room / "old")
    before, rename = snapshot(room / "old"), Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == bundle_writer.CONTENT:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(KeyboardInterrupt):
            export(checkpoint, room / "old", force=True)
    assert snapshot(room / "old") == before


@pytest.mark.parametrize("error", [2.1e-5, 1.0, float("inf"), float("nan")])
def test_an_engine_that_disagrees_fails_the_export(stubs: Stubs, checkpoint: Path, room: Path, error: float) -> None:
    stubs.error = error
    stages = r"disagree with their torch stages:\n  text: .*\n  positions: .*\n  embed: "
    with pytest.raises(ExportError, match=stages) as caught:
        export(checkpoint, room / "new")
    assert "combine" in str(caught.value)
    assert list(room.iterdir()) == []


def test_a_weight_that_float16_cannot_hold(checkpoint: Path, tmp_path: Path, room: Path) -> None:
    from safetensors.torch import load_file, save_file

    large = tmp_path / "large"
    shutil.copytree(checkpoint, large)
    tensors = load_file(large / "model.safetensors")
    tensors["final_layer.linear.bias"][0] = 7e4
    save_file(tensors, large / "model.safetensors")
    with pytest.raises(ExportError, match=r"final_layer\.linear\.bias .*fp16.*bf16"):
        export(large, room / "new", precision="fp16")
    assert list(room.iterdir()) == []
    export(large, room / "new", precision="bf16")


def test_a_disk_that_is_too_small(checkpoint: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = shutil.disk_usage(room)._replace(free=1000)
    monkeypatch.setattr(bundle_writer.shutil, "disk_usage", lambda _: tiny)
    with pytest.raises(ExportError, match=r"needs about .* GB free; make room"):
        export(checkpoint, room / "new")
    assert list(room.iterdir()) == []


def test_an_existing_bundle_is_replaced_only_by_force(checkpoint: Path, room: Path) -> None:
    export(checkpoint, room / "old")
    before = snapshot(room / "old")
    (room / "old" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"exists already.*-o.*--force"):
        export(checkpoint, room / "old", precision="bf16")
    assert snapshot(room / "old") == {**before, "mine.txt": b"mine"}
    export(checkpoint, room / "old", precision="bf16", force=True)
    assert open_bundle(room / "old").manifest.precision == "bf16"
    assert not (room / "old" / "mine.txt").exists()
    assert [path.name for path in room.iterdir()] == ["old"]


def occupied(room: Path, kind: str) -> Path:
    path = room / "taken"
    if kind == "file":
        path.write_text("mine")
    elif kind == "link":
        path.symlink_to(room / "nowhere")
    else:
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    return path


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_bundle_is_never_replaced(checkpoint: Path, room: Path, kind: str, force: bool) -> None:
    path = occupied(room, kind)
    with pytest.raises(InputError, match="taken exists"):
        export(checkpoint, path, force=force)
    if kind == "link":
        assert path.readlink() == room / "nowhere"
    else:
        assert (path if kind == "file" else path / "mine.txt").read_text() == "mine"


def test_a_place_that_is_not_there(checkpoint: Path, room: Path) -> None:
    with pytest.raises(InputError, match="is not a folder; create it"):
        export(checkpoint, room / "absent" / "new")


def test_what_came_in_the_meantime_is_not_replaced(
    checkpoint: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another export took the place while this one was under way."""
    compare = parity.compare

    def meanwhile(*arguments: Any) -> Any:
        (room / "new").mkdir(exist_ok=True)
        (room / "new" / "mine.txt").write_text("mine")
        return compare(*arguments)

    monkeypatch.setattr(parity, "compare", meanwhile)
    with pytest.raises(InputError, match="exists already"):
        export(checkpoint, room / "new")
    assert (room / "new" / "mine.txt").read_text() == "mine"


def test_an_unknown_probe(checkpoint: Path, room: Path) -> None:
    with pytest.raises(InputError, match=r"temporal\.9\.attn.*temporal\.N\.cross\+mlp"):
        export(checkpoint, room / "new", probes=("temporal.1.attn", "temporal.9.attn"))
    assert list(room.iterdir()) == []


def test_a_relative_destination(checkpoint: Path, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(room)
    export(checkpoint, Path("new"))
    export(checkpoint, Path("new"), force=True)
    open_bundle("new")
    assert [path.name for path in room.iterdir()] == ["new"]


def test_every_engine_was_verified(bundle_folder: Path) -> None:
    manifest = open_bundle(bundle_folder).manifest
    graphs = manifest.loop_graphs()
    assert len(graphs) == 10 + 6 + 4  # stages, arithmetic, signals
    for graph in graphs:
        assert graph.check is not None
        assert graph.check.error <= graph.check.tolerance == 2e-5
        assert graph.check.engine == "onnxruntime CPUExecutionProvider"
