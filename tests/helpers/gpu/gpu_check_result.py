"""Records of tools/gpu_check.py with every part that its report shows."""

from typing import Any

GPU = {
    "name": "Some GPU", "capability": "9.0", "memory_mb": 80000.0, "multiprocessors": 132, "driver": "13.0",
    "runtime": "13.0",
}  # fmt: skip
MACHINE = {
    "date": "2026-01-02T03:04:05+00:00", "system": "Linux", "cores": 16, "python": "3.12.3",
    "versions": {"torch": "2.11", "numpy": "2.4"}, "gpu": GPU,
}  # fmt: skip


def spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median, "high": median + 1}


def backend(full: float, **others: Any) -> dict[str, Any]:
    """The calls of a backend whose full call takes so many milliseconds."""
    return {
        "full_ms": spread(full), "full_wall_ms": spread(full + 2), "full_host_ms": spread(2.0),
        "tflop_per_s": 113e3 / full, "cached_ms": spread(2.0), "cached_wall_ms": spread(2.5),
        "cached_host_ms": spread(0.5), "calls": 12, "computed": 6, **others,
    }  # fmt: skip


def record(name: str, told: dict[str, Any], **others: Any) -> dict[str, Any]:
    settings = {"status": "done", "seconds": 12.34, "cap_s": 60.0, "failures": [], "skips": []}
    return {"phase": name, "shows": f"what {name} shows", "told": told, **settings, **others}


WHOLE = {"never_s": 3.0, "adacache_s": 1.6, "speed_up": 1.875, "efficiency": 0.9375}
RECORDS = {
    one["phase"]: one
    for one in (
        record("machine", MACHINE),
        record(
            "scenarios",
            {"scenarios": {"copies": {"outcome": "passed", "seconds": 0.5}, "threads": {"outcome": "begun"}}},
            status="ended by its cap",
            why="it was ended after 30 s",
            said="Timeout!\n  in run",
        ),
        record("libraries", {"usable": ["torch-eager"], "unusable": {"tensorrt": "not installed:\nno | pip"}}),
        record(
            "onnxruntime-cuda-fp16",
            {
                "graphs": {"text": {"error": 1e-4, "allowed": 0.02, "agrees": True}},
                "generations": {"never": {"error": 0.3, "allowed": 0.05, "agrees": False}},
            },
            failures=[{"what": "never", "why": "an error of 3.0e-01"}],
        ),
        record("tests-tensorrt", {"tests": {"passed": 7, "failed": {"x": "no"}, "skipped": {"a": "b", "c": "b"}}}),
        record(
            "model",
            {
                "model": {
                    "config": {"depth": 28, "hidden_size": 1152}, "precision": "fp16", "distinct_pairs": 2,
                    "plans": {"tensorrt": {"build_s": 12.34, "plans": 13, "mb": 210.4, "targets": ["9.0"]}},
                }
            },
            note="after its results, its process was ended by SIGSEGV",
        ),
        record(
            "torch-480p-2s",
            {
                "size": "480p:2s",
                "calls": {
                    "tflop": 113.0,
                    "backends": {"a": backend(250.0, **WHOLE), "b": backend(500.0, cached_ms=None, tflop_per_s=None)},
                },
                "stages": {
                    "spatial": {"gflop": 2000.0, "backends": {"a": {"ms": spread(4.0), "tflop_per_s": 500.0},
                                                              "b": {"ms": spread(8.0), "tflop_per_s": 250.0}}},
                    "add": {"gflop": 0.0, "backends": {"a": {"ms": spread(0.1), "tflop_per_s": None}}},
                },
                "memory_mb": {"a": {"loading, measured": 300.4, "arena": 1000.0},
                              "b": {"loading, measured": 200.0, "arena": None}},
            },
            skips=[{"what": "motion on b", "why": "RuntimeError: no"}],
            earlier=[{"status": "failed"}],
        ),
        record("compile-480p-2s", {}, status="skipped", why="it needs torch-compile: no triton", seconds=None,
               cap_s=None),
    )
}  # fmt: skip
