"""The arithmetic graphs, shared by all stages: residuals, guidance, the sampler's update.

Latents are float32 whatever the precision of the hidden state. The graphs are so small that each is written down as
ONNX text, which saves tracing it, and as a torch module; at export the one is verified against the other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adacache_engines.bundle.manifest import X_MASK, GuidanceRule, LatentSpace
from adacache_engines.bundle.tensors import ELEMENT_TYPES, DType, TensorSpec
from adacache_export.stages import OUT, Stage, hidden_of

# independent axes of work on single numbers of the state, and of the latents; sums over all have none
TOKENS_APART = ("patch_frames", "tokens")
PIXELS_APART = ("frames", "height", "width")

ADD = "hidden_out = Add (hidden, residual)"
SUBTRACT = "residual = Sub (after, before)"
BLEND = """
    axes = Constant <value_ints = [1, 2, 3, 4]> ()
    first = Constant <value_ints = [0]> ()
    kept = Cast <to = 1> (residuals)
    factors = Unsqueeze (weights, axes)
    weighted = Mul (factors, kept)
    update = ReduceSum <keepdims = 0> (weighted, first)
    wide = Cast <to = 1> (hidden)
    moved = Add (wide, update)
    hidden_out = {to_hidden} (moved)
"""
GUIDE = """
    start = Constant <value_ints = [0]> ()
    stop = Constant <value_ints = [{channels}]> ()
    axis = Constant <value_ints = [1]> ()
    latent = Slice (prediction, start, stop, axis)
    {branches} = Split <axis = 0, num_outputs = 2> (latent)
    difference = Sub (conditional, unconditional)
    further = Mul (guidance, difference)
    velocity = Add (unconditional, further)
"""
VELOCITY = """
    start = Constant <value_ints = [0]> ()
    stop = Constant <value_ints = [{channels}]> ()
    axis = Constant <value_ints = [1]> ()
    velocity = Slice (prediction, start, stop, axis)
"""
COMBINE = """
    of_history = Constant <value_ints = [2, 3, 4, 5]> ()
    of_latents = Constant <value_ints = [1, 2, 3, 4]> ()
    first = Constant <value_ints = [0]> ()
    factors = Unsqueeze (weights, of_history)
    weighted = Mul (factors, history)
    update = ReduceSum <keepdims = 0> (weighted, first)
    factor = Unsqueeze (scale, of_latents)
    scaled = Mul (factor, latents)
    latents_out = Add (scaled, update)
    size = Abs (latents_out)
    magnitude = ReduceMean <keepdims = 0> (size, of_latents)
"""
SELECT = """
    axes = Constant <value_ints = [1, 3, 4]> ()
    everywhere = Unsqueeze (mask, axes)
    latents_out = Where (everywhere, new, latents)
"""


class Add(nn.Module):
    """The reuse variant of a group: hidden' = hidden + residual."""

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return hidden + residual


class Blend(nn.Module):
    """The reuse variant of a group whose residuals are weighted: hidden' = hidden + sum_k w_k residual_k."""

    def forward(self, hidden: Tensor, residuals: Tensor, weights: Tensor) -> Tensor:
        update = (weights[:, None, None, None, None] * residuals.float()).sum(0)
        return (hidden.float() + update).to(hidden.dtype)


class Subtract(nn.Module):
    """A group's residual: after - before."""

    def forward(self, after: Tensor, before: Tensor) -> Tensor:
        return after - before


class Guide(nn.Module):
    """Classifier-free guidance (arXiv 2207.12598, eq. 6): u + g * (c - u) on the latent's channels."""

    def __init__(self, channels: int, order: tuple[str, ...]) -> None:
        super().__init__()
        self.channels, self.conditional_first = channels, order[0] == "conditional"

    def forward(self, prediction: Tensor, guidance: Tensor) -> Tensor:
        first, second = prediction[:, : self.channels].unflatten(0, (2, -1)).unbind(0)
        conditional, unconditional = (first, second) if self.conditional_first else (second, first)
        guided: Tensor = unconditional + guidance * (conditional - unconditional)
        return guided


class Velocity(nn.Module):
    """The latent's channels of a single branch's prediction."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, prediction: Tensor) -> Tensor:
        return prediction[:, : self.channels].clone()


class Combine(nn.Module):
    """A sampler's linear update z' = a z + sum_k b_k h_k; also returns mean |z'|, which is finite if z' is."""

    def forward(self, latents: Tensor, history: Tensor, scale: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        update = (weights[:, :, None, None, None, None] * history).sum(0)
        out = scale[:, None, None, None, None] * latents + update
        return out, out.abs().mean((1, 2, 3, 4))


class Select(nn.Module):
    """The frames of ``new`` where ``mask`` (samples, frames) is true, and those of ``latents``."""

    def forward(self, mask: Tensor, new: Tensor, latents: Tensor) -> Tensor:
        return torch.where(mask[:, None, :, None, None], new, latents)


def arithmetic(stages: Sequence[Stage], latent: LatentSpace, guidance: GuidanceRule) -> list[Stage]:
    """Return the graphs for a model with these ``stages``; ``select`` only for one that may keep frames.

    Axes: ``batch`` is all guidance branches of all samples, ``samples`` one of them, ``calls`` the predictions that
    the sampler remembers or the residuals that a group keeps.
    """
    tokens = hidden_of(stages)
    prediction = next(spec for spec in stages[-1].outputs if spec.name == "prediction")

    def spec(name: str, axes: tuple[int | str, ...], kind: DType = "float32") -> TensorSpec:
        return TensorSpec(name=name, dtype=kind, axes=axes)

    def hidden(name: str) -> TensorSpec:
        return tokens.model_copy(update={"name": name})

    def latents(name: str, *before: int | str) -> TensorSpec:
        return spec(name, (*before, latent.channels, "frames", "height", "width"))

    kept = tokens.model_copy(update={"name": "residuals", "axes": ("calls", *tokens.axes)})
    of_branch = prediction.model_copy(update={"axes": ("samples", *prediction.axes[1:])})
    coefficients = (spec("scale", ("samples",)), spec("weights", ("calls", "samples")))
    updated = (latents("latents" + OUT, "samples"), spec("magnitude", ("samples",)))

    def stage(
        name: str,
        module: nn.Module,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        nodes: str,
        independent_axes: tuple[str, ...] = (),
    ) -> Stage:
        return Stage(name, name, module, "", inputs, outputs, nodes=nodes, independent_axes=independent_axes)

    conditioned = any(spec.name == X_MASK for stage in stages for spec in stage.inputs)
    select = stage(
        "select",
        Select(),
        (spec("mask", ("samples", "frames"), "bool"), latents("new", "samples"), latents("latents", "samples")),
        (latents("latents" + OUT, "samples"),),
        SELECT,
        PIXELS_APART,
    )
    guide = stage(
        "guide",
        Guide(latent.channels, guidance.order),
        (prediction, spec("guidance", (1,))),
        (latents("velocity", "samples"),),
        GUIDE.format(channels=latent.channels, branches=", ".join(guidance.order)),
        PIXELS_APART,
    )
    to_hidden = f"Cast <to = {ELEMENT_TYPES[tokens.dtype].onnx}>"
    return [
        stage("add", Add(), (hidden("hidden"), hidden("residual")), (hidden("hidden" + OUT),), ADD, TOKENS_APART),
        stage(
            "blend",
            Blend(),
            (hidden("hidden"), kept, spec("weights", ("calls",))),
            (hidden("hidden" + OUT),),
            BLEND.format(to_hidden=to_hidden),
            TOKENS_APART,
        ),
        stage(
            "subtract", Subtract(), (hidden("after"), hidden("before")), (hidden("residual"),), SUBTRACT, TOKENS_APART
        ),
        stage(
            "velocity",
            Velocity(latent.channels),
            (of_branch,),
            (latents("velocity", "samples"),),
            VELOCITY.format(channels=latent.channels),
            PIXELS_APART,
        ),
        *([guide] if len(guidance.order) > 1 else []),
        stage(
            "combine",
            Combine(),
            (latents("latents", "samples"), latents("history", "calls", "samples"), *coefficients),
            updated,
            COMBINE,
        ),
        *([select] if conditioned else []),
    ]
