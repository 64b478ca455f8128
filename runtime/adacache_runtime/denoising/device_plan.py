"""From a decision to a few calls that a device may record and replay.

A device plan belongs to one generation. What a call consists of is said by the residuals; here it is cut into the
sequences that the loop enqueues: embedding, blocks, and all that follows them up to the next latents, as one.
"""

from collections.abc import Callable, Hashable, Sequence

from adacache_engines.contract.device import Call, Device, in_turn
from adacache_runtime.denoising.latents import Latents
from adacache_runtime.denoising.residuals import MODEL_PARTS, PARTS, Choice, Parts, Residuals
from adacache_runtime.denoising.stages import BoundStages, Step


class DevicePlan:
    """The bound calls for each decision of a generation.

    Args:
        device: device of the buffers.
        stages: the bound stages.
        residuals: say what a call consists of.
        latents: the latents that a call begins with and moves on.
        opening: parts of the model that run before a call is decided.
    """

    def __init__(
        self, device: Device, stages: BoundStages, residuals: Residuals, latents: Latents, opening: Sequence[str] = ()
    ) -> None:
        self._device, self._stages, self._residuals, self._latents = device, stages, residuals, latents
        self._opening = tuple(opening)
        self._parts: dict[tuple[Choice, int], Parts] = {}
        self._calls: dict[Hashable, Call] = {}

    def begin(self, expert: int) -> None:
        """Run the stages that run once a generation, for the calls of an expert."""
        self._once(("begin", expert), lambda: self._sequence(self._stages.begin(expert)))()

    def open(self, part: str, choice: Choice) -> Call:
        """Return what runs of a part before a call is decided, which is as in a call that computes everything."""
        return self._once(("open", part, choice), lambda: self._part(part, choice.whole(), part in self._opening))

    def embed(self, choice: Choice) -> Call:
        """Return what spreads the latents to the branches that run, and embeds them."""

        def make() -> Call:
            runs = bool(self.parts(choice, 0)["embed"]) and "embed" not in self._opening
            return self._part("embed", choice.whole(), runs)

        return self._once(("embed", choice), make)

    def blocks(self, choice: Choice) -> Call:
        """Return what computes or reuses the groups of blocks."""
        return self._once(("blocks", choice), lambda: self._sequence(self.parts(choice, 0)["blocks"]))

    def velocity(self, choice: Choice, slot: int) -> Call:
        """Return what turns the state into the call's velocity: final stage, guidance, and residuals of the model."""
        return self._once(("velocity", choice, slot), lambda: self._sequence(self._ending(choice, slot)))

    def advance(self, slot: int) -> Call:
        """Return what takes the velocity into the sampler's history and moves the latents on."""
        made = self._latents.advance
        return self._once(("advance", slot), lambda: self._device.sequence(made(slot), "the sampler's update"))

    def finish(self, choice: Choice, slot: int) -> Call:
        """Return :meth:`velocity` and :meth:`advance` as one, for calls in which nothing comes between them."""

        def make() -> Call:
            calls = [*(step.call for step in self._ending(choice, slot)), *self._latents.advance(slot)]
            return self._device.sequence(calls, "final to the sampler's update")

        return self._once(("finish", choice, slot), make)

    def model_steps(self, choice: Choice) -> Sequence[Step]:
        """Return the steps of the model alone, from the latents that entered it, for repeating a call."""
        parts = self.parts(choice, 0)
        return [step for part in MODEL_PARTS for step in parts[part]]

    def parts(self, choice: Choice, slot: int) -> Parts:
        """Return the steps of a call, by part; they are bound once for each choice and slot."""
        key = (choice, slot)
        if key not in self._parts:
            self._parts[key] = self._residuals.parts(choice, slot)
        return self._parts[key]

    def _ending(self, choice: Choice, slot: int) -> list[Step]:
        parts = self.parts(choice, slot)
        return [step for part in PARTS[-2:] for step in parts[part]]

    def _part(self, part: str, choice: Choice, runs: bool) -> Call:
        """Return a part that several choices share, so that it is recorded once; or nothing."""
        if not runs:
            return in_turn([])
        before = self._spread(choice) if part == "embed" else []
        return self._once(("part", part, choice), lambda: self._sequence(self.parts(choice, 0)[part], before))

    def _spread(self, choice: Choice) -> list[Call]:
        target, samples = self._stages.tensors["latents"], self._stages.samples
        return [call for span in choice.spans(apart=False) for call in self._latents.spread(span.of(target, samples))]

    def _sequence(self, steps: Sequence[Step], before: Sequence[Call] = ()) -> Call:
        if not steps:
            return in_turn([])
        return self._device.sequence([*before, *(step.call for step in steps)], f"{steps[0].name} to {steps[-1].name}")

    def _once(self, key: Hashable, make: Callable[[], Call]) -> Call:
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = make()
        return call
