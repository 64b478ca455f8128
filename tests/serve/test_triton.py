"""A bundle in Triton's model repository, and the real Triton server on it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.bundle.files import open_bundle
from adacache_engines.contract.fake import FakeBackend
from adacache_engines.errors import InputError
from adacache_export.commands.export import main
from adacache_export.writing.triton_repository import config_pbtxt
from adacache_runtime.caching.presets import PRESETS
from adacache_runtime.events import Called
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.trace import read_trace
from adacache_serve.device.video_file import write_events
from adacache_serve.orders.schema import CreateVideo
from adacache_serve.triton.config import INPUTS, settings_of
from adacache_serve.triton.model import visible_device
from tests.helpers.serving.fake_server import functions, write_model
from tests.helpers.serving.triton_server import Client, triton
from tests.helpers.waiting import until

# the model of the repository, but for the engines
FAKE = """
from tests.helpers.serving import fake_server
from adacache_serve.triton import model as triton


class TritonPythonModel(triton.TritonPythonModel):
    open_models = staticmethod(fake_server.open_models)
"""


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "fake.adacache"
    write_model(folder, conditioned=True)
    return folder


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("triton")
    assert main([str(bundle), "--triton-repository", str(folder / "repository")]) == 0
    (folder / "repository" / "fake" / "1" / "model.py").write_text(FAKE)
    with triton(folder / "repository", folder, "fake") as client:
        yield client


def made_alone(pipeline: Pipeline, output: Path, **asked: Any) -> tuple[bytes, list[int]]:
    """Make a video in this process; return it, and the calls that were computed."""
    events = write_events(pipeline.prepare(Request(**asked)), output)
    records = [event.record for event in events if isinstance(event, Called)]
    return output.read_bytes(), [record.call for record in records if record.computed]


def alone(bundle: Path, output: Path, **asked: Any) -> tuple[bytes, list[int]]:
    return made_alone(Pipeline(open_bundle(bundle), FakeBackend(functions())), output, **asked)


def test_progress_comes_call_by_call_and_then_the_video_of_the_runtime(
    client: Client, bundle: Path, tmp_path: Path
) -> None:
    asked = {"seed": 5, "steps": 4, "sampler": "euler"}
    answer = client.ask(prompt="a slow boat", policy="interval-2", **asked).whole()
    output, policy = tmp_path / "a.mp4", PRESETS["interval-2"]
    video, computed = alone(bundle, output, prompts=("a slow boat",), policy=policy, **asked)
    calls = [record for record in answer.progress if "call" in record]
    assert [(record["call"], record["of"]) for record in calls] == [(call, 4) for call in range(1, 5)]
    assert [record["call"] for record in calls if record["computed"]] == computed
    assert answer.progress[-1]["frames"] == answer.progress[-1]["of"]
    assert (answer.error, answer.media_type, answer.seed) == (None, "video/mp4", 5)
    assert answer.video == video
    (tmp_path / "trace.json").write_text(json.dumps(answer.trace))
    assert read_trace(tmp_path / "trace.json").computed() == computed


def test_two_at_once_take_turns_and_are_what_each_is_alone(client: Client, bundle: Path, tmp_path: Path) -> None:
    long, short = client.ask(prompt="slow", seed=1, steps=15), client.ask(prompt="boat slow", seed=2, steps=4)
    short_answer = short.whole()
    assert not long.answer.ended
    long_answer = long.whole()
    assert short_answer.video == alone(bundle, tmp_path / "b.mp4", prompts=("boat slow",), seed=2, steps=4)[0]
    assert long_answer.video == alone(bundle, tmp_path / "a.mp4", prompts=("slow",), seed=1, steps=15)[0]


def test_what_is_cancelled_stops_between_two_calls(client: Client) -> None:
    for _ in range(5):  # more than are made at once: places are given back
        asking = client.ask(prompt="slow", steps=900)
        while len(asking.answer.progress) < 2:
            asking.next()
        asking.cancel()
    answer = client.ask(prompt="boat").whole()
    assert answer.video is not None


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"policy": "sometimes"}, "policy: policy 'sometimes' is unknown; choose one of "),
        ({"size": "13x13x13"}, "size: size '13x13x13' is unknown"),
        ({"steps": 0}, "steps: Input should be greater than or equal to 1"),
        ({"sampler": "heun"}, "sampler: sampler heun is not possible with this model; choose one of rflow, euler"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"prompt": " "}, "prompt: "),
        ({"prompt": None, "steps": 2}, "prompt: Field required"),
        ({"prompt": b"\xff"}, "prompt: the text is not UTF-8"),
        ({"image": b"no picture"}, "image: the image cannot be decoded"),
        ({"negative_prompt": "dog", "steps": 3}, "negative_prompt: "),
        ({"prompt": "break"}, "the fake encoder breaks at this prompt"),
    ],
)
def test_an_error_names_the_field(client: Client, fields: dict, error: str) -> None:
    given = {name: value for name, value in {"prompt": "boat", **fields}.items() if value is not None}
    answer = client.ask(**given).whole()
    assert answer.video is None
    assert error in (answer.error or "")


def test_the_death_of_the_worker_is_an_error_of_what_it_makes(client: Client) -> None:
    beside = client.ask(prompt="slow", steps=900)
    beside.next()
    assert "send the request again" in (client.ask(prompt="die").whole().error or "")
    assert "send the request again" in (beside.whole().error or "")
    assert until(lambda: client.ask(prompt="boat").whole().video)


def test_a_video_begins_with_a_picture(client: Client, bundle: Path, tmp_path: Path) -> None:
    first = client.ask(prompt="boat", frames=1, seed=3).whole()
    assert first.media_type == "image/png"
    begun = client.ask(prompt="boat", image=first.video, seed=3, steps=2).whole()
    assert begun.error is None
    assert begun.video != alone(bundle, tmp_path / "a.mp4", prompts=("boat",), seed=3, steps=2)[0]


def test_the_model_is_ready_after_its_warm_up(client: Client) -> None:
    assert client.get("/v2/health/ready") == 200
    assert client.get("/v2/models/fake/versions/1/ready") == 200
    assert client.get("/v2/models/fake/versions/2/ready") != 200


@pytest.mark.slow
def test_the_repository_as_it_is_written_serves_a_bundle(decoding_folder: Path, tmp_path: Path) -> None:
    """A real fp16 Latte with T5 and VAE, without fakes."""
    assert main([str(decoding_folder), "--triton-repository", str(tmp_path / "repository")]) == 0
    asked = {"seed": 7, "steps": 3}
    with triton(tmp_path / "repository", tmp_path, decoding_folder.name) as client:
        answer = client.ask(prompt="a red circle", negative_prompt="ugly", policy="interval-2", **asked).whole()
    prompts = {"prompts": ("a red circle",), "negative_prompts": ("ugly",), "policy": PRESETS["interval-2"]}
    video, computed = made_alone(Pipeline.open(decoding_folder), tmp_path / "a.mp4", **prompts, **asked)
    assert answer.error is None
    assert answer.video == video
    assert [record["call"] for record in answer.progress if record.get("computed")] == computed


def test_versions_are_added_whole_and_never_changed(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, repository = tmp_path / "boats.adacache", tmp_path / "models" / "repository"
    shutil.copytree(bundle, source)
    export = [str(source), "--triton-repository", str(repository)]
    assert main(export) == 0
    model = repository / "boats"
    assert sorted(path.name for path in repository.iterdir()) == ["boats"]
    assert sorted(path.name for path in model.iterdir()) == ["1", "config.pbtxt"]
    assert tree(model / "1" / "bundle") == tree(source)
    open_bundle(model / "1" / "bundle")
    first = tree(model)
    assert main(export) == 0
    assert "was there" in capsys.readouterr().out
    assert tree(model) == first
    shutil.rmtree(source)
    write_model(source)  # not conditioned, so another
    assert main(export) == 0
    assert "left as it is" not in capsys.readouterr().out
    assert sorted(path.name for path in model.iterdir()) == ["1", "2", "config.pbtxt"]
    assert tree(model / "2" / "bundle") == tree(source)
    assert {name: content for name, content in tree(model).items() if not name.startswith("2/")} == first
    assert main([*export, "--triton-device", "0", "--triton-device", "1"]) == 0
    assert "config.pbtxt was left as it is" in capsys.readouterr().out
    assert (model / "config.pbtxt").read_bytes() == first["config.pbtxt"]


def test_a_copy_where_there_are_no_links(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([str(bundle), "--triton-repository", str(tmp_path / "linked")]) == 0
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "another device")))
    assert main([str(bundle), "--triton-repository", str(tmp_path / "copied")]) == 0
    assert tree(tmp_path / "linked") == tree(tmp_path / "copied")
    manifests = [tmp_path / name / "fake" / "1" / "bundle" / "manifest.json" for name in ("linked", "copied")]
    assert [path.samefile(bundle / "manifest.json") for path in manifests] == [True, False]


def test_a_failure_leaves_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "another device")))
    monkeypatch.setattr(shutil, "copy", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert main([str(bundle), "--triton-repository", str(repository)]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert list(repository.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "options", "error"),
    [
        (lambda folder: (folder / "encoder.onnx").write_bytes(b"another"), [], "encoder.onnx has 7 bytes instead of"),
        (lambda folder: (folder / "manifest.json").unlink(), [], "is not a bundle"),
        (lambda _: None, ["--triton-device", "gpu"], "--triton-device gpu is not possible"),
        (lambda _: None, ["--force"], "leave --force out"),
        (lambda _: None, ["--backend", "tensorrt"], "leave --backend out"),
    ],
)
def test_what_is_refused_writes_nothing(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, options: list[str], error: str
) -> None:
    shutil.copytree(bundle, tmp_path / "fake")
    change(tmp_path / "fake")
    assert main([str(tmp_path / "fake"), "--triton-repository", str(tmp_path / "repository"), *options]) == 1
    assert error in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "repository").exists()


def test_the_configuration_is_one_that_triton_reads(bundle: Path) -> None:
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

    manifest = open_bundle(bundle).manifest

    def read(devices: list[str]) -> Any:
        return text_format.Parse(config_pbtxt(manifest, devices), ModelConfig())

    plain = read([])
    assert plain.model_transaction_policy.decoupled
    assert [given.name for given in plain.input if not given.optional] == ["prompt"]
    assert [group.kind for group in plain.instance_group] == [ModelInstanceGroup.KIND_CPU]
    gpus = read(["0", "2"])
    assert list(gpus.instance_group[0].gpus) == [0, 2]
    assert gpus.instance_group[0].kind == ModelInstanceGroup.KIND_GPU
    assert gpus.parameters["provider"].string_value == "cuda"
    settings_of({name: value.string_value for name, value in gpus.parameters.items()})


def test_triton_needs_no_web_server() -> None:
    code = (
        "import sys, adacache_serve.triton.model; print({'fastapi', 'uvicorn', 'sqlalchemy', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_field_of_an_order_is_an_input() -> None:
    elsewhere = {"model", "deadline_seconds"}  # the model's name, and Triton's own timeout
    assert set(CreateVideo.model_fields) == {*INPUTS, *elsewhere}


@pytest.mark.parametrize(
    ("given", "error"), [({"speed": "1"}, "'speed'"), ({"in_flight": "0"}, "in_flight"), ({"threads": "x"}, "threads")]
)
def test_a_wrong_parameter_is_named(given: dict[str, str], error: str) -> None:
    with pytest.raises(InputError, match=error):
        settings_of(given)


@pytest.mark.slow
def test_a_gpu_is_counted_among_those_that_triton_sees() -> None:
    assert visible_device(1, None) == "1"
    assert visible_device(1, "5,3") == "3"
