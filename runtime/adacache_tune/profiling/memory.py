"""Memory of weights and of a generation's tensors, by kind."""

from collections.abc import Mapping

from adacache_engines.bundle.manifest import Manifest
from adacache_runtime.caching.groups import granularities, residual_nbytes
from adacache_runtime.memory.estimate import MemoryEstimate


def memory_nbytes(
    manifest: Manifest, sizes: Mapping[str, int], plan_nbytes: int | None, run: MemoryEstimate | None
) -> dict[str, int]:
    """Return bytes by kind.

    The kinds are ``weights`` (the files of all stages), ``plans`` where there are compiled ones, the memory of a
    generation where it was estimated (``activations`` where they are known), and cached residuals by granularity.
    """
    kinds = {"weights": sum(manifest.files[path].nbytes for path in {*manifest.weight_files().values()})}
    if plan_nbytes is not None:
        kinds["plans"] = plan_nbytes
    if run is not None:
        if run.arena is not None:
            kinds["activations"] = run.arena
        kinds |= {"hidden_states": run.hidden, "probes": run.probes, "latents": run.prepared + run.latents}
    residuals = {choice: residual_nbytes(manifest, sizes, choice) for choice in granularities(manifest)}
    return kinds | {f"residuals_{choice}": nbytes for choice, nbytes in residuals.items()}
