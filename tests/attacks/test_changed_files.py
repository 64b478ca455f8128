"""Files of a bundle that change while it is open."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Graph
from adacache_engines.contract.fake import FakeEngine
from adacache_engines.cuda.device import CudaDevice
from adacache_engines.errors import BundleError
from adacache_engines.tensorrt.backend import TrtBackend
from adacache_runtime.pipeline import Pipeline
from tests.helpers.gpu.fake_cuda import FakeCuda
from tests.helpers.gpu.fake_tensorrt import Module, library, write_plans
from tests.helpers.model import experts, fake_model
from tests.helpers.originals.reference import request

Tries = Callable[[Iterable[tuple[str, str]]], Iterator[tuple[str, str]]]


def _replace(path: Path, content: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(content)
    other.rename(path)


def _link(path: Path, _content: bytes) -> None:
    moved = path.parent.parent / "moved"
    path.rename(moved)
    path.symlink_to(moved)


def _flipped(content: bytes) -> bytes:
    """Return a content of the same size, changed in the middle."""
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 0x55
    return bytes(changed)


CHANGES: Mapping[str, Callable[[Path, bytes], object]] = {
    "replaced by a rename": lambda path, content: _replace(path, _flipped(content)),
    "overwritten in place": lambda path, content: path.write_bytes(_flipped(content)),
    "overwritten with its times set back": lambda path, content: (
        path.write_bytes(_flipped(content)),
        os.utime(path, (1_000_000_000, 1_000_000_000)),
    ),
    "cut short": lambda path, content: os.truncate(path, len(content) // 2),
    "longer": lambda path, content: path.write_bytes(content + b"\0"),
    "gone": lambda path, _content: path.unlink(),
    "a link": _link,
    "a folder": lambda path, _content: (path.unlink(), path.mkdir()),
    "a pipe": lambda path, _content: (path.unlink(), os.mkfifo(path)),
}
HARMLESS: Mapping[str, Callable[[Path, bytes], object]] = {
    "touched": lambda path, _content: path.touch(),
    "replaced by a copy": lambda path, content: _replace(path, content),
    "written again": lambda path, content: path.write_bytes(content),
}


def restore(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    elif path.is_symlink() or not path.is_file():
        path.unlink(missing_ok=True)
    path.write_bytes(content)


def copied(source: Path, target: Path) -> Path:
    """Copy a bundle, and let its files be old."""
    shutil.copytree(source, target)
    for path in target.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return target


def test_each_part_before_its_first_use_and_between_generations(
    decoding_folder: Path, tmp_path: Path, tries: Tries
) -> None:
    folder = copied(decoding_folder, tmp_path / "bundle")
    with Pipeline.open(folder) as pipeline:
        manifest = pipeline.bundle.manifest
        assert manifest.text.tokenizer
        names = [
            manifest.text.tokenizer,
            manifest.text.encoder_stages[1].path,
            manifest.part_weights["text_encoder"],
            manifest.latent.decoding[-1].path,
            manifest.part_weights["vae"],
            manifest.weights,
        ]
        assert len({*names}) == len(names)

        def made() -> bytes:
            frames = pipeline("a red circle", steps=1, duration="image", size="16x16", seed=3).frames
            return np.asarray(frames).tobytes()

        def refused(name: str, change: str) -> None:
            whole = (folder / name).read_bytes()
            CHANGES[change](folder / name, whole)
            with pytest.raises(BundleError, match=f"{name} (is|has|was)") as caught:
                made()
            assert "\n" not in str(caught.value)
            restore(folder / name, whole)

        # nothing but the loop's engines has been loaded
        for name, change in tries((name, change) for name in names for change in CHANGES):
            refused(name, change)
        expected = made()
        for name, change in tries((name, change) for name in names for change in ("overwritten in place", "gone")):
            refused(name, change)
            assert made() == expected
        for name, change in tries((name, change) for name in names for change in HARMLESS):
            HARMLESS[change](folder / name, (folder / name).read_bytes())
            assert made() == expected


def test_weights_that_change_while_a_generation_reads_them(bundle_folder: Path, tmp_path: Path) -> None:
    folder = copied(bundle_folder, tmp_path / "bundle")
    pipeline = Pipeline.open(folder)
    weights = folder / pipeline.bundle.manifest.weights
    whole, calls = weights.read_bytes(), []

    def change(record: object) -> None:
        calls.append(record)
        weights.write_bytes(_flipped(whole))

    with pytest.raises(BundleError, match=r"weights\.safetensors was changed"):
        pipeline.generate(request(steps=2), change)
    assert len(calls) == 2


@dataclass
class ReadingExperts(experts.Watched):
    """Loads an engine by reading the graph's file."""

    bundle: Bundle | None = None

    def load(self, graph: Graph) -> FakeEngine:
        assert self.bundle is not None
        with self.bundle.reading(graph.path):
            return super().load(graph)


def test_at_the_switch_of_experts(tmp_path: Path, tries: Tries) -> None:
    bundle = fake_model.write_bundle(tmp_path / "bundle", **experts.two_experts())
    backend = ReadingExperts(experts.functions_of_experts(), bundle=bundle)
    pipeline = Pipeline(bundle, backend, expert_offload=True)
    expected = pipeline.generate(fake_model.request()).latents
    finals = [stage.graph.path for stage in bundle.manifest.stages if stage.role == "final"]
    for name, change in tries((name, change) for name in finals for change in CHANGES):
        path = bundle.folder / name
        whole = path.read_bytes()
        CHANGES[change](path, whole)
        with pytest.raises(BundleError, match=f"{path.name} (is|has|was)"):
            pipeline.generate(fake_model.request())
        restore(path, whole)
        np.testing.assert_array_equal(pipeline.generate(fake_model.request()).latents, expected)


def test_compiled_plans(tmp_path: Path, tries: Tries) -> None:
    """A plan is code to its library, so that a changed one is never opened."""
    cuda = FakeCuda()
    bundle = write_plans(fake_model.write_bundle(tmp_path / "bundle"))
    module = Module(cuda)
    backend = TrtBackend(bundle, library(module), CudaDevice(api=cuda))
    graph = bundle.manifest.stages[1].graph
    (path,) = bundle.folder.glob(f"engines/*/{graph.name}.plan")
    whole = path.read_bytes()
    for _, change in tries((path.name, change) for change in CHANGES):
        CHANGES[change](path, whole)
        with pytest.raises(BundleError, match=f"{path.name} (is|has|was)"):
            backend.load(graph)
        assert module.opened == []
        restore(path, whole)
    backend.load(graph)
