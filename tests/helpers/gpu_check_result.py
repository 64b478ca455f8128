"""A result of tools/gpu_check.py with every part that its report shows."""

RESULT = {
    "date": "2026-01-02T03:04:05+00:00",
    "command": "python tools/gpu_check.py --quick",
    "machine": {
        "system": "Linux", "cores": 16, "python": "3.12.3", "versions": {"tensorrt-rtx": "1.7", "numpy": "2.4"},
        "gpu": {"name": "Some GPU", "capability": "9.0", "memory_mb": 80000.0, "multiprocessors": 132, "driver": "13.0",
                "runtime": "13.0"},
    },
    "attempts": [
        {"how": "current", "runs": True, "difference": 0.0012, "targets": ["9.0"]},
        {"how": "8.9", "runs": False, "why": "failed opening: no\nkernel | image"},
    ],
    "tests": {"passed": 7, "failures": [{"test": "test_x[fp16]", "why": "assert 1 == 2"}],
              "skips": {"tensorrt is not installed": 3}, "seconds": 61.2},
    "model": {"config": {"depth": 28, "hidden_size": 1152}, "precision": "fp16", "distinct_pairs": 2,
              "plans": {"tensorrt-rtx": {"build_s": 12.34, "plans": 13, "mb": 210.4, "targets": ["9.0"]},
                        "tensorrt": {"failed": "no"}}},
    "benchmark": {"480p:2s": {
        "stages": {
            "spatial": {"gflop": 2000.0, "backends": {
                "rtx": {"ms": {"median": 4.0, "low": 3.9, "high": 5.0}, "tflop_per_s": 500.0},
                "torch": {"ms": {"median": 8.0, "low": 7.9, "high": 9.0}, "tflop_per_s": 250.0}}},
            "add": {"gflop": 0.0, "backends": {
                "rtx": {"ms": {"median": 0.1, "low": 0.1, "high": 0.1}, "tflop_per_s": None}}},
        },
        "memory_mb": {"rtx": {"loading, measured": 300.4, "arena": 1000.0}, "torch": {"loading, measured": 200.0,
                      "arena": None}},
        "calls": {"tflop": 113.0, "backends": {
            name: {"full_ms": {"median": ms, "low": ms, "high": ms + 1}, "full_wall_ms": {"median": ms + 2},
                   "tflop_per_s": 113e3 / ms, "cached_ms": {"median": 2.0, "low": 1.0, "high": 3.0},
                   "cached_wall_ms": {"median": 2.5}, "calls": 12, "computed": 6, "never_s": 3.0, "adacache_s": 1.6,
                   "speed_up": 1.875, "efficiency": 0.9375}
            for name, ms in (("rtx", 250.0), ("torch", 500.0))}},
        "skipped": [{"what": "motion on torch", "why": "RuntimeError: no"}],
    }, "720p:2s": {"failed": "it ended\nwith status -11"}},
    "skipped": [{"what": "tensorrt", "why": "not installed"}],
}  # fmt: skip
