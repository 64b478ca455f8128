"""The phases of a check on a GPU, in the order that keeps most when time ends.

Nothing is imported here that another machine may lack, since the check must start on any; each phase imports what it
needs in its own process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.gpu.running.phase import Phase, listed
from tools.gpu.running.runner import LIBRARIES

if TYPE_CHECKING:
    from adacache_engines.bundle.manifest import Precision

# backends
TENSORRT = ("tensorrt-rtx", "tensorrt")
ONNXRUNTIME = "onnxruntime-cuda"
RECORDED, EAGER, COMPILED = "torch-recorded", "torch-eager", "torch-compile"
BACKENDS: tuple[str, ...] = (*TENSORRT, ONNXRUNTIME, RECORDED, EAGER, COMPILED)
NO_GRAPHS = " without CUDA graphs"  # after a backend's name: its calls are not recorded

PRECISIONS: tuple["Precision", ...] = ("fp32", "fp16", "bf16")
LARGE = "xl2"  # folder of the large model, beside one folder of the demo model a precision
SIZES = ("480p:2s", "720p:2s")
STEPS, ROUNDS = 12, 3

FIRST = "bindings_alone"  # the scenario that uses nothing of this project
MACHINE = Phase("machine", "tools.gpu.machine", 60, 2, "the GPU, and the versions of the packages that are installed")


@dataclass(frozen=True)
class Setup:
    """The settings that the phases of a check are made from.

    Attributes:
        records: folder of the phases' records.
        work: folder for what phases leave for later ones: bundles, and the models that are measured.
        bundles: folder of bundles, one a precision and the large model's; None = they are exported into ``work``.
        sizes: shape profiles of one size each, at which the large model is measured.
        steps: calls of a measured generation.
    """

    records: Path
    work: Path
    bundles: Path | None = None
    sizes: Sequence[str] = SIZES
    steps: int = STEPS

    @property
    def folder(self) -> Path:
        """Folder of the bundles, whether they are there or exported."""
        return self.work / "bundles" if self.bundles is None else self.bundles

    @property
    def after(self) -> tuple[str, ...]:
        """Names of the phases that make the bundles."""
        return ("bundles",) if self.bundles is None else ()


def phases(setup: Setup) -> tuple[Phase, ...]:
    """Return all phases but :data:`MACHINE`, which comes before them."""
    found = [
        *_scenarios(setup),
        Phase(LIBRARIES, "tools.gpu.libraries", 90, 5, "which backends can be used, and why the others cannot"),
        *([_bundles(setup)] if setup.bundles is None else []),
        *(
            _agreement(setup, ONNXRUNTIME, precision, "every graph, and generations of the demo model")
            for precision in PRECISIONS
        ),
        _agreement(setup, RECORDED, "fp16", "every graph of the loop, and recorded generations of the demo model"),
        *(
            _tests(setup, library, "it agrees with the processor, and no graph, thread or cache changes a bit", 900)
            for library in TENSORRT
        ),
        _model(setup, "model"),
        *_measured(setup, "torch", "model", (RECORDED, RECORDED + NO_GRAPHS), 120),
        *_measured(setup, "onnxruntime", "model", (ONNXRUNTIME, RECORDED), 150),
        _tests(setup, ONNXRUNTIME, "what it leaves to the processor, its memory, and its threads", 120),
    ]
    for library in TENSORRT:
        name = f"model-{library}"
        contenders = (library, library + NO_GRAPHS, RECORDED, ONNXRUNTIME)
        found += [_model(setup, name, library), *_measured(setup, library, name, contenders, 240)]
    found += _measured(setup, "eager", "model", (EAGER, RECORDED), 120)
    found += _measured(setup, "compile", "model", (COMPILED, RECORDED), 200)
    return tuple(found)


def _scenarios(setup: Setup) -> list[Phase]:
    module = "tools.gpu.scenarios.phase"
    rest = {"without": [FIRST]}
    return [
        Phase(
            "bindings",
            module,
            15,
            2,
            "memory, a pinned copy, an event, a graph and its replay, with cuda-bindings alone",
            {"only": [FIRST]},
        ),
        Phase(
            "scenarios",
            module,
            30,
            5,
            "copies, pinned memory, graphs, dropped objects, threads, and too little memory",
            rest,
        ),
        Phase(
            "scenarios-rest",
            module,
            20,
            2,
            "the scenarios that come after one that hung or ended the process",
            {**rest, "records": str(setup.records), "behind": "scenarios"},
        ),
    ]


def _bundles(setup: Setup) -> Phase:
    folder = str(setup.folder)
    shows = "the demo model and blocks of STDiT3-XL/2, exported with torch"
    return Phase("bundles", "tools.gpu.model", 1800, 60, shows, {"make": folder}, leaves=folder)


def _agreement(setup: Setup, backend: str, precision: str, what: str) -> Phase:
    arguments = {"bundle": str(setup.folder / precision), "precision": precision, "backend": backend}
    shows = f"{what}, against the processor, in {precision}"
    return Phase(f"{backend}-{precision}", "tools.gpu.agreement", 60, 15, shows, arguments, setup.after, (backend,))


def _tests(setup: Setup, backend: str, what: str, cap_s: float) -> Phase:
    arguments = {"bundles": str(setup.folder), "backend": backend}
    shows = f"tests of {backend}: {what}"
    return Phase(f"tests-{backend}", "tools.gpu.gpu_tests", cap_s, 30, shows, arguments, setup.after, (backend,))


def _model(setup: Setup, name: str, library: str | None = None) -> Phase:
    work = str(setup.work / name)
    arguments: dict[str, Any] = {"source": str(setup.folder), "work": work}
    if library is None:
        shows = "STDiT3-XL/2 with random weights, made for the phases that measure it"
        return Phase(name, "tools.gpu.model", 90, 10, shows, arguments, setup.after, leaves=work)
    arguments |= {"library": library, "profiles": list(setup.sizes)}
    shows = f"STDiT3-XL/2 with plans of {library}: their number, their size, and the time of their builds"
    return Phase(name, "tools.gpu.model", 1800, 60, shows, arguments, setup.after, (library,), leaves=work)


def _measured(setup: Setup, name: str, model: str, contenders: Sequence[str], cap_s: float) -> list[Phase]:
    """Return a phase for each size, which measures contenders in turn; the phase needs the first of them."""
    first, *others = contenders
    shows = f"full and cached calls of {first}, compared with {listed(others)}"
    return [
        Phase(
            f"{name}-{size.replace(':', '-')}",
            "tools.gpu.benchmark",
            cap_s,
            20,
            shows,
            {
                "bundle": str(setup.work / model),
                "size": size,
                "backends": list(contenders),
                "steps": setup.steps,
                "rounds": ROUNDS,
            },
            (model,),
            (first.removesuffix(NO_GRAPHS),),
        )
        for size in setup.sizes
    ]
