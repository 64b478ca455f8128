"""All that a generation allocates and binds: on a device to run it, or in a dry run to know its memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adacache_engines.bundle.manifest import X_MASK, Manifest
from adacache_engines.bundle.tensors import NUMPY_DTYPES
from adacache_engines.contract.device import Buffer, Call, Device
from adacache_runtime.caching.groups import group_stages
from adacache_runtime.caching.policy import CONDITIONAL_VELOCITY, FIRST, LATENTS, VELOCITY
from adacache_runtime.denoising.device_plan import DevicePlan
from adacache_runtime.denoising.guidance import Guidance
from adacache_runtime.denoising.kept_frames import Masked
from adacache_runtime.denoising.latents import Latents
from adacache_runtime.denoising.probes import Probe, Signals
from adacache_runtime.denoising.residuals import Choice, GroupResiduals, ModelResidual, Residuals
from adacache_runtime.denoising.segments import CONDITIONAL
from adacache_runtime.denoising.stages import BoundStages, Engines
from adacache_runtime.request import Request
from adacache_runtime.settled import Settled


@dataclass(frozen=True)
class Assembly:
    """The buffers and bound calls of one generation, on one device.

    Attributes:
        device: device of the buffers.
        stages: the bound stages, and the tensors that go into the model and come out.
        latents: the latents and the sampler's history.
        guidance: the way from predictions to a velocity.
        residuals: residuals that are kept.
        groups: residuals of groups where the policy reuses those; they keep nothing where it reuses the whole model.
        plan: the calls for each decision.
        probes: probes that are measured, in the order of execution.
        probed: site -> buffer that a probe looks at, where nothing else needs the buffer.
        shown: site -> buffer that a probe looks at.
        masked: keeps frames; None where all are generated.
        shows: site of a velocity that a probe looks at -> by slot of the history, what writes the probe's tensor.
        opens: whether the embedding, and the first group if a probe looks at it, run before a call is decided.
        counts: by expert, the number of entries that a decision has.
        opens_first: whether the first group runs before a call is decided.
        reuses: whether anything is ever reused.
    """

    device: Device
    stages: BoundStages
    latents: Latents
    guidance: Guidance
    residuals: Residuals
    groups: GroupResiduals
    plan: DevicePlan
    probes: Sequence[Probe]
    probed: Mapping[str, Buffer]
    shown: Mapping[str, Buffer]
    masked: Masked | None
    shows: Mapping[str, Sequence[Call]]
    opens: bool
    counts: Sequence[int]
    opens_first: bool
    reuses: bool

    def bind(self, expert: int) -> None:
        """Bind an expert's calls before they run, so that all needs are known when an engine asks for memory."""
        if not self.plan.is_new(expert):
            return
        branches, count = self.stages.branches, self.counts[expert]
        self.stages.begin(expert)
        for compute in (True, False) if self.reuses else (True,):
            choice = Choice.alike(
                [compute or (self.opens_first and not index) for index in range(count)], branches, expert
            )
            for slot in range(self.latents.history.shape[0]):
                self.plan.parts(choice, slot)
        if self.guidance.difference is not None:
            for branch in range(branches):
                others = tuple(other == branch for other in range(branches))
                rows = tuple((not rebuilt,) * count for rebuilt in others)
                self.plan.parts(Choice(rows, others, expert), 0)


def assemble(
    manifest: Manifest,
    engines: Engines,
    device: Device,
    request: Request,
    settled: Settled,
    sizes: Mapping[str, int],
) -> Assembly:
    """Allocate and bind all that a generation needs; stages of one expert at a time are bound when its calls come.

    Args:
        manifest: the bundle's manifest.
        engines: the bundle's loaded engines.
        device: the device that they run on.
        request: the request.
        settled: the same with every number checked.
        sizes: sizes of all dynamic axes.

    Raises:
        EngineError: an engine does not run at these sizes, or memory is short.
    """
    needs, stages_of = request.policy.needs, manifest.probes()
    sites = [measure.site for measure in settled.measures]
    specs = {site: stages_of[site].probe_spec(site) for site in dict.fromkeys(sites) if site in stages_of}
    probed = {site: device.empty(spec.shape(sizes), NUMPY_DTYPES[spec.dtype]) for site, spec in specs.items()}
    of_model = settled.granularity == "model" and needs.residuals > 0
    granularity = "stack" if settled.granularity == "model" else settled.granularity
    groups = [group_stages(manifest, granularity, expert) for expert in range(len(manifest.experts))]
    longest = max(len(group) for expert in groups for group in expert)
    # the input of a long group stays untouched while its stages take turns
    stages = BoundStages(manifest, engines, device, sizes, 3 if longest > 1 else 2, probed)
    masking, first_update = settled.masking, settled.updates[0]
    latents = Latents(
        settled.latent_shape,
        first_update.weights.shape[0],
        all(update.keeps_velocity for update in settled.updates),
        engines.arithmetic,
        device,
        len(settled.updates),
        device.empty(masking.generated.shape[1:], np.dtype(np.bool_)) if masking else None,
    )
    guidance = Guidance(
        settled.branches,
        stages.tensors["prediction"],
        latents,
        engines.arithmetic,
        device,
        needs.rebuilds,
    )
    opens_first = any(measure.site == FIRST and measure.early for measure in settled.measures)
    kept = 0 if of_model else needs.residuals
    grouped = GroupResiduals(stages, groups, guidance, kept, needs.weighted, needs.by_branch, opens_first)
    residuals: Residuals = grouped
    if of_model:
        residuals = ModelResidual(grouped, needs.residuals, latents, engines.arithmetic, device)
    opens = opens_first or any(measure.early and measure.site != LATENTS for measure in settled.measures)
    shows: dict[str, Sequence[Call]] = {}
    for site in sorted({VELOCITY, CONDITIONAL_VELOCITY} & {*sites}):
        probed[site] = device.empty(latents.current.shape, np.dtype(np.float32))
        shows[site] = _shows(site, probed[site], guidance, settled.branches, latents, device)
    shown = {LATENTS: latents.current, **probed}
    if FIRST in sites:
        shown[FIRST] = grouped.newest(0)
    signals = Signals(manifest.signals, engines.signals)
    assembly = Assembly(
        device,
        stages,
        latents,
        guidance,
        residuals,
        grouped,
        DevicePlan(device, stages, residuals, latents, opens),
        [
            Probe(measure, shown[measure.site], signals, device, stages.branches, needs.by_branch)
            for measure in settled.measures
        ],
        probed,
        shown,
        Masked(masking, latents, stages.tensors[X_MASK], engines.arithmetic, device) if masking else None,
        shows,
        opens,
        [1 if of_model else len(expert) for expert in groups],
        opens_first,
        bool(needs.residuals),
    )
    if engines.one_expert is None:
        for expert in range(len(groups)):
            assembly.bind(expert)
    else:
        engines.one_expert.add(assembly.plan)
    return assembly


def _shows(
    site: str, shown: Buffer, guidance: Guidance, branches: Sequence[str], latents: Latents, device: Device
) -> Sequence[Call]:
    """Return by slot of the history what writes the velocity of a call to a buffer: that of guidance, or of a branch.

    Of a branch it is there only where the model has run.
    """
    slots = range(latents.history.shape[0])
    if site == VELOCITY:
        return [device.copy(latents.velocity(slot), shown) for slot in slots]
    return [guidance.of_branch(branches.index(CONDITIONAL), shown).call] * len(slots)
