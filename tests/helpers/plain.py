"""The fake model's generations by a numpy loop without buffers, engines or plans, which keeps all that happened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adacache_engines.contract.device import Array
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.settled import initial_noise, settle
from adacache_runtime.text.prompts import null_captions
from tests.helpers import fake_model
from tests.helpers.fake_model import BLOCKS

GROUPS: Mapping[str, Sequence[Sequence[str]]] = {
    "model": [BLOCKS],
    "stack": [BLOCKS],
    "first": [BLOCKS[:1], BLOCKS[1:]],
    "block": [[name] for name in BLOCKS],
}


@dataclass
class Plain:
    """A list entry a call.

    Attributes:
        latents: that enter it; one more at the end.
        velocities: that it gives.
        modulated: what the embedding shows.
        first: residual of the first group.
        shown: what each computed block shows, by its name.
    """

    latents: list[Any] = field(default_factory=list)
    velocities: list[Any] = field(default_factory=list)
    modulated: list[Any] = field(default_factory=list)
    first: list[Any] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)


def line(kept: Sequence[tuple[int, Any]], call: int, extrapolates: bool) -> Any:
    """The value at a call of (call, value), the newest first."""
    (last, newest), *rest = kept
    if not rest or not extrapolates:
        return newest
    before, older = rest[0]
    return newest + (newest - older) * np.float32((call - last) / (last - before))


def plain(
    pipeline: Pipeline,
    asked: Request,
    decisions: Sequence[Sequence[bool]],
    granularity: str,
    extrapolates: bool = False,
) -> Plain:
    """Runs a request as it was decided, which groups of a call being computed."""
    settled, given = settle(pipeline.bundle, asked), asked.captions
    assert given is not None
    text = np.concatenate([given.embeddings, np.broadcast_to(null_captions(pipeline.bundle), given.embeddings.shape)])
    rest = {"text": text / 2, "text_mask": np.concatenate([given.mask] * 2)}
    groups, whole = GROUPS[granularity], granularity == "model"
    kept: list[list[tuple[int, Array]]] = [[] for _ in groups]
    z: Any = initial_noise(asked.seed, settled.latent_shape) if asked.latents is None else asked.latents
    history = np.zeros((settled.updates[0].weights.shape[0], *z.shape), np.float32)
    added = None if asked.mask is None else asked.mask == 1
    seen = Plain(latents=[z])
    for call, (update, compute) in enumerate(zip(settled.updates, decisions, strict=True), 1):
        upper, x0 = np.ones((len(z), z.shape[2]), bool), z
        if asked.mask is not None:
            assert asked.noise is not None
            t, each = update.timestep[:, None], (..., None, None)
            upper = np.float32(1000) * asked.mask >= t
            share = (t / np.float32(1000))[:, None][each]
            noised = (np.float32(1) - share) * x0 + share * asked.noise[call - 1]
            z = np.where((upper & ~added)[:, None][each], noised, x0)
            added = upper
            seen.latents[-1] = z
        inputs = {"latents": np.concatenate([z, z]), "timestep": np.tile(update.timestep, 2)}
        if asked.mask is not None:
            inputs["x_mask"] = np.concatenate([upper, upper])
        tensors: dict[str, Any] = {**rest, **inputs, **fake_model.run_embed(inputs)}
        seen.modulated.append(tensors["modulated"])
        seen.shown.append({})
        for group, names in enumerate(groups):
            before = tensors["hidden"]
            if compute[group] or whole:
                for name in names:
                    ran = fake_model.run_block(name, tensors)
                    tensors["hidden"], seen.shown[-1][name] = ran["hidden_out"], ran["attn"]
                if not whole:
                    kept[group].insert(0, (call, tensors["hidden"] - before))
            else:
                tensors["hidden"] = before + line(kept[group], call, extrapolates)
        seen.first.append(kept[0][0][1] if not whole else None)
        scale = np.array([settled.guidance], np.float32)
        guided = {"prediction": fake_model.run_final(tensors)["prediction"], "guidance": scale}
        velocity = fake_model.run_guide(guided)["velocity"]
        if whole and compute[0]:
            kept[0].insert(0, (call, velocity - z))
        elif whole:
            velocity = z + line(kept[0], call, extrapolates)
        history[update.slot] = velocity
        a, b = update.scale[:, None, None, None, None], update.weights[..., None, None, None, None]
        z = np.where(upper[:, None, :, None, None], a * z + (b * history).sum(0), x0)
        seen.velocities.append(velocity)
        seen.latents.append(z)
    return seen
