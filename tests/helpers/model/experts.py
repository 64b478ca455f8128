"""The fake model with two experts: the second one adds a part of what the first one's blocks would."""

from typing import Any

import numpy as np

from adacache_engines.bundle.manifest import Expert, StageEntry
from adacache_engines.contract.fake import Function
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
        return entry.model_copy(update={"graph": graph, "expert": 1, "probes": {}})

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
