"""Measure the peak memory of a run in a process of its own, from Linux's /proc.

As a command it is that process: ``python -m tools.speed.memory BUNDLE SIZE_AS_JSON STEPS THREADS``.
"""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

from adacache_engines.onnxruntime.backend import OnnxRuntime
from adacache_runtime.pipeline import Pipeline
from tools.speed.calls import EVERY_THIRD
from tools.speed.size import Size

STATUS_FIELDS = {"peak": "VmHWM", "now": "VmRSS", "private": "RssAnon", "mapped": "RssFile"}
HIDDEN_STATES = 6


def resident_mb(process: int | str = "self") -> dict[str, float]:
    """Resident memory of a process in MB: now, its peak, and the private and the mapped part of it now."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    values = {name: int(rest.split()[0]) * 1.024e-3 for name, _, rest in (line.partition(":") for line in lines)
              if name in STATUS_FIELDS.values()}  # fmt: skip
    return {name: values[field] for name, field in STATUS_FIELDS.items()}


def measure_memory(bundle: Path, size: Size, branches: int, steps: int, threads: int) -> dict[str, float]:
    """Return MB by part: the memory that the run added to that of the imports, and the memory that it may add."""
    arguments = [str(bundle), json.dumps(asdict(size)), str(steps), str(threads)]
    command = [sys.executable, "-m", "tools.speed.memory", *arguments]
    child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    after: dict[str, dict[str, float]] = json.loads(child.stdout)
    weights = (bundle / "onnx" / "weights.safetensors").stat().st_size / 1e6
    hidden = size.hidden_nbytes(branches) / 1e6
    baseline = after["imports"]["now"]
    return {
        "imports": baseline,
        "loaded_private": after["load"]["private"] - after["imports"]["private"],
        "loaded_mapped": after["load"]["mapped"] - after["imports"]["mapped"],
        "loading_peak": after["load"]["peak"] - baseline,
        "peak": after["run"]["peak"] - baseline,
        "weights": weights,
        "packed_weights": weights,
        "hidden_state": hidden,
        "bound": 2 * weights + HIDDEN_STATES * hidden,
    }


def main(bundle: str, size: str, steps: str, threads: str) -> None:
    request = Size(**json.loads(size)).request()
    after = {"imports": resident_mb()}
    pipeline = Pipeline.open(bundle, OnnxRuntime(threads=int(threads)))
    after["load"] = resident_mb()
    pipeline.generate(replace(request, steps=int(steps), policy=EVERY_THIRD))
    after["run"] = resident_mb()
    print(json.dumps(after))


if __name__ == "__main__":
    main(*sys.argv[1:])
