"""Backends as values, and their options as text."""

import pickle
from pathlib import Path

import pytest

from adacache_engines.backends import BACKENDS, backend_from_texts, default_backend
from adacache_engines.bundle.files import open_bundle
from adacache_engines.contract.options import options_of
from adacache_engines.errors import InputError
from adacache_engines.onnxruntime.backend import OnnxRuntime, OrtBackend
from adacache_engines.tensorrt.backend import TensorRT


def test_the_default_runs_everywhere() -> None:
    assert BACKENDS[default_backend()] == OnnxRuntime()


@pytest.mark.parametrize("name", BACKENDS)
def test_a_value_travels_to_another_process(name: str) -> None:
    value = BACKENDS[name]
    assert pickle.loads(pickle.dumps(value)) == value
    assert hash(value) == hash(pickle.loads(pickle.dumps(value)))


@pytest.mark.parametrize("name", BACKENDS)
def test_every_option_is_described(name: str) -> None:
    for option in options_of(BACKENDS[name]).values():
        assert option.help[0].islower()
        assert "default" in option.help
        assert len(option.help.split()) > 5


def test_a_value_opens_a_bundle(bundle_folder: Path) -> None:
    opened = OnnxRuntime(threads=2).open(open_bundle(bundle_folder))
    assert isinstance(opened, OrtBackend)
    assert opened.device.kind == "cpu"


def test_texts_become_a_value() -> None:
    assert backend_from_texts("onnxruntime", {}) == OnnxRuntime()
    given = {"provider": "cuda", "threads": "3", "rewrites": "false"}
    assert backend_from_texts("onnxruntime", given) == OnnxRuntime(provider="cuda", threads=3, rewrites=False)
    given = {"weight_budget": "4000", "cuda_graphs": "false"}
    assert backend_from_texts("tensorrt", given) == TensorRT("tensorrt", cuda_graphs=False, weight_budget=4 * 10**9)
    assert backend_from_texts("tensorrt-rtx", {}) == TensorRT("tensorrt-rtx")


@pytest.mark.parametrize(
    ("name", "texts", "message"),
    [
        ("trt", {}, "backend 'trt' is unknown; known: onnxruntime, tensorrt-rtx, tensorrt"),
        ("tensorrt", {"provider": "cuda"}, "backend tensorrt has no option 'provider'; it has cuda_graphs, weight_bud"),
        ("onnxruntime", {"weight_budget": "1"}, "backend onnxruntime has no option 'weight_budget'; it has provider"),
        ("tensorrt", {"library": "tensorrt-rtx"}, "no option 'library'"),
        ("onnxruntime", {"threads": "-1"}, "threads of backend onnxruntime: '-1' is not a whole number of 0 or more"),
        ("onnxruntime", {"provider": "gpu"}, "provider of backend onnxruntime: 'gpu' is unknown; known: cpu, cuda"),
        ("tensorrt", {"cuda_graphs": "1"}, "cuda_graphs of backend tensorrt: '1' is neither true nor false"),
    ],
)
def test_texts_that_are_refused(name: str, texts: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        backend_from_texts(name, texts)


def test_values_that_are_refused() -> None:
    with pytest.raises(InputError, match="-1 threads are not possible"):
        OnnxRuntime(threads=-1)
    with pytest.raises(InputError, match="a weight budget of -5 bytes is not possible"):
        TensorRT(weight_budget=-5)
    with pytest.raises(InputError, match="library 'trt' is unknown; known: tensorrt-rtx, tensorrt"):
        TensorRT("trt")  # type: ignore[arg-type]
