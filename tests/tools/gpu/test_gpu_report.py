"""The report that tools/gpu_check.py writes."""

from tests.helpers.gpu.gpu_check_result import RECORDS
from tools.gpu.measure import tflop_per_s
from tools.gpu.report import markdown


def test_a_rate_is_operations_by_time() -> None:
    assert tflop_per_s(3 * 10**12, 1500.0) == 2.0
    assert tflop_per_s(0, 1.0) is None


# the report


COMMAND = "| command | `python tools/gpu_check.py` |\n"
REPORT = """\
# GPU check

|  |  |
|---|---|
| command | `python tools/gpu_check.py` |
| GPU | Some GPU, compute capability 9.0, 80 GB, 132 multiprocessors |
| CUDA | driver 13.0, runtime 13.0 |
| date | 2026-01-02T03:04:05+00:00 |
| machine | Linux, 16 cores, Python 3.12.3 |
| versions | torch 2.11, numpy 2.4 |

## Phases

| phase | status | seconds | cap | failures | why |
|---|---|---|---|---|---|
| scenarios | ended by its cap | 12.3 | 60 | 0 | it was ended after 30 s |
| libraries | done | 12.3 | 60 | 0 |  |
| onnxruntime-cuda-fp16 | done | 12.3 | 60 | 1 |  |
| tests-tensorrt | done | 12.3 | 60 | 0 |  |
| model | done | 12.3 | 60 | 0 | after its results, its process was ended by SIGSEGV |
| torch-480p-2s | done | 12.3 | 60 | 0 |  |
| compile-480p-2s | skipped | – | – | 0 | it needs torch-compile: no triton |

## scenarios

What scenarios shows.

| scenario | outcome | seconds |
|---|---|---|
| copies | passed | 0.50 |
| threads | begun | – |

Its last words:

```
Timeout!
  in run
```

## libraries

What libraries shows.

Usable: torch-eager.

- tensorrt: not installed: no \\| pip

## onnxruntime-cuda-fp16

What onnxruntime-cuda-fp16 shows.

| graphs | error | allowed | agrees |
|---|---|---|---|
| text | 1.0e-04 | 2.0e-02 | yes |

| generations | error | allowed | agrees |
|---|---|---|---|
| never | 3.0e-01 | 5.0e-02 | NO |

Failed:

- never: an error of 3.0e-01

## tests-tensorrt

What tests-tensorrt shows.

7 passed, 1 failed, 2 skipped.

- skipped: b

## model

What model shows.

STDiT3 with random weights, fp16: 28 + 28 blocks of width 1152. 2 pairs of blocks have weights of their own and serve \
for all: a call does the whole model's work, but weights take the memory of 2 pairs.

tensorrt: 13 plans, 210 MB, built in 12.3 s for compute capability 9.0.

## torch-480p-2s

What torch-480p-2s shows.

480p:2s. A full call is 113.0 TFLOP (both branches of guidance). Milliseconds are the GPU's, median (smallest to \
largest); backends take turns call by call. The host adds what a call takes by the clock beside that. Speed-up: a \
generation without reuse / with AdaCache, whole; efficiency: speed-up / (calls / computed calls).

|  | full call, ms | host adds | TFLOP/s | × a | cached call, ms | wall | host adds | computed | speed-up | \
efficiency |
|---|---|---|---|---|---|---|---|---|---|---|
| a | 250.00 (250.00 to 251.00) | 2.00 | 452 | 1.00 | 2.00 (2.00 to 3.00) | 2.50 | 0.50 | 6 of 12 | 1.88 | 0.938 |
| b | 500.00 (500.00 to 501.00) | 2.00 | – | 2.00 | – | 2.50 | 0.50 | 6 of 12 | – | – |

Stages, median of runs in turn:

| stage | GFLOP | a, ms | b, ms | a, TFLOP/s | b, TFLOP/s |
|---|---|---|---|---|---|
| spatial | 2000.0 | 4.000 | 8.000 | 500 | 250 |
| add | – | 0.100 | – | – | – |

Device memory in MB; what is not measured is computed from the shapes:

|  | loading, measured | arena |
|---|---|---|
| a | 300 | 1000 |
| b | 200 | – |

Skipped:

- motion on b: RuntimeError: no

Times it was tried before: 1. The record has those results too.
"""


def test_the_report() -> None:
    assert markdown(RECORDS, "python tools/gpu_check.py") == REPORT


def test_the_report_of_a_check_that_has_just_begun() -> None:
    first = {"machine": RECORDS["machine"]}
    assert markdown(first) == REPORT[: REPORT.index("\n## Phases")].replace(COMMAND, "")
    assert markdown({}) == "# GPU check\n\n|  |  |\n|---|---|\n"


def test_results_that_cannot_be_shown_do_not_end_the_check() -> None:
    broken = {**RECORDS["torch-480p-2s"], "told": {"size": "480p:2s", "calls": {"backends": {"a": {}}}}}
    told = markdown({"torch-480p-2s": broken})
    assert "The results under calls cannot be shown: KeyError: 'full_ms'" in told
    assert "- motion on b: RuntimeError: no" in told
