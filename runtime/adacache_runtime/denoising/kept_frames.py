"""Latents of which some frames are given and kept, on the device.

Which frames a call keeps, and which of them join the generation, is decided by
:mod:`adacache_runtime.conditioning.masks`.
"""

from collections.abc import Mapping

import numpy as np

from adacache_engines.contract.device import Buffer, Device
from adacache_engines.contract.engine import Engine
from adacache_runtime.conditioning.masks import Masking
from adacache_runtime.denoising.latents import FLOAT32, Latents
from adacache_runtime.samplers.update import TRAIN_TIMESTEPS


class Masked:
    """The frames that are kept in each call of a generation.

    Args:
        masking: frames that are kept or join, for all calls.
        latents: the latents, whose ``generated`` frames move on in each call.
        x_mask: the model's input (branches * samples, frames).
        arithmetic: the bundle's arithmetic engines.
        device: device of the buffers.
    """

    def __init__(
        self, masking: Masking, latents: Latents, x_mask: Buffer, arithmetic: Mapping[str, Engine], device: Device
    ) -> None:
        self._masking, self._x_mask = masking, x_mask
        assert latents.generated is not None
        self._generated, current = latents.generated, latents.current
        self._branches = x_mask.shape[0] // self._generated.shape[0]
        if not masking.joining.any():
            return
        samples = current.shape[0]
        self._joining = device.empty(self._generated.shape, np.dtype(np.bool_))
        self._noise = device.empty((1, *current.shape), FLOAT32)
        self._signal, magnitude = (device.empty((samples,), FLOAT32) for _ in range(2))
        self._share = device.empty((1, samples), FLOAT32)
        noised = latents.following
        self._add_noise = arithmetic["combine"].bind(
            {
                "latents": current,
                "history": self._noise,
                "scale": self._signal,
                "weights": self._share,
                "latents_out": noised,
                "magnitude": magnitude,
            }
        )
        self._join = arithmetic["select"].bind(
            {"mask": self._joining, "new": noised, "latents": current, "latents_out": current}
        )

    def enter(self, call: int) -> None:
        """Prepare a call, from 1: mark the frames that it generates, and bring those that join to (1 - t) z + t e.

        t is the timestep as a share of that of pure noise, and e is noise.
        """
        masking, index = self._masking, call - 1
        generated, joining = masking.generated[index], masking.joining[index]
        self._generated.write(generated)
        self._x_mask.write(np.tile(generated, (self._branches, 1)))
        if not joining.any():
            return
        share = masking.timesteps[index] / np.float32(TRAIN_TIMESTEPS)
        self._joining.write(joining)
        self._noise.write(masking.noise_of(call, self._noise.shape[1:])[None])
        self._signal.write(np.float32(1) - share)
        self._share.write(share[None])
        self._add_noise()
        self._join()
