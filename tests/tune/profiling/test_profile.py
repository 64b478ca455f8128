"""``adacache-profile`` on a real bundle: its numbers hang together, its page stands alone, differences are found."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import polygraphy.config
import pytest

from adacache_engines.bundle.files import Bundle
from adacache_engines.contract.fake import FakeBackend
from adacache_engines.onnxruntime import backend as ort
from adacache_engines.passes.graph_pass import GraphPass
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.pipeline import Pipeline
from adacache_tune.commands.engine_progress import engine_progress
from adacache_tune.commands.profile import main
from adacache_tune.profiling import profile as profile_module
from adacache_tune.profiling.bound_runner import bound_runner
from adacache_tune.profiling.subjects import example
from adacache_tune.profiling.timeline import measure_generation
from tests.helpers.model import fake_model

Capture = pytest.CaptureFixture[str]
VIDEO = ["--size", "80x48", "--frames", "17", "--text-length", "6"]
QUICK = ["--iterations", "4", "--warm-up", "1"]
STEPS = 6
USAGE = 2


@pytest.fixture(scope="module")
def folder(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a whole profile was written, with the terminal's table beside it."""
    made = tmp_path_factory.mktemp("profile")
    command = [str(bundle_folder), *VIDEO, *QUICK, "--steps", str(STEPS), "--policy", "interval-2", "--layers"]
    outputs = ["--json", str(made / "profile.json"), "--html", str(made / "profile.html")]
    code = "import sys; from adacache_tune.commands.profile import main; sys.exit(main())"
    words = [sys.executable, "-W", "error", "-c", code, *command, *outputs]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made / "table.txt").write_text(done.stdout)
    (made / "progress.txt").write_text(done.stderr)
    return made


@pytest.fixture(scope="module")
def numbers(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "profile.json").read_text())


def names(bundle: Bundle) -> list[str]:
    return [graph.name for graph in bundle.manifest.graphs()]


# the numbers


def test_every_engine_is_measured(numbers: dict[str, Any], pipeline: Pipeline) -> None:
    engines = {engine["name"]: engine for engine in numbers["engines"]}
    assert list(engines) == names(pipeline.bundle)
    for engine in engines.values():
        assert 0 < engine["median_ms"] <= engine["p95_ms"], engine
        assert engine["load_ms"] > 0
        assert engine["first_ms"] > 0
        assert engine["iterations"] == 4
        assert engine["runner"] == "OnnxrtRunner"
    kinds = {kind: [name for name, engine in engines.items() if engine["kind"] == kind] for kind in ("block", "reuse")}
    assert kinds == {"block": [s.graph.name for s in pipeline.bundle.manifest.stages if s.block], "reuse": ["add"]}


def test_a_generation_adds_up(numbers: dict[str, Any], pipeline: Pipeline) -> None:
    generation = numbers["generation"]
    calls = generation["timeline"]
    computed = [call for call in calls if call["computed"]]
    assert (generation["calls"], generation["computed_calls"]) == (STEPS, len(computed)) == (len(calls), 4)
    for shares in (generation["parts"], generation["stages"]):
        assert sum(entry["share"] for entry in shares.values()) == pytest.approx(1)
    assert sum(part["ms"] for part in generation["parts"].values()) == pytest.approx(generation["engine_ms"])
    assert sum(call["wall_ms"] for call in calls) == pytest.approx(generation["wall_ms"])
    assert 0 <= generation["overhead"] == pytest.approx(1 - generation["engine_ms"] / generation["wall_ms"])
    full_ms = np.mean([call["wall_ms"] for call in computed])
    assert generation["speed_up"] == pytest.approx(STEPS * full_ms / generation["wall_ms"])
    assert generation["efficiency"] == pytest.approx(generation["speed_up"] * 4 / STEPS)
    assert generation["first_call_ms"] > 0
    # every stage is timed at each of its calls, and inside the part that it belongs to
    stages = generation["stages"]
    blocks = [stage.graph.name for stage in pipeline.bundle.manifest.stages if stage.block]
    assert {name: stages[name]["calls"] for name in (*blocks, "add")} == {**dict.fromkeys(blocks, 4), "add": 2}
    assert (stages["text"]["calls"], stages["embed"]["calls"], stages["combine"]["calls"]) == (1, STEPS, STEPS)
    inside = sum(stages[name]["ms"] for name in (*blocks, "add", "subtract"))
    assert inside <= generation["parts"]["blocks"]["ms"]


def test_the_keys_are_those_that_are_documented(numbers: dict[str, Any]) -> None:
    documented = re.findall(r"^    (\w+) {2,}(.*(?:\n {16,}.*)*)", profile_module.__doc__ or "", re.MULTILINE)
    explained = dict(documented)
    assert list(explained) == list(numbers)
    assert numbers["schema_version"] == 1
    for key in ("bundle", "machine", "request", "memory"):
        assert set(numbers[key]) <= set(re.findall(r"\w+", explained[key])), key
    for key, entry in (("engines", numbers["engines"][0]), ("generation", numbers["generation"])):
        assert set(entry) <= set(re.findall(r"\w+", explained[key])), key


def test_what_was_profiled_and_where(numbers: dict[str, Any], pipeline: Pipeline) -> None:
    weights = pipeline.bundle.path(pipeline.bundle.manifest.weights).stat().st_size
    hidden = 2 * 5 * 15 * 96 * 4  # bytes of a prompt's two branches
    memory = numbers["memory"]
    assert memory.pop("latents") > 0
    assert memory == {
        "weights": weights,
        "hidden_states": 3 * hidden,
        "probes": hidden,  # what the stages show, and nobody looks at
        "residuals_model": 4 * 5 * 6 * 10 * 4,  # float32 latents
        "residuals_stack": hidden,
        "residuals_first": 2 * hidden,
        "residuals_block": 6 * hidden,
    }
    assert {key: numbers["request"][key] for key in ("height", "width", "frames", "steps", "policy")} == {
        "height": 48,
        "width": 80,
        "frames": 17,
        "steps": STEPS,
        "policy": "interval-2",
    }
    assert numbers["request"]["sizes"]["text"] == 6
    assert numbers["backend"] == "onnxruntime CPUExecutionProvider"
    assert numbers["machine"]["cores"] > 0
    assert {"polygraphy", "onnxruntime", "numpy"} <= set(numbers["versions"])
    assert numbers["command"].startswith("adacache-profile ")


def test_layers_are_those_of_the_graph_that_runs(numbers: dict[str, Any]) -> None:
    for engine in numbers["engines"]:
        times = [layer["median_ms"] for layer in engine["layers"]]
        assert times
        assert times == sorted(times, reverse=True)
    ops = {engine["name"]: {layer["op"] for layer in engine["layers"]} for engine in numbers["engines"]}
    assert ops["add"] == {"Add"}
    assert "MultiHeadAttention" in ops["spatial.00"]  # the attention by tiles, which the bundle's graph has not


# what people read


class Reader(HTMLParser):
    """Checks that tags close in order, and keeps what is shown."""

    VOID = ("meta", "line", "rect", "circle", "path", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in self.VOID or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        # a circle holds its title
        if tag in self.VOID and (not self.open or self.open[-1] != tag):
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_stands_alone(folder: Path, numbers: dict[str, Any]) -> None:
    text = (folder / "profile.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert not {"src", "href", "srcset", "data", "action", "onload"} & {name for name, _ in reader.attributes}
    for word in ("http:", "https:", "url(", "@import", "<script", "<link", "<img", "<iframe"):
        assert word not in text
    shown = " ".join(reader.words)
    for engine in numbers["engines"]:
        assert engine["name"] in reader.words
    for word in (
        "Schedule",
        "Time line",
        "Time per stage",
        "Memory",
        "Slowest layers",
        numbers["command"],
        "interval-2",
    ):
        assert word in shown, word
    rectangles = re.findall(r'<rect class="(computed|reused)"[^>]*><title>call (\d+): (computed|cached)<', text)
    drawn = {int(call): colour == "computed" for colour, call, _ in rectangles}
    assert drawn == {call["call"]: call["computed"] for call in numbers["generation"]["timeline"]}


def test_what_a_user_names_is_text_on_the_page(bundle_folder: Path, tmp_path: Path) -> None:
    policy = tmp_path / "<b>&.json"
    policy.write_text('{"name": "never"}')
    command = [str(bundle_folder), *VIDEO, "--steps", "1", "--policy", str(policy), *QUICK]
    assert main([*command, "--html", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;" in text


def test_the_table_and_progress(folder: Path, pipeline: Pipeline) -> None:
    table = (folder / "table.txt").read_text()
    lines = table.splitlines()
    for name in names(pipeline.bundle):
        assert any(line.startswith(name) for line in lines), name
    for word in ("median", "p95", "slowest layers", "loop overhead", "speed-up", "efficiency", "4 of 6: 1, 3, 5-6"):
        assert word in table, word
    progress = (folder / "progress.txt").read_text()
    count = len(names(pipeline.bundle))
    last = re.search(rf"^engine {count}/{count}, (.+)$", progress, re.MULTILINE)
    assert last is not None
    assert last[1] in names(pipeline.bundle)
    assert f"step {STEPS}/{STEPS}" in progress
    assert "\x1b" not in progress + table


def test_progress_in_about_ten_lines(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream, engine_progress(68, stream) as progress:
        for index in range(68):
            progress(f"stage {index}")
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 10
    assert lines[-1] == "engine 68/68, stage 67"


# parts of a profile


def test_only_some_engines(bundle_folder: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "p.json"
    command = [str(bundle_folder), *VIDEO, *QUICK, "--only", "add", "spatial.01", "--json", str(out)]
    assert main([*command, "--html", str(tmp_path / "p.html")]) == 0
    made = json.loads(out.read_text())
    assert [engine["name"] for engine in made["engines"]] == ["spatial.01", "add"]
    assert made["engines"][0]["layers"] == []
    assert made["generation"] is None
    assert "--only" in made["generation_skipped"]
    assert "spatial.00" not in capsys.readouterr().out
    assert "Schedule" not in (tmp_path / "p.html").read_text()


def test_a_single_frame_has_no_pairs_to_compare(bundle_folder: Path, tmp_path: Path) -> None:
    command = [str(bundle_folder), "--size", "80x48", "--frames", "1", "--text-length", "3", *QUICK]
    assert main([*command, "--only", "hidden_motion", "embed", "--json", str(tmp_path / "p.json")]) == 0


def test_inputs_are_what_a_stage_takes(pipeline: Pipeline) -> None:
    sizes = {"batch": 2, "patch_frames": 3, "tokens": 4, "text": 5, "samples": 1, "frames": 3, "height": 4, "width": 4}
    for graph in pipeline.bundle.manifest.graphs():
        given = example(graph, {**sizes, "calls": 1, "pairs": 2})
        again = example(graph, {**sizes, "calls": 1, "pairs": 2})
        assert {name: (v.shape, str(v.dtype)) for name, v in given.items()} == {
            spec.name: (spec.shape({**sizes, "calls": 1, "pairs": 2}), spec.dtype) for spec in graph.inputs
        }
        for name, value in given.items():
            np.testing.assert_array_equal(value, again[name])
    given = example(pipeline.bundle.manifest.signals["motion"].graphs["hidden"], {**sizes, "pairs": 2})
    assert (given["earlier"].tolist(), given["later"].tolist()) == ([0, 1], [1, 2])
    graphs = {graph.name: graph for graph in pipeline.bundle.manifest.graphs()}
    timesteps = example(graphs["embed"], sizes)["timestep"]
    assert 0 <= timesteps.min() <= timesteps.max() <= 1000
    assert example(graphs["positions"], sizes)["height"].min() >= 64


def test_stage_times_follow_the_schedule(tmp_path: Path) -> None:
    """On the fake model: every call of every engine is timed, those of the call that warms up are not."""
    backend = FakeBackend(fake_model.functions())
    bundle = fake_model.write_bundle(tmp_path / "bundle")
    request = fake_model.request(steps=7, policy=FixedInterval(every=3), granularity="block")
    timeline = measure_generation(bundle, backend, request)
    computed = timeline.trace.computed()
    assert computed == [1, 4, 7]
    calls = {name: stage.calls for name, stage in timeline.stages.items()}
    assert calls == {
        "text": 1,
        "embed": 7,
        **dict.fromkeys(fake_model.BLOCKS, 3),
        "subtract": 3 * 4,
        "add": 4 * 4,
        "final": 7,
        "guide": 7,
        "combine": 7,
    }
    assert sum(stage.share for stage in timeline.stages.values()) == pytest.approx(1)


def test_bfloat16_goes_through_a_runner_of_our_own() -> None:
    """As float32, since numpy has no bfloat16 that Polygraphy would know."""
    spec = fake_model.spec("hidden", "batch", 3, dtype="bfloat16")
    graph = fake_model.graph("half", (spec,), (spec.model_copy(update={"name": "hidden_out"}),))
    backend = FakeBackend({"half": lambda given: {"hidden_out": given["hidden"] + given["hidden"]}})
    given = example(graph, {"batch": 2})
    assert given["hidden"].dtype == np.float32
    assert (given["hidden"].view(np.uint32) & 0xFFFF == 0).all()  # rounded to bfloat16
    with bound_runner(graph, backend.load, backend.device, {"batch": 2}) as runner:
        assert str(runner.get_input_metadata(use_numpy_dtypes=False)["hidden"].dtype) == "float32"
        results = runner.infer(given)
        assert runner.last_inference_time() > 0
    assert results["hidden_out"].dtype == np.float32
    np.testing.assert_array_equal(results["hidden_out"], 2 * given["hidden"])


@pytest.mark.slow
def test_a_bfloat16_bundle(exported: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "p.json"
    command = [str(exported("bf16")), *VIDEO, *QUICK]
    assert main([*command, "--steps", "2", "--layers", "--json", str(out)]) == 0
    engines = {engine["name"]: engine for engine in json.loads(out.read_text())["engines"]}
    assert engines["spatial.00"]["runner"] == "BoundRunner"
    assert engines["combine"]["runner"] == "OnnxrtRunner"  # float32 whatever the precision
    assert all(engine["layers"] for engine in engines.values())
    capsys.readouterr()
    assert main([*command, "--compare", "onnxruntime-plain,onnxruntime", "--only", "spatial.00"]) == 1
    assert "graphs as exported cannot load" in capsys.readouterr().err


# two backends


def test_the_rewritten_graphs_compute_what_the_exported_ones_do(bundle_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    assert main([str(bundle_folder), *VIDEO, "--compare", "onnxruntime-plain,onnxruntime", "--json", str(out)]) == 0
    made = json.loads(out.read_text())
    assert made["passed"] is True
    assert list(made["backends"]) == ["onnxruntime-plain", "onnxruntime"]
    rows = {(row["name"], row["output"]): row for row in made["differences"]}
    assert all(row["passed"] and row["max_abs"] <= row["allowed_abs"] for row in rows.values())
    assert rows["spatial.00", "hidden_out"]["max_abs"] > 0  # tiles round otherwise
    assert rows["temporal.01", "attn"]["passed"]  # probes, too


@pytest.mark.parametrize(("operator", "found"), [("Sub", "number"), ("Pow", None)])
def test_a_wrong_engine_is_found(
    operator: str,
    found: str | None,
    bundle_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    """A rewrite that breaks one graph; a power of negative numbers gives NaN."""

    def broken(model: onnx.ModelProto) -> onnx.ModelProto:
        model.graph.node[0].op_type = operator
        return model

    wrong = GraphPass("broken", lambda graph, _content: graph.name == "add", broken, lambda _model: [], required=True)
    monkeypatch.setattr(ort, "CPU_PASSES", (wrong,))
    out = tmp_path / "c.json"
    command = [str(bundle_folder), *VIDEO, "--compare", "onnxruntime,onnxruntime-plain", "--json", str(out)]
    assert main([*command, "--only", "add", "subtract", "embed"]) == 1
    shown = capsys.readouterr()
    assert "onnxruntime differs from onnxruntime-plain by more than rounding in add" in shown.err
    assert shown.out.count("DIFFERS") == 1
    made = json.loads(out.read_text())
    assert made["passed"] is False
    (row,) = [row for row in made["differences"] if not row["passed"]]
    assert row["name"] == "add"
    assert (row["max_abs"] is None) == (found is None)


# what cannot be

REFUSED: dict[str, tuple[list[str], str]] = {
    "stage": (["--only", "spatial.77"], "no stage spatial.77; it has text, positions, embed, spatial.00"),
    "no encoder": (["--only", "encoder"], "no stage encoder"),
    "iterations": (["--iterations", "0"], "--iterations 0"),
    "warm-up": (["--warm-up", "-1"], "--warm-up -1"),
    "size": (["--size", "4000x4000"], "height 500, allowed 1 to 240"),
    "steps": (["--steps", "0"], "1 to 1000"),
    "policy": (["--policy", "fastest"], "adacache-fast"),
    "prompt": (["--prompt", "a boat"], "--prompt has a length of its own"),
    "text": (["--text-length", "1000"], "text of length 1000"),
    "no text": (["--text-length", "0"], "text of length 0"),
    "json folder": (["--json", "nowhere/p.json"], "there is no folder nowhere"),
    "html folder": (["--html", "nowhere/p.html"], "there is no folder nowhere"),
    "one": (["--compare", "onnxruntime"], "is not two backends"),
    "same": (["--compare", "onnxruntime,onnxruntime"], "is not two backends"),
    "unknown": (["--compare", "onnxruntime,openvino"], "backend 'openvino' is unknown; known: onnxruntime,"),
    "plain": (["--compare", "onnxruntime,tensorrt-plain"], "backend 'tensorrt-plain' is unknown"),
    "option": (["--compare", "onnxruntime,onnxruntime-plain", "--weight-budget", "4"], "has the option weight_budget"),
    "both": (["--compare", "tensorrt,tensorrt-rtx"], "tensorrt and tensorrt-rtx cannot run in one process"),
    "page": (["--compare", "onnxruntime,onnxruntime-plain", "--html", "c.html"], "can be written with --json"),
    "layers": (["--compare", "onnxruntime,onnxruntime-plain", "--layers"], "can be written with --json"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_runs(
    case: str, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    options, message = REFUSED[case]
    assert main([str(bundle_folder), *VIDEO, *options]) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""
    assert not list(tmp_path.iterdir())


def test_a_prompt_without_a_text_encoder(bundle_folder: Path, capsys: Capture) -> None:
    assert main([str(bundle_folder), "--prompt", "a boat"]) == 1
    assert "no text encoder" in capsys.readouterr().err


def test_no_bundle(tmp_path: Path, capsys: Capture) -> None:
    assert main([str(tmp_path)]) == 1
    assert "is not a bundle" in capsys.readouterr().err


def test_wrong_usage(tmp_path: Path) -> None:
    for arguments in ([], [str(tmp_path), "--backend", "openvino"], [str(tmp_path), "--width", "big"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == USAGE


def test_an_engine_that_fails_is_named(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(ort, "rewritten", lambda *_: b"no graph")
    assert main([str(bundle_folder), *VIDEO, *QUICK, "--only", "spatial.00"]) == 1
    assert "spatial.00.onnx" in capsys.readouterr().err


def test_no_gpu_is_one_sentence(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """With the library installed, as it is in CI, or not."""
    status = SimpleNamespace(name="cudaErrorInsufficientDriver")
    api = SimpleNamespace(
        cudaDeviceAttr=SimpleNamespace(cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76),
        cudaDeviceGetAttribute=lambda _attribute, _device: (status, None),
        cudaError_t=SimpleNamespace(cudaSuccess=0),
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", api)
    monkeypatch.setattr(polygraphy.config, "USE_TENSORRT_RTX", True)
    monkeypatch.setattr("adacache_tune.profiling.trt_target.open_library", lambda _name: None)
    assert main([str(bundle_folder), *VIDEO, "--backend", "tensorrt-rtx"]) == 1
    error = capsys.readouterr().err
    assert "tensorrt-rtx plans run on an NVIDIA GPU and none can be used here" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("module", "extra", "options"),
    [("polygraphy", "profile", []), ("tensorrt_rtx", "trt-rtx", ["--backend", "tensorrt-rtx"])],
)
def test_a_missing_package_is_named_with_what_installs_it(
    module: str, extra: str, options: list[str], bundle_folder: Path
) -> None:
    arguments = [str(bundle_folder), *VIDEO, *options]
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"from adacache_tune.commands.profile import main; sys.exit(main({arguments!r}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f'pip install "adacache-export[{extra}]"' in result.stderr
    assert len(result.stderr.splitlines()) == 1
