"""The precision of a VAE: bfloat16 where the work is, and float32 where rounding would show.

It is never float16: convolutions of SDXL's VAE, which is Open-Sora's spatial one, give values beyond 65504. GPUs from
compute capability 8.0 on have bfloat16, as small and as fast.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from adacache_engines.bundle.latent_space import VaePrecision
from adacache_engines.bundle.manifest import DTYPES
from adacache_engines.bundle.tensors import DType, TensorSpec
from adacache_export.stages import Stage
from adacache_export.vaes.coding import Coding
from adacache_export.writing.weights_file import TORCH_DTYPES

NARROW = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # have weights and results in the VAE's precision
# Tolerance of the error against float32. Rounding to 8 bits is off by 1.6e-3 (rms, relative); 40 to 70 layers of the
# published VAEs, each rounding a product and a sum, make 1.4e-2 to 1.9e-2 of it, and the worst of 10^5 values is some
# five times that. Measured with random weights: 1e-2 rms, 4e-2 at worst; a wrong graph is off by about 1
TOLERANCE = 1e-1


def in_precision(coding: Coding, precision: VaePrecision) -> Coding:
    """Return the stages of a VAE with their convolutions and matrix products in another precision.

    Norms with their statistics, attention between its projections, and the latents' scale and shift stay float32, as do
    the inputs and outputs of the stages. Features that are carried from chunk to chunk have the precision of the
    convolutions that take them.
    """
    if precision == "fp32":
        return coding

    def narrowed(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return tuple(_narrowed(stage, DTYPES[precision]) for stage in stages)

    return replace(
        coding,
        decoding=narrowed(coding.decoding),
        encoding=narrowed(coding.encoding),
        first_decoding=narrowed(coding.first_decoding),
        first_encoding=narrowed(coding.first_encoding),
    )


def weight_dtypes(coding: Coding, precision: VaePrecision) -> dict[str, DType]:
    """Return the dtype of every weight of a VAE by its key."""
    return {
        key: DTYPES[precision] if isinstance(stage.module.get_submodule(name.rpartition(".")[0]), NARROW) else "float32"
        for stage in (*coding.decoders, *coding.encoders)
        for name, key in stage.keys().items()
    }


def _narrowed(stage: Stage, dtype: DType) -> Stage:
    carried = {*stage.carried, *stage.carried.values()}

    def narrow(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(spec.model_copy(update={"dtype": dtype}) if spec.name in carried else spec for spec in specs)

    inputs, outputs = narrow(stage.inputs), narrow(stage.outputs)

    def as_declared(_module: nn.Module, _given: object, result: Any) -> Any:
        values = result if isinstance(result, tuple) else (result,)
        cast = tuple(value.to(TORCH_DTYPES[spec.dtype]) for value, spec in zip(values, outputs, strict=True))
        return cast if isinstance(result, tuple) else cast[0]

    for module in stage.module.modules():
        if isinstance(module, (*NARROW, nn.GroupNorm)):
            module.register_forward_pre_hook(_like_weights)
        if isinstance(module, nn.Linear):  # a projection of attention
            module.register_forward_hook(_widened)
    stage.module.register_forward_hook(as_declared)
    return replace(stage, inputs=inputs, outputs=outputs, tolerance=TOLERANCE)


def _like_weights(module: nn.Module, given: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return tuple(None if value is None else value.to(weight.dtype) for value in given)


def _widened(_module: nn.Module, _given: object, result: Tensor) -> Tensor:
    return result.float()
