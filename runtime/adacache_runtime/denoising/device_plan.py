"""From a decision to a sequence that a device may record and replay.

A device plan belongs to one generation. The residuals say what a call consists of; here it becomes one sequence, from
the latents that enter it to the next ones, which is cut only where something has to come in between.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

from adacache_engines.contract.device import Call, Device, Mark
from adacache_runtime.denoising.latents import Latents
from adacache_runtime.denoising.residuals import MODEL_PARTS, Choice, Parts, Residuals
from adacache_runtime.denoising.stages import BoundStages, Step


@dataclass(frozen=True)
class TimedCall:
    """A call, and the points in it that tell how long its parts take.

    Attributes:
        call: enqueues everything.
        marks: points that each run passes, each with the part that it ends; None = it begins the first.
    """

    call: Call
    marks: tuple[tuple[str | None, Mark], ...]


class DevicePlan:
    """The bound calls for each decision of a generation.

    Args:
        device: device of the buffers.
        stages: the bound stages.
        residuals: say what a call consists of.
        latents: the latents that a call begins with and moves on.
        opens: whether a call begins before it is decided.
    """

    def __init__(
        self, device: Device, stages: BoundStages, residuals: Residuals, latents: Latents, opens: bool = False
    ) -> None:
        self._device, self._stages, self._residuals, self._latents = device, stages, residuals, latents
        self._opens = opens
        self._parts: dict[tuple[Choice, int], Parts] = {}
        self._calls: dict[tuple[int | None, Hashable], TimedCall] = {}  # by expert; None = no stage is among them

    def begin(self, expert: int) -> None:
        """Run the stages that run once a generation, for the calls of an expert."""
        self._once(expert, "begin", lambda: self._timed({"begin": _calls(self._stages.begin(expert))})).call()

    def open(self, choice: Choice) -> TimedCall:
        """Return what runs before a call is decided, which is as in a call that computes everything."""

        def make() -> TimedCall:
            steps = self.parts(choice.whole(), 0)
            return self._timed({"embed": self._embedding(choice), "blocks": _calls(steps["first"])})

        return self._once(choice.expert, ("open", choice), make)

    def whole(self, choice: Choice, slot: int) -> TimedCall:
        """Return all of a call that comes after its decision, up to the next latents."""

        def make() -> TimedCall:
            parts = self._model(choice, slot)
            return self._timed({**parts, "final": [*parts["final"], *self._latents.advance(slot)]})

        return self._once(choice.expert, ("whole", choice, slot), make)

    def velocity(self, choice: Choice, slot: int) -> TimedCall:
        """Return the beginning of :meth:`whole`, up to the velocity, for calls in which something is measured then."""
        return self._once(choice.expert, ("velocity", choice, slot), lambda: self._timed(self._model(choice, slot)))

    def advance(self, slot: int) -> TimedCall:
        """Return the rest of :meth:`whole`: it takes the velocity into the history and moves the latents on."""
        return self._once(None, ("advance", slot), lambda: self._timed({"final": self._latents.advance(slot)}))

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

    def is_new(self, expert: int) -> bool:
        """Return whether no call of an expert is bound."""
        return all(choice.expert != expert for choice, _ in self._parts)

    def forget(self, expert: int) -> None:
        """Drop all calls that are bound to an expert's stages: recorded sequences first, which replay the others."""
        for call in [call for call in self._calls if call[0] == expert]:
            del self._calls[call]
        for key in [key for key in self._parts if key[0].expert == expert]:
            del self._parts[key]
        self._residuals.forget(expert)

    def _model(self, choice: Choice, slot: int) -> dict[str, list[Call]]:
        """Return the calls from the decision to the velocity, by the part that their time counts for."""
        steps = self.parts(choice, slot)
        embeds = bool(steps["embed"]) and not self._opens
        return {
            "embed": self._embedding(choice) if embeds else [],
            "blocks": _calls(steps["blocks"]),
            "final": [*_calls(steps["final"]), *_calls(steps["velocity"])],
        }

    def _embedding(self, choice: Choice) -> list[Call]:
        """Return what spreads the latents to the branches that run, and embeds them, for all groups alike."""
        whole, target, samples = choice.whole(), self._stages.tensors["latents"], self._stages.samples
        spread = [call for span in whole.spans(apart=False) for call in self._latents.spread(span.of(target, samples))]
        return [*spread, *_calls(self.parts(whole, 0)["embed"])]

    def _timed(self, parts: Mapping[str, Sequence[Call]]) -> TimedCall:
        """Return a sequence of the calls, with a mark before the first part and one behind each."""
        marks: list[tuple[str | None, Mark]] = [(None, self._device.marker())]
        calls: list[Call] = [marks[0][1]]
        for part, group in parts.items():
            if group:
                mark = self._device.marker()
                marks.append((part, mark))
                calls += [*group, mark]
        return TimedCall(self._device.sequence(calls, f"a call's {', '.join(parts)}"), tuple(marks))

    def _once(self, expert: int | None, what: Hashable, make: Callable[[], TimedCall]) -> TimedCall:
        call = self._calls.get((expert, what))
        if call is None:
            call = self._calls[expert, what] = make()
        return call


def _calls(steps: Sequence[Step]) -> list[Call]:
    return [step.call for step in steps]
