"""What a generation allocates and binds: on a device to run it, or on paper to know its memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adacache_engines.buffers import Device
from adacache_engines.manifest import Manifest
from adacache_runtime.latents import Latents
from adacache_runtime.plan import Engines, Plan
from adacache_runtime.probe import Probe
from adacache_runtime.request import Request, Settled


@dataclass(frozen=True)
class Assembly:
    """Bound to one device; ``probes`` in the order of execution."""

    probes: Sequence[Probe]
    plan: Plan
    latents: Latents


def assemble(
    manifest: Manifest,
    engines: Engines,
    device: Device,
    request: Request,
    settled: Settled,
    sites: Sequence[str],
    sizes: Mapping[str, int],
) -> Assembly:
    """
    Args:
        manifest: of the bundle.
        engines: loaded from it.
        device: where they run.
        request: what is asked for.
        settled: the same with every number checked.
        sites: that the policy measures, in the order of execution.
        sizes: of all dynamic axes.

    Raises:
        EngineError: an engine does not run at these sizes, or memory is short.
    """
    stages, strides = manifest.probes(), request.policy.strides
    probes = [Probe(site, stages[site].probe_spec(site), engines.arithmetic, device, sizes, strides) for site in sites]
    watched = {probe.site: probe.new for probe in probes}
    plan = Plan(manifest, engines, device, sizes, request.granularity, request.policy.reuses, watched)
    latents = Latents(
        settled.latents,
        settled.guidance,
        settled.updates[0].weights.shape[0],
        engines.arithmetic,
        device,
        plan.tensors["latents"],
        plan.tensors["prediction"],
    )
    return Assembly(probes, plan, latents)
