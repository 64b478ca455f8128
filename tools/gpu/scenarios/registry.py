"""The scenarios by their names, in the order in which they run.

Each is a function of ``cuda.bindings.runtime``, or of an object that stands in for it. The tests run all of them on the
faked runtime, and ``tools/gpu_check.py`` on a GPU, which shows where the fake differs from it. They need numpy and
cuda-bindings only, no engine, and take as much memory as the device has to give.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tools.gpu.scenarios.copies import (
    bindings_alone,
    large_copies,
    readbacks_in_order,
    round_trips,
    staging_is_kept,
    times_between_marks,
    writes_before_the_gpu_is_there,
)
from tools.gpu.scenarios.memory import dropped_devices, dropped_memory_is_there_again, drops_behind_work, out_of_memory
from tools.gpu.scenarios.recordings import (
    drops_on_other_threads,
    drops_while_recording,
    failed_recordings,
    interrupted_recordings,
    recorded_sequences,
    sequences_come_and_go,
    several_sequences,
    threads_enqueue_and_record,
    times_in_recordings,
)

SCENARIOS: Mapping[str, Callable[[Any], None]] = {
    scenario.__name__: scenario
    for scenario in (
        bindings_alone,
        round_trips,
        large_copies,
        writes_before_the_gpu_is_there,
        readbacks_in_order,
        staging_is_kept,
        times_between_marks,
        drops_behind_work,
        dropped_devices,
        out_of_memory,
        dropped_memory_is_there_again,
        recorded_sequences,
        times_in_recordings,
        several_sequences,
        sequences_come_and_go,
        failed_recordings,
        interrupted_recordings,
        drops_while_recording,
        threads_enqueue_and_record,
        drops_on_other_threads,
    )
}
