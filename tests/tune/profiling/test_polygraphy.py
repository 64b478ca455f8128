"""Polygraphy's own command line on the files of a bundle."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
SHAPES = ["hidden:[2,5,15,96]", "modulation:[2,6,96]", "text:[2,6,96]", "text_mask:[2,6]"]
SMALLEST = ["hidden:[1,1,1,96]", "modulation:[1,6,96]", "text:[1,1,96]", "text_mask:[1,1]"]


def polygraphy(*words: str, folder: Path, **environment: str) -> str:
    command = [str(BIN / "polygraphy"), *words]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_inspect(bundle_folder: Path) -> None:
    shown = polygraphy("inspect", "model", "onnx/spatial.00.onnx", folder=bundle_folder)
    assert "Name: spatial.00 | ONNX Opset: 23" in shown
    assert "hidden [dtype=float32, shape=('batch', 'patch_frames', 'tokens', 96)]" in shown


@pytest.mark.slow
def test_run(bundle_folder: Path) -> None:
    shown = polygraphy(
        "run", "onnx/spatial.00.onnx", "--onnxrt", "--input-shapes", *SHAPES, "--validate", folder=bundle_folder
    )
    assert "hidden_out [dtype=float32, shape=(2, 5, 15, 96)]" in shown
    assert "PASSED" in shown


@pytest.mark.slow  # the export
def test_convert(exported: Callable[..., Path], tmp_path: Path) -> None:
    """A plan of TensorRT for RTX, built without a GPU."""
    pytest.importorskip("tensorrt_rtx_libs")
    plan = tmp_path / "spatial.00.plan"
    shapes = ["--trt-min-shapes", *SMALLEST, "--trt-opt-shapes", *SHAPES, "--trt-max-shapes", *SHAPES]
    words = ["convert", "onnx/spatial.00.onnx", "--convert-to", "trt", "-o", str(plan), *shapes]
    polygraphy(*words, folder=exported("fp16"), POLYGRAPHY_USE_TENSORRT_RTX="1")
    assert plan.stat().st_size > 100_000
