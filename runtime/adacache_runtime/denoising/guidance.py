"""Classifier-free guidance: one velocity of the predictions of all branches, or of one and a difference that was kept.

Guidance is an affine sum of the branches' predictions, v = g c + (1 - g) u, with factors that add up to 1. So where one
branch's prediction is rebuilt from the other's, p_r = p_o + w (p_r - p_o of an earlier call), the velocity is p_o plus
the kept difference times w and the branch's factor: one more use of the sampler's ``combine`` graph.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from adacache_engines.contract.device import Buffer, Device
from adacache_engines.contract.engine import Engine
from adacache_runtime.denoising.latents import FLOAT32, Latents, filled
from adacache_runtime.denoising.segments import CONDITIONAL
from adacache_runtime.denoising.stages import Span, Step


def factor(branch: str, guidance: float) -> float:
    """Return the factor that a branch's prediction has in the velocity."""
    return guidance if branch == CONDITIONAL else 1 - guidance


class Guidance:
    """The way from predictions to a velocity.

    Args:
        branches: names of the branches that run, in the order of a batch.
        prediction: the model's output (branches * samples, ...).
        latents: receives the velocity.
        arithmetic: the bundle's arithmetic engines.
        device: device of the buffers.
        rebuilds: branches may be rebuilt, so that the difference of both is kept.

    Attributes:
        difference: (1, samples, channels, frames, height, width) float32, the second branch's prediction less the
            first's, in the last call in which both ran; None where nothing is rebuilt.
    """

    def __init__(
        self,
        branches: Sequence[str],
        prediction: Buffer,
        latents: Latents,
        arithmetic: Mapping[str, Engine],
        device: Device,
        rebuilds: bool = False,
    ) -> None:
        self._branches, self._arithmetic, self._device, self._latents = tuple(branches), arithmetic, device, latents
        self._prediction, self._scale = prediction, device.empty((1,), FLOAT32)
        self._guidance = 1.0
        self.difference: Buffer | None = None
        if not rebuilds or len(branches) < 2:
            return
        shape = latents.current.shape
        self.difference = device.empty((1, *shape), FLOAT32)
        self._alone = [device.empty((1, *shape), FLOAT32) for _ in branches]
        samples = shape[0]
        self._one, self._minus_one = filled(device, (samples,), 1.0), filled(device, (1, samples), -1.0)
        self._share, self._unused = device.empty((1, samples), FLOAT32), device.empty((samples,), FLOAT32)

    def write(self, guidance: float) -> None:
        """Take a guidance scale for the calls that follow."""
        self._guidance = guidance
        self._scale.write(np.array([guidance], np.float32))

    def rebuild(self, weights: Sequence[float | None]) -> None:
        """Write for the next call which share of the kept difference rebuilds a branch.

        Args:
            weights: by branch, the weight of the difference; None = the branch runs.
        """
        if self.difference is None:
            return
        for index, weight in enumerate(weights):
            if weight is not None:
                sign = 1 if index else -1
                share = sign * weight * factor(self._branches[index], self._guidance)
                self._share.write(np.full(self._share.shape, share, np.float32))

    def steps(self, slot: int, rebuilt: Sequence[bool]) -> list[Step]:
        """Bind what makes the velocity for a slot of the sampler's history.

        Args:
            slot: index in the history.
            rebuilt: by branch, whether it does not run.
        """
        velocity = self._latents.velocity(slot)
        if len(self._branches) == 1:
            return [self.of_branch(0, velocity)]
        if any(rebuilt):
            other = rebuilt.index(False)
            assert self.difference is not None
            alone = self._alone[other].row(0)
            return [self.of_branch(other, alone), self._combined(alone, self.difference, self._share, velocity)]
        tensors = {"prediction": self._prediction, "guidance": self._scale, "velocity": velocity}
        guide = Step("guide", self._arithmetic["guide"].bind(tensors), (velocity,))
        if self.difference is None:
            return [guide]
        first, second = self._alone
        apart = [self.of_branch(index, buffer.row(0)) for index, buffer in enumerate(self._alone)]
        return [guide, *apart, self._combined(second.row(0), first, self._minus_one, self.difference.row(0))]

    def of_branch(self, index: int, velocity: Buffer) -> Step:
        """Bind what takes a branch's velocity (samples, ...) out of its prediction."""
        samples = self._latents.current.shape[0]
        prediction = Span(index, index + 1).of(self._prediction, samples)
        tensors = {"prediction": prediction, "velocity": velocity}
        return Step("velocity", self._arithmetic["velocity"].bind(tensors), (velocity,))

    def _combined(self, latents: Buffer, history: Buffer, weights: Buffer, out: Buffer) -> Step:
        tensors = {"latents": latents, "history": history, "scale": self._one, "weights": weights, "latents_out": out}
        return Step("combine", self._arithmetic["combine"].bind({**tensors, "magnitude": self._unused}), (out,))
