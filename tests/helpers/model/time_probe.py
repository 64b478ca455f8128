"""The fake model with a probe that shows the embedding of the timestep."""

from typing import Any

import numpy as np

from adacache_engines.bundle.manifest import Manifest, ProbeEntry, StageEntry
from adacache_runtime.caching.signals.registry import SIGNALS
from tests.helpers.model.fake_model import WIDTH, run_embed, signal_entry, spec


def embedding(timestep: Any) -> Any:
    """Return embeddings (batch, width) of timesteps (batch,)."""
    return np.stack([np.cos(timestep / 300), np.sin(timestep / 200), timestep / 1000], axis=1).astype(np.float32)


def embed(given: Any) -> Any:
    """Return what the embed stage gives, with the embedding of the timestep."""
    return {**run_embed(given), "time_embedding": embedding(given["timestep"])}


def shows_time(plain: Manifest) -> dict[str, Any]:
    """Return the changes of a manifest whose model shows the embedding of the timestep."""

    def changed(entry: StageEntry) -> StageEntry:
        if entry.role != "embed":
            return entry
        shown = spec("time_embedding", "batch", WIDTH)
        graph = entry.graph.model_copy(update={"outputs": (*entry.graph.outputs, shown)})
        probes = {**entry.probes, "time": ProbeEntry(output="time_embedding", role="time")}
        return entry.model_copy(update={"graph": graph, "probes": probes})

    spaces = ("hidden", "latents", "time")
    signals = {name: signal_entry(signal, spaces) for name, signal in SIGNALS.items()}
    return {"stages": tuple(map(changed, plain.stages)), "signals": signals}
