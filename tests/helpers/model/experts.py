"""The fake model with two experts: the second one adds a part of what the first one's blocks would."""

import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Expert, Graph, StageEntry
from adacache_engines.contract.fake import FakeBackend, FakeEngine, Function
from adacache_engines.errors import EngineError
from adacache_runtime.pipeline import Pipeline
from tests.helpers.model import fake_model
from tests.helpers.model.fake_model import BLOCKS

SWITCH = 500.0  # timestep; the first expert runs above it
SCALES = (1.0, 0.25)  # factor on what an expert's blocks add
TEXT_SCALES = (2, 4)  # divisors of captions, so that each expert has projected text of its own
GUIDANCES = (3.0, 2.0)
LOW = "low."


def two_experts() -> dict[str, Any]:
    """Return the changes of the fake model's manifest: stages of a second expert, and the ranges of both."""
    plain = fake_model.manifest()

    def second(entry: StageEntry) -> StageEntry:
        graph = entry.graph.model_copy(update={"name": LOW + entry.graph.name, "path": f"onnx/{LOW}{entry.graph.name}"})
        return entry.model_copy(update={"graph": graph, "expert": 1})

    experts = (
        Expert(name="high", timesteps=(SWITCH + 0.5, 1000.0), guidance=GUIDANCES[0]),
        Expert(name="low", timesteps=(0.0, SWITCH + 0.5), guidance=GUIDANCES[1]),
    )
    return {"stages": (*plain.stages, *map(second, plain.stages)), "experts": experts}


def functions_of_experts() -> dict[str, Function]:
    """Return the functions of both experts' stages, and of the arithmetic."""
    plain = fake_model.functions()

    def block(name: str) -> Function:
        def run(given: Any) -> Any:
            added = fake_model.run_block(name, given)["attn"] * np.float32(SCALES[1])
            return {"hidden_out": given["hidden"] + added, "attn": added}

        return run

    second = {LOW + name: plain[name] for name in ("embed", "final")}
    second[LOW + "text"] = lambda given: {"text": given["captions"] / TEXT_SCALES[1]}
    return {**plain, **second, **{LOW + name: block(name) for name in BLOCKS}}


STAGES = {prefix + stage.graph.name for stage in fake_model.manifest().stages for prefix in ("", LOW)}


@dataclass
class Watched(FakeBackend):
    """The fake backend, which finds engines of two experts that are alive at once.

    Attributes:
        loads: names of the graphs in the order in which they were loaded.
        broken: names of graphs that cannot be loaded.
        engines: engines of stages that were loaded, as long as they are alive.
    """

    loads: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    engines: list["weakref.ref[FakeEngine]"] = field(default_factory=list)

    def load(self, graph: Graph) -> FakeEngine:
        self.loads.append(graph.name)
        if graph.name in self.broken:
            raise EngineError(f"{graph.name} is broken")
        engine = super().load(graph)
        if graph.name in STAGES:
            self.engines.append(weakref.ref(engine))
            assert len(self.experts()) == 1, "engines of two experts are alive at once"
        return engine

    def experts(self) -> set[int]:
        """Return the experts of which engines are alive."""
        alive = [engine for reference in self.engines if (engine := reference()) is not None]
        return {int(engine.graph.name.startswith(LOW)) for engine in alive}


def offloading(folder: Path, **changes: Any) -> tuple[Pipeline, Watched]:
    """Return a pipeline that loads one of the two experts at a time, and its backend."""
    if not folder.exists():
        fake_model.write_weights(folder)
    backend = Watched(functions_of_experts())
    manifest = fake_model.manifest().model_copy(update={**two_experts(), **changes})
    return Pipeline(Bundle(folder, manifest), backend, expert_offload=True), backend
