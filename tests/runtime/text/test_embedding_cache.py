"""What a text encoder made of a prompt, kept on the disk; and that the encoder is there for no longer than it runs."""

import logging
import multiprocessing
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save

from adacache_engines.bundle.files import open_bundle, read_manifest
from adacache_engines.bundle.manifest import FileEntry, Graph, Manifest
from adacache_engines.contract.device import HostDevice
from adacache_engines.errors import InputError
from adacache_engines.onnxruntime.backend import OnnxRuntime, OrtBackend
from adacache_engines.tensorrt.backend import TensorRT
from adacache_runtime.commands.run import main as run
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.text.device import open_text_backend
from adacache_runtime.text.embedding_cache import EmbeddingCache
from adacache_runtime.text.encoder import encode
from adacache_runtime.text.prompts import tokenize
from adacache_runtime.text.tokenizer import Tokens

PROMPTS = ("a red circle", "a blue square moves left fast")


@pytest.fixture(scope="module")
def manifest(decoding_folder: Path) -> Manifest:
    return read_manifest(decoding_folder)


@pytest.fixture
def cache(tmp_path: Path, manifest: Manifest) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "deep" / "cache", manifest)


def tokens(*ids: int, length: int = 120) -> Tokens:
    row = np.zeros((1, length), np.int64)
    row[0, : len(ids)] = ids
    return Tokens(row, np.arange(length)[None] < len(ids))


def states(manifest: Manifest, seed: int = 0) -> NDArray[np.float32]:
    shape = (manifest.text.max_length, manifest.text.width)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_what_was_put_is_there(cache: EmbeddingCache, manifest: Manifest) -> None:
    assert cache.get(tokens(3, 4)) is None
    cache.put(tokens(3, 4), states(manifest))
    got = cache.get(tokens(3, 4))
    assert got is not None
    assert got.tobytes() == states(manifest).tobytes()
    assert cache.get(tokens(3)) is None
    assert cache.get(tokens(3, 4, 0)) is None  # the same ids, one of them no padding


def changed(manifest: Manifest, **text: Any) -> Manifest:
    return manifest.model_copy(update={"text": manifest.text.model_copy(update=text)})


def test_a_key_is_all_that_states_depend_on(tmp_path: Path, manifest: Manifest) -> None:
    path = EmbeddingCache(tmp_path, manifest).path(tokens(3))
    weights, graph = manifest.part_weights["text_encoder"], manifest.text.encoder_stages[1].path
    other = FileEntry(sha256="0" * 64, nbytes=1)
    for different in (
        manifest.model_copy(update={"files": {**manifest.files, weights: other}}),
        manifest.model_copy(update={"files": {**manifest.files, graph: other}}),
        changed(manifest, precision="bf16"),
        changed(manifest, encoder_stages=manifest.text.encoder_stages[:-1]),
    ):
        assert EmbeddingCache(tmp_path, different).path(tokens(3)) != path
    same = manifest.model_copy(update={"files": {**manifest.files, manifest.weights: other}, "producer": "other"})
    assert EmbeddingCache(tmp_path, same).path(tokens(3)) == path  # another model with this encoder


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return (exec, ("raise AssertionError('it was unpickled')",))


def spoilt(data: bytes) -> dict[str, bytes]:
    arrays = load(data)
    flipped = bytearray(data)
    flipped[-5] ^= 1
    return {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "a flipped bit": bytes(flipped),
        "a pickle": pickle.dumps(Evil()),
        "no digest": save({"states": arrays["states"]}),
        "another shape": save({**arrays, "states": arrays["states"][:-1]}),
        "another type": save({**arrays, "states": arrays["states"].astype(np.float64)}),
    }


@pytest.mark.parametrize("case", spoilt(save({"states": np.ones((2, 2)), "sha256": np.ones(32)})))
def test_a_damaged_file_is_not_used_and_written_anew(
    case: str, cache: EmbeddingCache, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    path = cache.path(tokens(3))
    cache.put(tokens(3), states(manifest))
    path.write_bytes(spoilt(path.read_bytes())[case])
    with caplog.at_level(logging.WARNING):
        assert cache.get(tokens(3)) is None
    assert str(path) in caplog.text
    cache.put(tokens(3), states(manifest))
    assert cache.get(tokens(3)) is not None


def test_a_file_under_another_name_is_not_used(cache: EmbeddingCache, manifest: Manifest) -> None:
    cache.put(tokens(3), states(manifest))
    cache.path(tokens(3)).rename(cache.path(tokens(4)))
    assert cache.get(tokens(4)) is None


def write_often(folder: Path, manifest: Manifest, count: int) -> None:
    for _ in range(count):
        EmbeddingCache(folder, manifest).put(tokens(3), states(manifest))


def test_several_write_at_once(tmp_path: Path, manifest: Manifest) -> None:
    """A reader sees nothing or all of it, whatever the writers are at."""
    cache = EmbeddingCache(tmp_path, manifest)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(tmp_path, manifest, 50)) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = []
    while any(writer.is_alive() for writer in writers):
        seen.append(cache.get(tokens(3)))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    found = [values for values in [*seen, cache.get(tokens(3))] if values is not None]
    assert found
    assert all(values.tobytes() == states(manifest).tobytes() for values in found)
    assert [path.name for path in tmp_path.iterdir()] == [cache.path(tokens(3)).name]


def test_a_folder_that_cannot_be(tmp_path: Path, manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"embedding cache .*file cannot be made"):
        EmbeddingCache(tmp_path / "file", manifest)
    cache = EmbeddingCache(tmp_path / "gone", manifest)
    (tmp_path / "gone").rmdir()
    with caplog.at_level(logging.WARNING):
        cache.put(tokens(3), states(manifest))
    assert "embeddings are not kept" in caplog.text
    assert cache.get(tokens(3)) is None


# the encoder


class Watched(OrtBackend):
    """Knows which engines it loaded, and which of them there are."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.loaded: list[str] = []
        self.alive: list[weakref.ref[Any]] = []
        self.most = 0

    def load(self, graph: Graph) -> Any:
        engine = super().load(graph)
        self.loaded.append(graph.name)
        self.alive.append(weakref.ref(engine))
        self.most = max(self.most, self.count())
        return engine

    def count(self) -> int:
        return sum(engine() is not None for engine in self.alive)


ENCODER = ["encoder.embed", "encoder.00", "encoder.01", "encoder.final"]


def request(*prompts: str, **changes: Any) -> Request:
    return Request(prompts=prompts, steps=2, seed=1, **changes)


def test_one_graph_of_the_encoder_at_a_time_and_none_afterwards(decoding_folder: Path) -> None:
    watched = Watched(decoding_folder)
    pipeline = Pipeline(open_bundle(decoding_folder), OrtBackend(decoding_folder), text_backend=watched)
    pipeline.generate(request(*PROMPTS, negative_prompts=("ugly",)))
    assert watched.loaded == ENCODER
    assert watched.most == 1
    assert watched.count() == 0


def test_a_prompt_does_not_depend_on_those_beside(decoding_folder: Path) -> None:
    bundle, backend = open_bundle(decoding_folder), OrtBackend(decoding_folder)
    (both,) = encode(bundle.manifest.text, backend, [tokenize(bundle, PROMPTS)])
    for prompt, expected in zip(PROMPTS, both, strict=True):
        (alone,), (again,) = encode(bundle.manifest.text, backend, [tokenize(bundle, [prompt])] * 2)
        np.testing.assert_array_equal(alone, expected)
        np.testing.assert_array_equal(again, expected)
    assert np.abs(both[0] - both[1]).max() > 0.1


def test_the_cache_saves_the_encoder(decoding_folder: Path, tmp_path: Path) -> None:
    bundle, plain = open_bundle(decoding_folder), Pipeline.open(decoding_folder)

    def generate(*prompts: str) -> tuple[NDArray[np.float32], list[str]]:
        """With a pipeline of its own."""
        watched = Watched(decoding_folder)
        backend = OrtBackend(decoding_folder)
        pipeline = Pipeline(bundle, backend, text_backend=watched, embedding_cache=tmp_path)
        return pipeline.generate(request(*prompts, negative_prompts=("ugly",))).latents, watched.loaded

    first, loaded = generate(PROMPTS[0])
    assert loaded == ENCODER
    assert len(list(tmp_path.iterdir())) == 2  # the prompt, and the negative one
    second, loaded = generate(PROMPTS[0])
    assert loaded == []
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, plain.generate(request(PROMPTS[0], negative_prompts=("ugly",))).latents)
    both, loaded = generate(*PROMPTS)
    assert loaded == ENCODER
    np.testing.assert_array_equal(both, plain.generate(request(*PROMPTS, negative_prompts=("ugly",))).latents)
    _, loaded = generate(*PROMPTS[::-1])
    assert loaded == []


def test_no_memory_is_planned_for_an_encoder_that_is_elsewhere(decoding_folder: Path, tmp_path: Path) -> None:
    bundle, backend = open_bundle(decoding_folder), OrtBackend(decoding_folder)
    asked = request(PROMPTS[0])
    here = Pipeline(bundle, backend, embedding_cache=tmp_path)
    largest = max(graph.weights_nbytes or 0 for graph in bundle.manifest.text.encoder_stages)
    assert here.prepare(asked).memory.encoder == largest > 0
    assert Pipeline(bundle, backend, text_backend=OrtBackend(decoding_folder)).prepare(asked).memory.encoder == 0
    here.generate(asked)
    assert here.prepare(asked).memory.encoder == 0
    assert here.prepare(request("a blue circle")).memory.encoder == largest


class Gpu:
    """A backend whose device is not the host."""

    device = object()


def test_the_device_of_the_encoder(decoding_folder: Path) -> None:
    bundle, here, gpu = open_bundle(decoding_folder), OrtBackend(decoding_folder), Gpu()
    assert open_text_backend(bundle, OnnxRuntime(), here, "backend") is here
    assert open_text_backend(bundle, OnnxRuntime(), here, "cpu") is here
    assert open_text_backend(bundle, TensorRT(), gpu, "backend") is gpu  # type: ignore[arg-type,comparison-overlap]
    for chosen in (TensorRT(), OnnxRuntime(provider="cuda", threads=2)):
        there = open_text_backend(bundle, chosen, gpu, "cpu")  # type: ignore[arg-type]
        assert isinstance(there, OrtBackend)
        assert isinstance(there.device, HostDevice)
    with pytest.raises(InputError, match="text device 'gpu' is unknown; known: backend, cpu"):
        open_text_backend(bundle, OnnxRuntime(), here, "gpu")  # type: ignore[arg-type]


def test_on_the_command_line(decoding_folder: Path, tmp_path: Path) -> None:
    command = [str(decoding_folder), "--prompt", "a red circle", "--steps", "2", "--text-device", "cpu"]
    outputs = [tmp_path / "cold.npz", tmp_path / "warm.npz"]
    for output in outputs:
        assert run([*command, "--embedding-cache", str(tmp_path / "cache"), "--save-latents", str(output)]) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 2
    cold, warm = (np.load(output)["latents"] for output in outputs)
    np.testing.assert_array_equal(cold, warm)
