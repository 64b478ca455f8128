"""The fake model's generations by a numpy loop without buffers, engines or plans, which keeps all that happened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adacache_engines.contract.device import Array
from adacache_runtime.caching.policy import Decision
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Request
from adacache_runtime.samplers.update import Update
from adacache_runtime.settled import initial_noise, settle
from adacache_runtime.text.prompts import null_captions
from tests.helpers.model import fake_model
from tests.helpers.model.fake_model import BLOCKS

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
        latents: the latents that enter the call; one entry more at the end.
        velocities: the call's velocity.
        conditional: velocity of the conditional branch, as the whole model gives it.
        modulated: the tensor that the embedding shows.
        first: residual of the first group.
        shown: the tensors that computed blocks show, by name.
    """

    latents: list[Any] = field(default_factory=list)
    velocities: list[Any] = field(default_factory=list)
    conditional: list[Any] = field(default_factory=list)
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
        scale = np.array([settled.segments[0].guidance], np.float32)
        guided = {"prediction": fake_model.run_final(tensors)["prediction"], "guidance": scale}
        velocity = fake_model.run_guide(guided)["velocity"]
        seen.conditional.append(guided["prediction"][: len(z)])
        if whole and compute[0]:
            kept[0].insert(0, (call, velocity - z))
        elif whole:
            velocity = z + line(kept[0], call, extrapolates)
        history[update.slot] = entry(update, z, velocity)
        a, b = update.scale[:, None, None, None, None], update.weights[..., None, None, None, None]
        z = np.where(upper[:, None, :, None, None], a * z + (b * history).sum(0), x0)
        seen.velocities.append(velocity)
        seen.latents.append(z)
    return seen


def entry(update: Update, latents: Any, velocity: Any) -> Any:
    """Return c z + d v, which a call adds to the sampler's history."""
    c, d = (values[:, None, None, None, None] for values in update.entry())
    return c * latents + d * velocity


def plain_by_branch(
    pipeline: Pipeline,
    asked: Request,
    decisions: Sequence[Decision],
    granularity: str,
    guidances: Sequence[float],
    scales: Sequence[float] | None = None,
    text_scales: Sequence[float] | None = None,
) -> list[Any]:
    """Latents before each call and at the end, each branch going through the model by itself.

    Args:
        pipeline: the pipeline that generates the same.
        asked: the request, without a mask.
        decisions: decision of each call.
        granularity: ``stack``, ``first`` or ``block``.
        guidances: guidance scale of each call.
        scales: factor of each call on what its blocks add, for models with several experts; None = 1.
        text_scales: divisor of the captions in each call; None = 2.
    """
    settled, given, order = settle(pipeline.bundle, asked), asked.captions, pipeline.bundle.manifest.guidance.order
    assert given is not None
    captions_of = {"conditional": given.embeddings}
    if "unconditional" in order:
        captions_of["unconditional"] = np.broadcast_to(null_captions(pipeline.bundle), given.embeddings.shape)
    groups = GROUPS[granularity]
    kept: dict[tuple[str, int], list[Any]] = {(branch, group): [] for branch in order for group in range(len(groups))}
    difference: Any = None
    z: Any = initial_noise(asked.seed, settled.latent_shape)
    seen = [z]
    for call, (update, decision) in enumerate(zip(settled.updates, decisions, strict=True)):
        predictions: dict[str, Any] = {}
        for index, branch in enumerate(order):
            if decision.rebuilt(len(order))[index]:
                continue
            tensors: dict[str, Any] = {
                "latents": z,
                "timestep": update.timestep,
                "text": captions_of[branch] / np.float32(text_scales[call] if text_scales else 2),
                "text_mask": given.mask,
            }
            tensors |= fake_model.run_embed(tensors)
            weights = decision.weights_by_branch(len(order))
            for group, names in enumerate(groups):
                before, residuals = tensors["hidden"], kept[branch, group]
                if decision.rows(len(order))[index][group]:
                    for name in names:
                        added = fake_model.run_block(name, tensors)["attn"] * np.float32(scales[call] if scales else 1)
                        tensors["hidden"] = tensors["hidden"] + added
                    residuals.insert(0, tensors["hidden"] - before)
                else:
                    factors = weights[index][group] if weights else (1.0,)
                    added = sum(np.float32(w) * r for w, r in zip(factors, residuals, strict=False))
                    tensors["hidden"] = before + added
            predictions[branch] = fake_model.run_final(tensors)["prediction"]
        if len(order) == 1:
            velocity = predictions[order[0]]
        else:
            if len(predictions) == 2:
                difference = predictions["unconditional"] - predictions["conditional"]
            for index, weight in enumerate(decision.rebuild):
                if weight is not None:
                    sign, other = (1, "conditional") if order[index] == "unconditional" else (-1, "unconditional")
                    predictions[order[index]] = predictions[other]
                    if weight:
                        predictions[order[index]] = predictions[other] + np.float32(sign * weight) * difference
            c, u = predictions["conditional"], predictions["unconditional"]
            velocity = u + np.float32(guidances[call]) * (c - u)
        z = update.scale[:, None, None, None, None] * z + update.weights[0][:, None, None, None, None] * velocity
        seen.append(z)
    return seen
