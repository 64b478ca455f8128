"""What a generation allocates and binds: on a device to run it, or on paper to know its memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adacache_engines.bundle.manifest import X_MASK, Manifest
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.contract.device import Buffer, Call, Device
from adacache_runtime.caching.policy import FIRST, LATENTS, VELOCITY
from adacache_runtime.denoising.device_plan import Engines, Plan
from adacache_runtime.denoising.kept_frames import Masked
from adacache_runtime.denoising.latents import Latents
from adacache_runtime.denoising.model_residual import ModelResidual
from adacache_runtime.denoising.probes import Probe, Signals
from adacache_runtime.request import Request
from adacache_runtime.settled import Settled


@dataclass(frozen=True)
class Assembly:
    """Bound to one device.

    Attributes:
        plan, latents: of the generation.
        probes: that are measured, in the order of execution.
        probed: site -> the buffer that they look at, where nothing else needs it.
        shown: site -> the buffer that they look at.
        masked: what keeps frames, where some are.
        model: the residual of the whole model, where that is what is reused.
        show_velocity: a slot each, copies what the probe of the velocity looks at; none without that probe.
        embeds_first: embedding, and the first group where that is looked at, come before the decision.
    """

    plan: Plan
    latents: Latents
    probes: Sequence[Probe]
    probed: Mapping[str, Buffer]
    shown: Mapping[str, Buffer]
    masked: Masked | None
    model: ModelResidual | None
    show_velocity: Sequence[Call]
    embeds_first: bool

    @property
    def residuals(self) -> Sequence[Buffer]:
        """All that are kept."""
        return [*self.plan.residuals, *([self.model.residuals] if self.model else [])]


def assemble(
    manifest: Manifest,
    engines: Engines,
    device: Device,
    request: Request,
    settled: Settled,
    sizes: Mapping[str, int],
) -> Assembly:
    """
    Args:
        manifest: of the bundle.
        engines: loaded from it.
        device: where they run.
        request: what is asked for.
        settled: the same with every number checked.
        sizes: of all dynamic axes.

    Raises:
        EngineError: an engine does not run at these sizes, or memory is short.
    """
    needs, stages = request.policy.needs, manifest.probes()
    sites = [measure.site for measure in settled.measures]
    specs = {site: stages[site].probe_spec(site) for site in dict.fromkeys(sites) if site in stages}
    probed = {site: device.empty(spec.shape(sizes), NUMPY_DTYPES[spec.dtype]) for site, spec in specs.items()}
    opening = any(measure.site == FIRST and measure.early for measure in settled.measures)
    plan = Plan(manifest, engines, device, sizes, settled.granularity, needs, probed, opening)
    masking = settled.masking
    latents = Latents(
        settled.latent_shape,
        settled.guidance,
        settled.updates[0].weights.shape[0],
        engines.arithmetic,
        device,
        plan.tensors["latents"],
        plan.tensors["prediction"],
        len(settled.updates),
        device.empty(masking.generated.shape[1:], np.dtype(np.bool_)) if masking else None,
    )
    show_velocity: list[Call] = []
    if VELOCITY in sites:
        probed[VELOCITY] = device.empty(latents.current.shape, np.dtype(np.float32))
        slots = range(latents.velocities.shape[0])
        show_velocity = [device.copy(latents.velocities.row(slot), probed[VELOCITY]) for slot in slots]
    shown = {LATENTS: latents.current, **probed}
    if FIRST in sites:
        shown[FIRST] = plan.residuals[0].row(0)
    signals = Signals(manifest.signals, engines.signals)
    reuses_model = settled.granularity == "model" and needs.residuals > 0
    return Assembly(
        plan,
        latents,
        [Probe(measure, shown[measure.site], signals, device) for measure in settled.measures],
        probed,
        shown,
        Masked(masking, latents, plan.tensors[X_MASK], engines.arithmetic, device) if masking else None,
        ModelResidual(needs.residuals, latents.current, latents.velocities, engines.arithmetic, device)
        if reuses_model
        else None,
        show_velocity,
        opening or any(measure.early and measure.site != LATENTS for measure in settled.measures),
    )
