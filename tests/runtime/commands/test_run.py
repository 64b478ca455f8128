"""The command lines: what they write, and one clear error with nothing left behind for what cannot be."""

import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adacache_export.commands.export import main as export
from adacache_runtime.commands.run import main as run
from tests.helpers.originals.reference import OPEN_SORA, arrays
from tests.helpers.waiting import HANG_SECONDS, until

Capture = pytest.CaptureFixture[str]
WEIGHTS = OPEN_SORA / "weights_A.safetensors"
USAGE = 2


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Options that make the reference sampling run."""
    given = arrays(OPEN_SORA / "inputs_A.npz")
    np.savez(tmp_path / "text.npz", embeddings=given["y"][:, 0], mask=given["mask"])
    np.savez(tmp_path / "noise.npz", latents=arrays(OPEN_SORA / "sampling_A.npz")["z0"])
    files = ["--text-embeddings", str(tmp_path / "text.npz"), "--latents", str(tmp_path / "noise.npz")]
    return [*files, "--size", "80x48", "--frames", "17", "--fps", "24"]


def test_a_run_writes_what_it_is_asked_for(bundle_folder: Path, inputs: list[str], tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    codebook = [[0.103, 6], [0.173, 5], [0.229, 4], [0.39, 3], [0.783, 2], [1.0, 1]]
    policy.write_text(json.dumps({"name": "adacache", "codebook": codebook, "probe": ["temporal.1.attn"]}))
    out, trace, plot = (tmp_path / name for name in ("out.npz", "trace.json", "plot.png"))
    command = [str(bundle_folder), *inputs, "--policy", str(policy), "--steps", "30", "--guidance", "7"]
    outputs = ["--save-latents", str(out), "--save-every-call", "--trace", str(trace), "--plot", str(plot)]
    assert run([*command, *outputs]) == 0
    expected = arrays(OPEN_SORA.parent / "adacache" / "A_scaled30.npz")
    saved = arrays(out)
    np.testing.assert_allclose(saved["latents"], expected["z_final"], atol=5e-4)
    assert saved["calls"].shape == (30, *saved["latents"].shape)
    np.testing.assert_array_equal(saved["calls"][0], arrays(tmp_path / "noise.npz")["latents"])
    calls = json.loads(trace.read_text())["calls"]
    index = json.loads((OPEN_SORA.parent / "adacache" / "index.json").read_text())["runs"]["A_scaled30"]
    assert [call["call"] for call in calls if call["computed"]] == index["computed_1based"]
    assert {str(c["call"]): c["rate"] for c in calls if "rate" in c} == index["rates_final_per_step"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    first = out.read_bytes()
    assert run([*command, "--save-latents", str(out), "--save-every-call"]) == 0
    assert out.read_bytes() == first  # same seed, same machine: same file


def test_a_preset_for_blocks_and_one_for_modules(
    bundle_folder: Path, inputs: list[str], tmp_path: Path, capsys: Capture
) -> None:
    trace = tmp_path / "trace.json"
    command = [str(bundle_folder), *inputs, "--steps", "3", "--granularity", "block", "--trace", str(trace)]
    assert run([*command, "--policy", "delta-dit"]) == 0
    assert "policy delta-dit: " not in capsys.readouterr().err  # it has no note
    calls = json.loads(trace.read_text())["calls"]
    assert [call["computed"] for call in calls] == [True, False, True]
    assert run([*command, "--policy", "pab1"]) == 1
    assert "export with --granularity module and run with --granularity module" in capsys.readouterr().err


def test_a_wrapped_policy_runs_at_its_own_granularity(
    bundle_folder: Path, inputs: list[str], tmp_path: Path, capsys: Capture
) -> None:
    trace = tmp_path / "trace.json"
    command = [str(bundle_folder), *inputs, "--steps", "4", "--trace", str(trace)]
    for choice, granularity in (("easycache-fast+warm-up=4", "model"), ("fbcache-slow+max-reuses=0", "first")):
        assert run([*command, "--policy", choice]) == 0
        assert f"chosen: {granularity}" in capsys.readouterr().err
        written = json.loads(trace.read_text())
        assert written["granularity"] == granularity
        assert all(all(call["groups"]) for call in written["calls"])


def test_one_fps_a_prompt_is_a_condition(bundle_folder: Path, inputs: list[str], tmp_path: Path) -> None:
    results = []
    for index, fps in enumerate((["24"], ["24", "24"], ["24", "8"])):
        out = tmp_path / f"{index}.npz"
        command = [str(bundle_folder), *inputs[:-2], "--steps", "2", "--save-latents", str(out), "--fps", *fps]
        assert run(command) == 0
        results.append(arrays(out)["latents"])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0][0], results[2][0])
    assert np.abs(results[0][1] - results[2][1]).max() > 1e-4


REFUSED: dict[str, tuple[list[str], str]] = {
    "no text": (["--frames", "17"], "give either prompts or the embeddings"),
    "no encoder": (["--prompt", "x"], "--text-encoder"),
    "frames": (["--frames", "9"], "1 frame"),
    "no frames": (["--frames", "0"], "at least 1"),
    "steps": (["--steps", "0"], "1 to 1000"),
    "many steps": (["--steps", "1001"], "1 to 1000"),
    "guidance": (["--guidance", "nan"], "guidance nan"),
    "negative guidance": (["--guidance", "-1"], "0 to 100"),
    "seed": (["--seed", "-1"], "seed -1"),
    "fps": (["--fps", "0"], "fps 0"),
    "several fps": (["--fps", "1", "2", "3"], "3 values of fps"),
    "policy": (["--policy", "fastest"], "adacache-fast"),
    "policy file": (["--policy", "nowhere.json"], "nowhere.json"),
    "no folder": (["--trace", "nowhere/trace.json"], "nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_runs(
    case: str, bundle_folder: Path, inputs: list[str], tmp_path: Path, capsys: Capture
) -> None:
    options, message = REFUSED[case]
    text = [] if case in ("no text", "no encoder") else inputs
    out = tmp_path / "result.npz"
    assert run([str(bundle_folder), *text, *options, "--save-latents", str(out)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not out.exists()


def test_memory_is_told_and_nothing_is_written(
    bundle_folder: Path, inputs: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert run([str(bundle_folder), *inputs, "--estimate-memory", "--save-latents", str(tmp_path / "o.npz")]) == 0
    out = capsys.readouterr().out
    assert "grows as needed" in out
    assert not (tmp_path / "o.npz").exists()
    assert run([str(bundle_folder), *inputs, "--estimate-memory"]) == 0
    assert "cached residuals" in capsys.readouterr().out


def test_size_outside_the_profiles(bundle_folder: Path, inputs: list[str], tmp_path: Path, capsys: Capture) -> None:
    command = [str(bundle_folder), *inputs[:2], "--size", "4000x4000", "--save-latents", str(tmp_path / "o.npz")]
    assert run(command) == 1
    assert "height 500, allowed 1 to 240" in capsys.readouterr().err


def test_nan_in_given_latents(bundle_folder: Path, inputs: list[str], tmp_path: Path, capsys: Capture) -> None:
    np.savez(tmp_path / "noise.npz", latents=np.full((2, 4, 5, 6, 10), np.nan, np.float32))
    assert run([str(bundle_folder), *inputs, "--save-latents", str(tmp_path / "o.npz")]) == 1
    assert "NaN" in capsys.readouterr().err


def test_nan_while_running_names_call_and_stage(
    bundle_folder: Path, inputs: list[str], tmp_path: Path, capsys: Capture
) -> None:
    np.savez(tmp_path / "noise.npz", latents=np.full((2, 4, 5, 6, 10), 1e38, np.float32))
    assert run([str(bundle_folder), *inputs, "--save-latents", str(tmp_path / "o.npz")]) == 1
    error = capsys.readouterr().err
    assert "call 1 of 30" in error
    assert "stage " in error
    assert not (tmp_path / "o.npz").exists()


def test_damaged_arrays(bundle_folder: Path, inputs: list[str], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "text.npz").write_bytes(b"not a zip")
    assert run([str(bundle_folder), *inputs, "--save-latents", str(tmp_path / "o.npz")]) == 1
    np.savez(tmp_path / "text.npz", other=np.zeros(3))
    assert run([str(bundle_folder), *inputs, "--save-latents", str(tmp_path / "o.npz")]) == 1
    np.savez(tmp_path / "text.npz", embeddings=np.array([{"code": 1}], dtype=object))
    assert run([str(bundle_folder), *inputs, "--save-latents", str(tmp_path / "o.npz")]) == 1
    errors = capsys.readouterr().err
    assert "numpy.savez" in errors
    assert "no array embeddings" in errors


def test_changed_bundle(bundle_folder: Path, inputs: list[str], tmp_path: Path, capsys: Capture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle_folder, copy)
    graph = copy / "onnx" / "final.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    assert run([str(copy), *inputs, "--save-latents", str(tmp_path / "o.npz")]) == 1
    assert "onnx/final.onnx was changed" in capsys.readouterr().err
    assert export(["--verify", str(copy)]) == 1


def test_inspect_and_verify(bundle_folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert export(["--inspect", str(bundle_folder)]) == 0
    shown = capsys.readouterr().out
    for word in ("open-sora-1.2", "temporal.02", "rflow, 30 steps", "fp32", "15 x 1590 = 23850 a sample", "full call"):
        assert word in shown
    assert export(["--verify", str(bundle_folder)]) == 0
    assert "every engine agrees" in capsys.readouterr().out
    assert export(["--inspect", str(bundle_folder.parent)]) == 1


def test_a_run_and_its_trace_are_counted_alike(
    bundle_folder: Path, inputs: list[str], tmp_path: Path, capsys: Capture
) -> None:
    trace = tmp_path / "run.json"
    options = ["--steps", "5", "--policy", "interval-2", "--granularity", "block", "--trace", str(trace)]
    assert run([str(bundle_folder), *inputs, *options]) == 0
    told = re.search(r"computation +([\d.]+) of [\d.]+ GFLOP \(60%\)", capsys.readouterr().err)
    assert told
    sizes = json.loads(trace.read_text())["sizes"]
    assert {"samples": 2, "batch": 4, "patch_frames": 5, "tokens": 15}.items() <= sizes.items()
    assert export(["--inspect", str(bundle_folder), "--trace", str(trace)]) == 0
    assert re.search(rf"run\.json \(2 prompts of 5 x 15.*3 of 5.* {told[1]} GFLOP", capsys.readouterr().out)


def _truncated(path: Path) -> None:
    path.write_bytes(WEIGHTS.read_bytes()[:-1000])


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))


def _unknown(path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(2, 2)}, path)


def _without_a_tensor(path: Path) -> None:
    tensors = load_file(WEIGHTS)
    del tensors["final_layer.linear.bias"]
    save_file(tensors, path)


def _with_nan(path: Path) -> None:
    tensors = load_file(WEIGHTS)
    tensors["final_layer.linear.bias"][3] = torch.nan
    save_file(tensors, path)


CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "truncated": (_truncated, "model.safetensors", "model.safetensors"),
    "pickled": (_pickled, "model.ckpt", "refused"),
    "unknown": (_unknown, "model.pt", "open-sora-1.2"),
    "missing": (_without_a_tensor, "model.safetensors", "final_layer.linear.bias"),
    "nan": (_with_nan, "model.safetensors", "NaN"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_bad_checkpoint(case: str, tmp_path: Path, capsys: Capture) -> None:
    make, name, message = CHECKPOINTS[case]
    make(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    assert export([str(tmp_path / name), "-o", str(tmp_path / "bundle")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before


def test_unknown_probe(tmp_path: Path, capsys: Capture) -> None:
    assert export([str(WEIGHTS), "-o", str(tmp_path / "bundle"), "--probe", "temporal.7.attn"]) == 1
    assert "temporal.7.attn" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_existing_output(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "photos").mkdir()
    assert export([str(WEIGHTS), "-o", str(tmp_path / "photos")]) == 1
    assert export([str(WEIGHTS), "-o", str(tmp_path / "photos"), "--force"]) == 1
    assert capsys.readouterr().err.count("exists") == 2
    assert (tmp_path / "photos").is_dir()


def test_usage_errors() -> None:
    for command, arguments in (
        (export, []),
        (run, ["bundle", "--width", "big"]),
        (export, ["x", "--precision", "int8"]),
    ):
        with pytest.raises(SystemExit) as stopped:
            command(arguments)
        assert stopped.value.code == USAGE


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_export_leaves_nothing(stop: signal.Signals, tmp_path: Path) -> None:
    program = "import sys; from adacache_export.commands.export import main; sys.exit(main())"
    words = [sys.executable, "-c", program, str(WEIGHTS), "-o", str(tmp_path / "bundle")]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until(lambda: list(tmp_path.glob(".bundle.*/*/onnx/weights.safetensors")) or process.poll() is not None)
    assert process.poll() is None
    process.send_signal(stop)
    _, error = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[stop]
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "extra", "program"),
    [
        ("torch", "export", "adacache_export.commands.export"),
        ("onnxruntime", "cpu", "adacache_runtime.commands.run"),
        pytest.param("onnxscript", "export", "adacache_export.commands.export", marks=pytest.mark.slow),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(
    module: str, extra: str, program: str, bundle_folder: Path, inputs: list[str], tmp_path: Path
) -> None:
    arguments = [str(WEIGHTS)] if module != "onnxruntime" else [str(bundle_folder), *inputs, "--trace", "t.json"]
    code = f"import sys; sys.modules[{module!r}] = None; from {program} import main; sys.exit(main({arguments!r}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f'pip install "adacache-export[{extra}]"' in result.stderr
    assert "Traceback" not in result.stderr
