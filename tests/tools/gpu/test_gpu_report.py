"""What tools/gpu_check.py writes."""

from tests.helpers.gpu_check_result import RESULT
from tools.gpu.measure import tflop_per_s
from tools.gpu.report import markdown


def test_a_rate_is_operations_by_time() -> None:
    assert tflop_per_s(3 * 10**12, 1500.0) == 2.0
    assert tflop_per_s(0, 1.0) is None


# the report


REPORT = """\
# GPU check

|  |  |
|---|---|
| date | 2026-01-02T03:04:05+00:00 |
| command | `python tools/gpu_check.py --quick` |
| GPU | Some GPU, compute capability 9.0, 80 GB, 132 multiprocessors |
| CUDA | driver 13.0, runtime 13.0 |
| machine | Linux, 16 cores, Python 3.12.3 |
| versions | tensorrt-rtx 1.7, numpy 2.4 |

## An unnamed GPU

TensorRT-RTX does not name compute capability 9.0. Tried on purpose:

- plans built for this GPU: ran, largest difference from the CPU 1.2e-03
- plans built for 8.9: did not run: failed opening: no kernel \\| image

## Tests

7 passed, 1 failed, 3 skipped, in 61 s.
- FAILED test_x[fp16]: assert 1 == 2
- 3 skipped: tensorrt is not installed

## Model

STDiT3 with random weights, fp16: 28 + 28 blocks of width 1152. 2 pairs of blocks have weights of their own and serve \
for all: a call does the whole model's work, but weights take the memory of 2 pairs.

tensorrt-rtx: 13 plans, 210 MB, built in 12.3 s for compute capability 9.0.

tensorrt: no plans: no

## 480p:2s

A full call is 113.0 TFLOP (both branches of guidance). Milliseconds are the GPU's, median (smallest to largest); all \
backends take turns call by call. Speed-up: a generation without reuse / with AdaCache, whole; efficiency: speed-up / \
(calls / computed calls).

|  | full call, ms | wall | TFLOP/s | × rtx | cached call, ms | wall | computed | speed-up | efficiency |
|---|---|---|---|---|---|---|---|---|---|
| rtx | 250.00 (250.00 to 251.00) | 252.00 | 452 | 1.00 | 2.00 (1.00 to 3.00) | 2.50 | 6 of 12 | 1.88 | 0.938 |
| torch | 500.00 (500.00 to 501.00) | 502.00 | 226 | 2.00 | 2.00 (1.00 to 3.00) | 2.50 | 6 of 12 | 1.88 | 0.938 |

Stages, median of runs in turn:

| stage | GFLOP | rtx, ms | torch, ms | rtx, TFLOP/s | torch, TFLOP/s |
|---|---|---|---|---|---|
| spatial | 2000.0 | 4.000 | 8.000 | 500 | 250 |
| add | – | 0.100 | – | – | – |

Device memory in MB; what is not measured is computed from the shapes:

|  | loading, measured | arena |
|---|---|---|
| rtx | 300 | 1000 |
| torch | 200 | – |

- motion on torch skipped: RuntimeError: no

## 720p:2s

Not finished: it ended with status -11

## Skipped

- tensorrt: not installed
"""


def test_the_report() -> None:
    assert markdown(RESULT) == REPORT


def test_the_report_of_a_check_that_has_just_begun() -> None:
    short = markdown({key: RESULT[key] for key in ("date", "command", "machine")})
    assert short == REPORT[: REPORT.index("\n## An unnamed")]
    assert "Not made: no memory" in markdown({**RESULT, "model": {"failed": "no\nmemory"}})
    assert "Not finished: pytest" in markdown({**RESULT, "tests": {"failed": "pytest ended"}})
