"""Every front end takes every backend's options, and a budget for weights reaches the backend that it opens."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adacache_engines.backends import BACKENDS
from adacache_engines.bundle.files import Bundle, open_bundle
from adacache_engines.contract.engine import Backend
from adacache_engines.contract.fake import FakeBackend
from adacache_engines.contract.options import option, whole_number
from adacache_engines.onnxruntime.backend import OnnxRuntime
from adacache_engines.tensorrt.backend import TensorRT
from adacache_export.writing.triton_repository import config_pbtxt
from adacache_runtime.commands import run
from adacache_runtime.commands.options import opening_from_texts
from adacache_runtime.pipeline import Pipeline
from adacache_serve.commands import options, serve
from adacache_serve.settings import Settings
from adacache_serve.triton import config
from adacache_tune.commands import calibrate, compare, profile
from adacache_tune.profiling import backends as profiled
from tests.helpers.model.experts import LOW, Watched, functions_of_experts, two_experts
from tests.helpers.model.fake_model import SIZE, captions, functions, write_bundle

BUDGET_MB = 4000
WANTED = TensorRT("tensorrt-rtx", weight_budget=BUDGET_MB * 10**6)
GIVEN = ["--backend", "tensorrt-rtx", "--weight-budget", str(BUDGET_MB)]
TEXTS = {"backend": "tensorrt-rtx", "weight_budget": str(BUDGET_MB)}
COMMANDS = {"run": run, "serve": serve, "compare": compare, "calibrate": calibrate, "profile": profile}


class OpenedError(Exception):
    """A backend was opened."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[TensorRT]:
    """Values of TensorRT that were opened: each raises :class:`OpenedError`."""
    found: list[TensorRT] = []

    def opens(value: TensorRT, _bundle: Bundle) -> Backend:
        found.append(value)
        raise OpenedError

    monkeypatch.setattr(TensorRT, "open", opens)
    return found


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "fake.adacache").folder


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    given = captions()
    np.savez(tmp_path / "text.npz", embeddings=given.embeddings, mask=given.mask)
    frames, height, width = SIZE
    return ["--text-embeddings", str(tmp_path / "text.npz"), "--size", f"{width}x{height}", "--frames", str(frames)]


def test_run(bundle: Path, inputs: list[str], tmp_path: Path, opened: list[TensorRT]) -> None:
    with pytest.raises(OpenedError):
        run.main([str(bundle), *inputs, *GIVEN, "--trace", str(tmp_path / "trace.json")])
    assert opened == [WANTED]


@pytest.mark.parametrize("command", [compare, calibrate])
def test_compare_and_calibrate(command: Any, bundle: Path, tmp_path: Path, opened: list[TensorRT]) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(f"boat {number}" for number in range(6)))
    goal = ["--policies", "adacache-fast"] if command is compare else ["--target-speedup", "1.5"]
    with pytest.raises(OpenedError):
        command.main([str(bundle), "--prompts", str(tmp_path / "prompts.txt"), *goal, *GIVEN])
    assert opened == [WANTED]


def test_profile(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[object] = []

    def target(_bundle: Bundle, chosen: TensorRT, _sizes: object) -> None:
        found.append(chosen)
        raise OpenedError

    monkeypatch.setattr(profiled, "TrtTarget", target)
    monkeypatch.setattr(profile, "use_library", lambda _backends: None)
    for choice in (GIVEN, ["--compare", "tensorrt-rtx,onnxruntime", *GIVEN[2:]]):
        with pytest.raises(OpenedError):
            profile.main([str(bundle), *choice])
    assert found == [WANTED, WANTED]


def serve_settings(arguments: list[str]) -> Settings:
    return options.settings_of(options.parser_of().parse_args(arguments))


def _models_in_a_worker(settings: Settings, open_models: Callable[[Settings], object], told: Connection) -> None:
    def opens(value: TensorRT, _bundle: Bundle) -> Backend:
        told.send(value)
        return FakeBackend(functions())

    TensorRT.open = opens  # type: ignore[assignment,method-assign]
    open_models(settings)


def test_serve_in_the_worker_s_process(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "check_servable", lambda *_: None)
    settings = serve_settings([str(bundle), *GIVEN, "--text-device", "cpu"])
    assert (settings.backend, settings.text_device) == (WANTED, "cpu")
    spawn = get_context("spawn")
    here, there = spawn.Pipe()
    opening = partial(_open_fake, (bundle,))
    process = spawn.Process(target=_models_in_a_worker, args=(settings, opening, there))
    process.start()
    there.close()
    assert here.recv() == WANTED
    process.join()
    assert process.exitcode == 0


def _open_fake(folders: tuple[Path, ...], settings: Settings) -> object:
    serve.check_servable = lambda *_: None  # type: ignore[assignment] # the fake model takes embeddings only
    return serve.open_models(folders, settings)


def test_triton(bundle: Path) -> None:
    given = {**TEXTS, "text_device": "cpu", "embedding_cache": "/cache", "in_flight": "2"}
    settings = config.settings_of(given)
    assert settings == Settings(Path(), backend=WANTED, text_device="cpu", embedding_cache=Path("/cache"), in_flight=2)
    assert config.settings_of({"expert_offload": "true", "in_flight": "2"}).places == 1
    assert config.settings_of({}) == Settings(Path())
    text = config_pbtxt(open_bundle(bundle).manifest, [])
    assert '"threads", value { string_value: "0" }' in text
    assert '"expert_offload", value { string_value: "false" }' in text
    assert "# threads: number of threads" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray warns of its own code
def test_ray(monkeypatch: pytest.MonkeyPatch, opened: list[TensorRT], bundle: Path) -> None:
    pytest.importorskip("ray", reason="ray[serve] is not installed")
    from tools.examples import ray_serve

    def application(folder: str, _replicas: int, _gpus: float, open_pipeline: Callable[[str], object]) -> object:
        return open_pipeline(folder)

    monkeypatch.setattr(ray_serve, "application", application)
    with pytest.raises(OpenedError):
        ray_serve.app({"bundle": str(bundle), "replicas": "2", **TEXTS})
    assert opened == [WANTED]


# an option of the pipeline that every front end has


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Backends that were opened instead of ONNX Runtime."""
    found: list[Watched] = []

    def opens(_value: OnnxRuntime, _bundle: Bundle) -> Backend:
        found.append(Watched(functions_of_experts()))
        return found[-1]

    monkeypatch.setattr(OnnxRuntime, "open", opens)
    return found


def test_one_expert_at_a_time_by_every_front_end(
    inputs: list[str], tmp_path: Path, backends: list[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each front end hands the option on to the pipeline, which loads the engines of the first expert."""
    folder = write_bundle(tmp_path / "experts.adacache", **two_experts()).folder
    trace = tmp_path / "trace.json"
    assert run.main([str(folder), *inputs, "--expert-offload", "--trace", str(trace)]) == 0
    assert ["switch_ms" in call for call in json.loads(trace.read_text())["calls"]].count(True) == 1
    monkeypatch.setattr(serve, "check_servable", lambda *_: None)
    serve.open_models((folder,), serve_settings([str(folder), "--expert-offload"]))
    serve.open_models((folder,), config.settings_of({"expert_offload": "true"}))
    Pipeline.open(folder, **opening_from_texts({"expert_offload": "true"}))  # Ray Serve
    for backend in backends[1:]:
        assert backend.experts() == set()  # nobody holds the pipeline
        assert not [name for name in backend.loads if name.startswith(LOW)]
    assert len(backends) == 4
    assert not serve_settings([str(folder)]).expert_offload


@pytest.mark.parametrize("name", COMMANDS)
def test_a_model_of_one_transformer_is_refused(
    name: str,
    bundle: Path,
    inputs: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    backends: list[Watched],
) -> None:
    """In one line, before a backend is opened."""
    monkeypatch.setattr(serve, "check_servable", lambda *_: None)
    monkeypatch.setattr(profile, "use_library", lambda _backends: None)
    (tmp_path / "prompts.txt").write_text("\n".join(f"boat {number}" for number in range(6)))
    prompts = ["--prompts", str(tmp_path / "prompts.txt")]
    options = {
        "run": [*inputs, "--trace", str(tmp_path / "trace.json")],
        "compare": [*prompts, "--policies", "interval-2"],
        "calibrate": [*prompts, "--target-speedup", "1.5"],
    }
    assert COMMANDS[name].main([str(bundle), *options.get(name, []), "--expert-offload"]) == 1
    error = capsys.readouterr().err
    assert error == (
        f"adacache-{name}: {bundle} has one transformer, which has to be loaded all the time; --expert-offload is for "
        "models of two experts: leave it out\n"
    )
    assert backends == []


# a backend of somebody else's


@dataclass(frozen=True)
class MadeUp:
    """A backend that is registered by one entry."""

    lanes: int = option(1, "number of lanes that the made-up chip has (default: 1)", "L", whole_number)
    sparkle: bool = option(False, "make it sparkle (default: no)")
    log: tuple[list[Any], ...] = ()

    def open(self, bundle: Bundle) -> Backend:
        self.log[0].append((self.lanes, self.sparkle, bundle.folder.name))
        return FakeBackend(functions())


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setitem(BACKENDS, "made-up", MadeUp(log=(found,)))
    return found


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        COMMANDS[name].main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for told in (
        "--backend {onnxruntime,tensorrt-rtx,tensorrt,made-up}",
        "--provider {cpu,cuda,tensorrt}",
        "--threads N",
        "--weight-budget MB",
        "--no-cuda-graphs",
        "--expert-offload",
        "--lanes L",
        "made-up: number of lanes that the made-up chip has",
        "--sparkle",
    ):
        assert told in text


def test_a_made_up_backend_runs(bundle: Path, inputs: list[str], tmp_path: Path, log: list[Any]) -> None:
    trace = tmp_path / "trace.json"
    command = [str(bundle), *inputs, "--steps", "2", "--trace", str(trace), "--backend", "made-up"]
    assert run.main([*command, "--lanes", "3", "--sparkle"]) == 0
    assert log == [(3, True, "fake.adacache")]
    assert len(json.loads(trace.read_text())["calls"]) == 2


@pytest.mark.usefixtures("log")
def test_an_option_of_another_backend_is_refused(
    bundle: Path, inputs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main([str(bundle), *inputs, "--backend", "made-up", "--weight-budget", "4"]) == 1
    assert capsys.readouterr().err == (
        "adacache-run: backend made-up has no option 'weight_budget'; it has lanes, sparkle: "
        "leave the option out, or choose another backend\n"
    )


@pytest.mark.parametrize("given", [["--threads", "many"], ["--provider", "gpu"], ["--backend", "nothing"]])
def test_values_that_no_backend_takes_are_wrong_usage(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["bundle", *given])
    assert ended.value.code == 2
    assert given[1] in capsys.readouterr().err
