"""Masked sampling: some latent frames are given and kept, others join the generation part of the way.

A mask (samples, frames) says what becomes of each frame: 1 = generated from noise in all calls; 0 = kept as given; e in
between, the edit ratio = kept while t > 1000 e, then taken to timestep t by noise and generated like the others. Kept
frames enter the model as clean ones, modulated as at timestep 0.

Source: hpcaitech/Open-Sora v1.2.0, ``opensora/schedulers/rf``. As there, a frame joins where 1000 e >= t in float32: in
the sizes whose first timestep is 1000.0001, all frames sit out the first call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.manifest import Conditioning, Manifest
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_runtime.samplers.registry import SAMPLERS
from adacache_runtime.samplers.update import TRAIN_TIMESTEPS, Floats, Update

# why a model cannot keep frames, and what to do
KEEPS_NO_FRAMES: Mapping[Conditioning, str] = {
    "none": "this model makes videos from text alone: leave images, clips, masks and loops out",
    "not-exported": "this bundle cannot keep frames that are given: export the checkpoint again with --conditioning, or"
    " leave images, clips, masks and loops out",
    "encoded-video": "this model starts from one image, and keeps no other frames that are given: leave masks, clips"
    " and loops out",
}


@dataclass(frozen=True)
class Masking:
    """A mask, spelled out for each call.

    Attributes:
        generated: (calls, samples, frames) bool, frames that the call generates; it keeps the others.
        joining: (calls, samples, frames) bool, those of them that were kept until then, and take noise first.
        timesteps: (calls, samples) float32.
        noise: (calls, samples, channels, frames, height, width) float32 that joining frames take; None = the seed's.
        seed: seed of the noise that is not given.
    """

    generated: NDArray[np.bool_]
    joining: NDArray[np.bool_]
    timesteps: Floats
    noise: NDArray[np.float32] | None
    seed: int

    def noise_of(self, call: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the noise of a call, from 1; it does not depend on what earlier calls drew."""
        if self.noise is not None:
            return np.ascontiguousarray(self.noise[call - 1], np.float32)
        stream = np.random.SeedSequence(self.seed, spawn_key=(call,))
        return np.random.default_rng(stream).standard_normal(shape, np.float32)


def masking(mask: NDArray[np.float32], updates: Sequence[Update], noise: Floats | None, seed: int) -> Masking | None:
    """Return what ``mask`` (samples, latent frames) means for each call; None where it keeps nothing."""
    if (mask == 1).all():
        return None
    timesteps = np.stack([update.timestep for update in updates])
    generated = mask.astype(np.float32) * np.float32(TRAIN_TIMESTEPS) >= timesteps[:, :, None]
    before = np.concatenate([(mask == 1)[None], generated[:-1]])
    return Masking(generated, generated & ~before, timesteps, noise, seed)


def check_conditioned(manifest: Manifest) -> None:
    """Check that a bundle can keep frames that are given.

    Raises:
        InputError: it cannot; says what to do.
    """
    if manifest.conditioning in KEEPS_NO_FRAMES:
        raise InputError(KEEPS_NO_FRAMES[manifest.conditioning])


def check_mask(
    manifest: Manifest, sampler: str, mask: NDArray[np.float32], noise: Floats | None, shape: Sequence[int], calls: int
) -> None:
    """Check that a mask, and the noise for it, belong to a generation.

    Args:
        manifest: manifest of the bundle.
        sampler: name of the generation's sampler.
        mask: expected to be (samples, latent frames).
        noise: expected to be (calls, samples, channels, frames, height, width).
        shape: shape of the latents (samples, channels, frames, height, width) that hold the kept frames.
        calls: number of calls of the generation.

    Raises:
        InputError: the bundle cannot keep frames, the sampler cannot let frames join midway, or arrays do not belong
            together.
        OutOfRangeError: a value of the mask is not 0 to 1.
    """
    flows = {name: entry for name, entry in SAMPLERS.items() if entry.predicts == "flow"}
    if sampler not in flows:
        raise InputError(
            f"a mask is for models that are sampled with {', '.join(flows)}; this bundle's is {sampler}: leave it out"
        )
    check_conditioned(manifest)
    expected = (shape[0], shape[2])
    if mask.shape != expected:
        raise InputError(f"the mask has shape {mask.shape}; expected (prompts, latent frames), here {expected}")
    if not ((mask >= 0) & (mask <= 1)).all():  # NaN is neither
        raise OutOfRangeError(
            "the mask has values outside of 0 to 1; give 1 for a frame to generate, 0 for one to keep, and in between "
            "the edit ratio"
        )
    if flows[sampler].multistep and ((mask > 0) & (mask < 1)).any():
        able = " or ".join(name for name, entry in flows.items() if not entry.multistep)
        raise InputError(
            f"edit ratios between 0 and 1 are not possible with the sampler {sampler}, which looks back on earlier "
            f"calls, and a frame that joins midway has none; choose an edit ratio of 0, or the sampler {able}"
        )
    if noise is None:
        return
    if noise.shape != (calls, *shape):
        raise InputError(
            f"the noise has shape {noise.shape}; expected (steps, prompts, channels, frames, height, width), here "
            f"{(calls, *shape)}: one for each of the {calls} steps, of the latents' shape"
        )
    if not np.isfinite(noise).all():
        raise InputError("the noise contains NaN or infinity")
