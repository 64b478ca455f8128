"""Stages, in torch and as engines, against every tensor of the original that was recorded."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adacache_export.stages import Stage
from tests.helpers.originals.open_sora_original import (
    CONFIG,
    FAMILY,
    INPUTS,
    KINDS,
    SITES,
    VARIANTS,
    model_inputs,
    run_engines,
    run_torch,
    variant,
)
from tests.helpers.originals.reference import OPEN_SORA, arrays, worst

TOLERANCE = 2e-5  # absolute
OUTPUTS = arrays(OPEN_SORA / "outputs_A.npz")


EXPECTED = {"": OUTPUTS["out"], **{name: VARIANTS[f"{name}.out"] for name in ("cfg", "nomask", "image")}}


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    weights = load_file(OPEN_SORA / "weights_A.safetensors")
    stages = FAMILY.stages(CONFIG, SITES)
    for stage in stages:
        stage.module.load_state_dict({name: weights[key] for name, key in stage.keys().items()})
    return stages


def numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


@pytest.fixture(scope="module")
def seen(stages: list[Stage]) -> dict[str, np.ndarray]:
    """Everything that one evaluation of the torch stages shows, under the names of the reference."""
    shown: dict[str, Tensor] = {}
    handles = []

    def watch(module: torch.nn.Module, name: str) -> None:
        handles.append(module.register_forward_hook(lambda _module, _inputs, out: shown.__setitem__(name, out)))

    for stage in stages:
        if stage.block:
            name = stage.name.replace(".0", ".")
            watch(stage.module.cross_attn, f"{name}.cross_res")
            watch(stage.module, f"{name}.out")
    text, positions, embed, final = (stage for stage in stages if not stage.block)
    watch(text.module, "y_embedder")
    watch(positions.module, "pos_emb")
    watch(embed.module, "embed")
    watch(embed.module.t_embedder, "t_embedder")
    watch(embed.module.fps_embedder, "fps_embedder")
    watch(embed.module.x_embedder["proj"], "x_embedder")
    watch(final.module.linear, "final_layer")
    result = run_torch(stages, variant(""))
    for handle in handles:
        handle.remove()

    block_input, modulation, _ = shown.pop("embed")
    shown |= {"block_input": block_input, "t_mlp": modulation.flatten(1), "out": result["prediction"]}
    shown["y_embedder"] = shown["y_embedder"][:, None]
    shown["x_embedder"] = shown["x_embedder"].flatten(2).transpose(1, 2)
    shown["pos_emb"] = shown["pos_emb"][0][None]
    for kind in KINDS:
        for index in range(CONFIG.depth):
            name = f"{kind}.{index}"
            shown[f"{name}.out"] = shown[f"{name}.out"][0]
            shown[f"{name}.attn_res"] = result[f"{name}.attn"]
            shown[f"{name}.mlp_res"] = result[f"{name}.cross+mlp"] - shown[f"{name}.cross_res"]
    tokens = {name for name in shown if name.startswith(KINDS)} | {"block_input", "final_layer"}
    return {name: numpy(value.flatten(1, 2) if name in tokens else value) for name, value in shown.items()}


@pytest.mark.parametrize("name", sorted(set(OUTPUTS) - {"y_packed", "y_lens"}))  # those two: text is not packed here
def test_torch_stages_show_what_the_original_shows(seen, name: str) -> None:
    assert worst(seen[name], OUTPUTS[name]) <= TOLERANCE


@pytest.mark.parametrize("name", EXPECTED)
def test_torch_stages_give_what_the_original_gives(stages, name: str) -> None:
    result = run_torch(stages, variant(name))
    assert worst(numpy(result["prediction"]), EXPECTED[name]) <= TOLERANCE


@pytest.mark.parametrize("name", EXPECTED)
def test_engines_give_what_the_original_gives(pipeline, name: str) -> None:
    *_, (last, outputs) = run_engines(pipeline, variant(name))
    assert last == "final"
    assert worst(outputs["prediction"], EXPECTED[name]) <= TOLERANCE


def test_engines_show_what_the_original_shows(pipeline) -> None:
    found = []
    for name, outputs in run_engines(pipeline, variant("")):
        if "hidden_out" not in outputs:
            continue
        kind, index = name.split(".")
        block = f"{kind}.{int(index)}"
        checks = {"hidden_out": OUTPUTS[f"{block}.out"]}
        if "attn" in outputs:
            checks["attn"] = OUTPUTS[f"{block}.attn_res"]
            checks["cross+mlp"] = OUTPUTS[f"{block}.cross_res"] + OUTPUTS[f"{block}.mlp_res"]
        for output, expected in checks.items():
            found.append(f"{block}.{output}")
            assert worst(outputs[output].reshape(expected.shape), expected) <= TOLERANCE, found[-1]
    assert len(found) == 3 * 2 * CONFIG.depth  # every block, and both its probes


# Latents that do not fill whole patches: the original pads with zeros at the far ends and crops.


def padded(latents: np.ndarray, patch: tuple[int, int, int]) -> np.ndarray:
    far = [-size % whole for size, whole in zip(latents.shape[2:], patch, strict=True)]
    return np.pad(latents, [(0, 0), (0, 0), *((0, end) for end in far)])


@pytest.mark.parametrize("size", [(5, 5, 9), (5, 6, 9), (2, 5, 10), (1, 3, 3), (3, 1, 1)])
def test_odd_sizes_are_padded_and_cropped(stages, pipeline, size: tuple[int, int, int]) -> None:
    latents = np.random.default_rng(1).standard_normal((2, 4, *size), np.float32)
    inputs = {**model_inputs(), "latents": latents}
    whole = run_torch(stages, {**inputs, "latents": padded(latents, CONFIG.patch_size)})["prediction"]
    expected = numpy(whole)[:, :, : size[0], : size[1], : size[2]]
    assert worst(numpy(run_torch(stages, inputs)["prediction"]), expected) == 0
    *_, (_, outputs) = run_engines(pipeline, inputs)
    assert worst(outputs["prediction"], expected) <= TOLERANCE


def test_padding_reaches_the_tokens_as_zeros(stages) -> None:
    """Patches by plain sums over the zero-padded latent, without any convolution."""
    latents = np.random.default_rng(2).standard_normal((2, 4, 3, 5, 9), np.float32)
    embed = next(stage.module for stage in stages if stage.name == "embed")
    proj = embed.x_embedder["proj"]
    blocks = padded(latents, (1, 2, 2)).reshape(2, 4, 3, 1, 3, 2, 5, 2)
    expected = np.einsum("bctihjwk,dcijk->bdthw", blocks, numpy(proj.weight)) + numpy(proj.bias)[:, None, None, None]
    assert worst(numpy(embed.patches(torch.from_numpy(latents))), expected) <= TOLERANCE


def test_frames_are_padded_where_a_patch_spans_several() -> None:
    tiny = replace(CONFIG, patch_size=(2, 2, 2), hidden_size=16, depth=1, num_heads=2, caption_channels=8)
    stages = FAMILY.stages(tiny)
    torch.manual_seed(0)
    for stage in stages:
        for parameter in stage.module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    latents = np.random.default_rng(3).standard_normal((2, 4, 3, 5, 4), np.float32)
    inputs = {**model_inputs(), "captions": INPUTS["y"][:, 0, :, :8], "latents": latents}
    out = run_torch(stages, inputs)["prediction"]
    whole = run_torch(stages, {**inputs, "latents": padded(latents, (2, 2, 2))})["prediction"]
    assert out.shape == (2, 8, 3, 5, 4)
    assert worst(numpy(out), numpy(whole)[:, :, :3, :5, :4]) == 0


def test_text_beyond_the_mask_does_not_count(stages) -> None:
    """So that captions may be cut to the longest prompt."""
    inputs = model_inputs()
    captions, length = inputs["captions"].copy(), int(inputs["text_mask"][1].sum())
    captions[1, length:] = 1e3
    changed = run_torch(stages, {**inputs, "captions": captions})["prediction"]
    assert worst(numpy(changed), OUTPUTS["out"]) <= TOLERANCE
    alone = {name: value[1:] if len(value) == 2 else value for name, value in inputs.items()}
    alone |= {"captions": alone["captions"][:, :length], "text_mask": alone["text_mask"][:, :length]}
    assert worst(numpy(run_torch(stages, alone)["prediction"]), OUTPUTS["out"][1:]) <= TOLERANCE
