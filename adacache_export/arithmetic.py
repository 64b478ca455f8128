"""The arithmetic graphs, shared by all stages: residuals, distances, guidance, the sampler's update.

Distances and latents are float32 whatever the precision of the hidden state.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from adacache_engines.manifest import GuidanceRule, LatentSpace
from adacache_engines.tensors import DType, TensorSpec
from adacache_export.stages import OUT, Stage


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


class Distance(nn.Module):
    """Sums for AdaCache's distance (arXiv 2411.02397, eq. 4): sum |cached - new| and sum |cached|, a sample each."""

    def forward(self, cached: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        cached, new = cached.float(), new.float()
        return (cached - new).abs().sum((1, 2, 3)), cached.abs().sum((1, 2, 3))


class Change(nn.Module):
    """The same sums over latents or velocities."""

    def forward(self, cached: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        return (cached - new).abs().sum((1, 2, 3, 4)), cached.abs().sum((1, 2, 3, 4))


class Motion(nn.Module):
    """Sums for motion regularisation (arXiv 2411.02397, eq. 7) over pairs of frames, a sample each:
    sum |later - earlier| and sum |later| + |earlier|; ``earlier`` and ``later`` (pairs,) are frame indices.
    """

    def forward(self, new: Tensor, earlier: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
        new = new.float()
        first, second = new.index_select(1, earlier), new.index_select(1, later)
        return (second - first).abs().sum((1, 2, 3)), (second.abs() + first.abs()).sum((1, 2, 3))


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


class Combine(nn.Module):
    """A sampler's linear update z' = a z + sum_k b_k v_k; also returns mean |z'|, which is finite if z' is."""

    def forward(self, latents: Tensor, history: Tensor, scale: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        update = (weights[:, :, None, None, None, None] * history).sum(0)
        out = scale[:, None, None, None, None] * latents + update
        return out, out.abs().mean((1, 2, 3, 4))


def arithmetic(stages: Sequence[Stage], latent: LatentSpace, guidance: GuidanceRule) -> list[Stage]:
    """The graphs for a model with these ``stages``.

    Axes: ``batch`` is all guidance branches of all samples, ``samples`` one of them, ``calls`` the predictions that
    the sampler remembers or the residuals that a group keeps, ``pairs`` the pairs of frames that are compared.
    """
    tokens = next(spec for stage in stages if stage.block for spec in stage.inputs if spec.name == "hidden")
    prediction = next(spec for spec in stages[-1].outputs if spec.name == "prediction")

    def spec(name: str, axes: tuple[int | str, ...], kind: DType = "float32") -> TensorSpec:
        return TensorSpec(name=name, dtype=kind, axes=axes)

    def hidden(name: str) -> TensorSpec:
        return tokens.model_copy(update={"name": name})

    def latents(name: str, *before: int | str) -> TensorSpec:
        return spec(name, (*before, latent.channels, "frames", "height", "width"))

    kept = tokens.model_copy(update={"name": "residuals", "axes": ("calls", *tokens.axes)})
    sums = (spec("change", ("batch",)), spec("magnitude", ("batch",)))
    of_samples = (spec("change", ("samples",)), spec("magnitude", ("samples",)))
    frames = (spec("earlier", ("pairs",), "int64"), spec("later", ("pairs",), "int64"))
    coefficients = (spec("scale", ("samples",)), spec("weights", ("calls", "samples")))
    updated = (latents("latents" + OUT, "samples"), spec("magnitude", ("samples",)))

    def stage(name: str, module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Stage:
        return Stage(name, name, module, "", inputs, outputs)

    return [
        stage("add", Add(), (hidden("hidden"), hidden("residual")), (hidden("hidden" + OUT),)),
        stage("blend", Blend(), (hidden("hidden"), kept, spec("weights", ("calls",))), (hidden("hidden" + OUT),)),
        stage("subtract", Subtract(), (hidden("after"), hidden("before")), (hidden("residual"),)),
        stage("distance", Distance(), (hidden("cached"), hidden("new")), sums),
        stage("change", Change(), (latents("cached", "samples"), latents("new", "samples")), of_samples),
        stage("motion", Motion(), (hidden("new"), *frames), sums),
        stage(
            "guide",
            Guide(latent.channels, guidance.order),
            (prediction, spec("guidance", (1,))),
            (latents("velocity", "samples"),),
        ),
        stage(
            "combine",
            Combine(),
            (latents("latents", "samples"), latents("history", "calls", "samples"), *coefficients),
            updated,
        ),
    ]
