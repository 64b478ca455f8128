"""Frames that are given and kept, on the exported engines against the original Open-Sora's numbers and formulas."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from adacache_engines.bundle.files import read_manifest
from adacache_engines.errors import InputError
from adacache_export.commands.export import main as export
from adacache_export.families.open_sora.transformer import OpenSoraConfig
from adacache_export.families.registry import FAMILIES, maker
from adacache_export.stages import MODULATED, Stage
from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.scheduled.interval import FixedInterval
from adacache_runtime.commands.run import main as run
from adacache_runtime.pipeline import Pipeline
from tests.helpers.originals.open_sora_original import FAMILY, NULL, VARIANTS, model_inputs, run_engines, run_torch
from tests.helpers.originals.reference import MASK, OPEN_SORA, SIZE, arrays, captions, config, drawn, request, worst

TOLERANCE = 2e-5  # absolute
LATENTS = 5e-4  # absolute
STEPS = 12
ADACACHE = AdaCache(codebook=[(0.1, 4), (0.5, 3), (2.0, 2), (3.0, 1)])


@pytest.fixture(scope="session")
def conditioned(conditioned_folder: Path) -> Pipeline:
    return Pipeline.open(conditioned_folder)


def loaded(**options: Any) -> list[Stage]:
    weights = load_file(OPEN_SORA / "weights_A.safetensors")
    made = maker(FAMILY, conditioned=True)(config(OpenSoraConfig), **options)
    for stage in made:
        stage.module.load_state_dict({name: weights[key] for name, key in stage.keys().items()})
    return made


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return loaded()


def masked_inputs() -> dict[str, NDArray[Any]]:
    return {**model_inputs(), "x_mask": VARIANTS["xmask.x_mask"]}


def test_torch_stages_give_what_the_original_gives(stages: list[Stage]) -> None:
    result = run_torch(stages, masked_inputs())
    assert worst(result["prediction"].numpy(), VARIANTS["xmask.out"]) <= TOLERANCE
    kept = ~VARIANTS["xmask.x_mask"]
    expected = np.broadcast_to(VARIANTS["xmask.t_mlp"].reshape(2, 1, 6, -1), result["modulation"].shape)
    difference = np.abs(result["modulation"].numpy() - expected).max((2, 3))
    assert (difference[~kept] <= TOLERANCE).all()
    assert (difference[kept] > 0.1).all()


def test_parts_of_blocks_give_the_same() -> None:
    result = run_torch(loaded(granularity="module"), masked_inputs())
    assert worst(result["prediction"].numpy(), VARIANTS["xmask.out"]) <= TOLERANCE


def test_what_teacache_looks_at_is_of_each_frame() -> None:
    made = loaded(sites=(MODULATED,))
    x_mask = VARIANTS["xmask.x_mask"]
    masks = (x_mask, np.ones_like(x_mask), np.zeros_like(x_mask))
    given, generated, kept = (run_torch(made, {**masked_inputs(), "x_mask": mask})[MODULATED] for mask in masks)
    chosen = torch.from_numpy(x_mask)[:, :, None, None]
    assert torch.equal(given, torch.where(chosen, generated, kept))
    assert not torch.allclose(generated, kept)


@pytest.mark.slow
def test_engines_show_what_the_original_shows(conditioned: Pipeline) -> None:
    found = []
    for name, outputs in run_engines(conditioned, masked_inputs()):
        kind, _, index = name.partition(".")
        recorded = "xmask.out" if name == "final" else f"xmask.{kind}.{int(index or 0)}.out"
        if recorded in VARIANTS:
            given = outputs["prediction" if name == "final" else "hidden_out"]
            assert worst(given.reshape(VARIANTS[recorded].shape), VARIANTS[recorded]) <= TOLERANCE, recorded
            found.append(recorded)
    assert found == ["xmask.spatial.0.out", "xmask.temporal.0.out", "xmask.temporal.2.out", "xmask.out"]


def torch_loop(stages: list[Stage], z: Tensor, mask: Tensor, noise: Tensor) -> list[Tensor]:
    """The latents that enter each call, and the last ones, of the original's sampler as its formulas have it."""
    steps, samples, guidance = len(noise), len(z), SIZE["guidance"]
    ratio = math.sqrt(SIZE["height"] * SIZE["width"] / 512**2) * math.sqrt(SIZE["frames"] // 17 * 5)
    u = torch.tensor([1 - i / steps for i in range(steps)], dtype=torch.float64)
    timesteps = (1000 * ratio * u / (1 + (ratio - 1) * u)).float()
    text = captions()
    null = np.broadcast_to(NULL, text.embeddings.shape)
    fixed: Mapping[str, Any] = {
        "captions": np.concatenate([text.embeddings, null]),
        "text_mask": np.concatenate([text.mask, text.mask]),
        "fps": np.full(2 * samples, SIZE["fps"][0], np.float32),
        "height": np.array([SIZE["height"]], np.float32),
        "width": np.array([SIZE["width"]], np.float32),
    }
    added, seen = mask == 1, []
    for i, t in enumerate(timesteps):
        x0 = z
        upper = mask * 1000 >= t
        noised = (1 - t / 1000) * x0 + t / 1000 * noise[i]
        z = torch.where((upper & ~added)[:, None, :, None, None], noised, x0)
        added = upper
        seen.append(z)
        inputs = {"latents": torch.cat([z, z]), "x_mask": torch.cat([upper, upper]), "timestep": t.expand(2 * samples)}
        result = run_torch(stages, {**fixed, **{name: value.numpy() for name, value in inputs.items()}})
        conditional, unconditional = result["prediction"][:, :4].chunk(2)
        velocity = unconditional + guidance * (conditional - unconditional)
        further = timesteps[i + 1] if i + 1 < steps else torch.tensor(0.0)
        z = torch.where(upper[:, None, :, None, None], z + velocity * (t - further) / 1000, x0)
    return [*seen, z]


@pytest.mark.slow
def test_a_trajectory_is_that_of_the_originals_formulas(
    conditioned_folder: Path, stages: list[Stage], tmp_path: Path
) -> None:
    """From the command line: frames to generate, to keep, and to keep at first."""
    latents, noise = drawn(1), drawn(2, STEPS)
    given, out = tmp_path / "given.npz", tmp_path / "out.npz"
    np.savez(given, latents=latents, mask=MASK, noise=noise)
    np.savez(tmp_path / "text.npz", embeddings=captions().embeddings, mask=captions().mask)
    command = [str(conditioned_folder), "--text-embeddings", str(tmp_path / "text.npz"), "--latents", str(given)]
    command += ["--size", "80x48", "--frames", "17", "--fps", "24", "--steps", str(STEPS), "--guidance", "7"]
    assert run([*command, "--save-latents", str(out), "--save-every-call"]) == 0
    saved = arrays(out)
    expected = torch_loop(stages, *map(torch.from_numpy, (latents, MASK, noise)))
    for one, other in zip([*saved["calls"], saved["latents"]], expected, strict=True):
        assert worst(one, other.numpy()) <= LATENTS
    for sample, frame in np.argwhere(MASK == 0):
        np.testing.assert_array_equal(saved["latents"][sample, :, frame], latents[sample, :, frame])
    joined = expected[-1].numpy() - latents
    assert all(np.abs(joined[sample, :, frame]).max() > 0.1 for sample, frame in np.argwhere(MASK > 0))


@pytest.mark.slow
def test_without_a_mask_nothing_changes(conditioned: Pipeline, pipeline: Pipeline) -> None:
    """Bit for bit, the policy's distances included."""
    for policy in (ADACACHE, FixedInterval(every=2)):
        asked = request(policy=policy, steps=4)
        one, other = (some.generate(asked) for some in (conditioned, pipeline))
        np.testing.assert_array_equal(one.latents, other.latents)
        assert [call.observation for call in one.trace.calls] == [call.observation for call in other.trace.calls]


@pytest.mark.slow
def test_policies_work_unchanged(conditioned: Pipeline) -> None:
    """The schedule of AdaCache, and the same latents at all granularities."""
    latents = drawn(1)
    asked: dict[str, Any] = {"latents": latents, "mask": MASK, "noise": drawn(2, STEPS), "steps": STEPS}
    stack, first, block = (
        conditioned.generate(request(policy=ADACACHE, granularity=granularity, **asked))
        for granularity in ("stack", "first", "block")
    )
    assert 2 < len(stack.trace.computed()) < STEPS
    for other in (first, block):
        assert other.trace.computed() == stack.trace.computed()
        assert worst(other.latents, stack.latents) <= TOLERANCE * np.abs(stack.latents).max()
    for sample, frame in np.argwhere(MASK == 0):
        np.testing.assert_array_equal(stack.latents[sample, :, frame], latents[sample, :, frame])


@pytest.mark.slow
def test_inspect_and_verify(conditioned_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export([str(conditioned_folder), "--inspect"]) == 0
    assert "frames may be given and kept" in capsys.readouterr().out
    assert export([str(conditioned_folder), "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "select" in shown
    assert "every engine agrees with its torch stage" in shown


@pytest.mark.slow
def test_a_bundle_is_of_the_same_weights(conditioned_folder: Path, bundle_folder: Path) -> None:
    one, other = (read_manifest(folder) for folder in (conditioned_folder, bundle_folder))
    assert (one.conditioning, other.conditioning) == ("kept-frames", "not-exported")
    assert one.files[one.weights] == other.files[other.weights]
    assert {graph.name for graph in one.graphs()} - {graph.name for graph in other.graphs()} == {"select"}


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.conditioned_stages is None])
def test_other_families_refuse(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = OPEN_SORA.parent / {"latte-1": "latte", "open-sora-plan-1.1": "open-sora-plan"}[name]
    assert export([str(folder), "-o", str(tmp_path / "out"), "--conditioning"]) == 1
    assert f"--conditioning: {name} was not trained to keep frames" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tokens_of_several_frames_are_refused() -> None:
    given = {"patch_size": (2, 2, 2), "hidden_size": 16, "depth": 1, "num_heads": 2}
    with pytest.raises(InputError, match="spans 2 latent frames"):
        maker(FAMILY, conditioned=True)(OpenSoraConfig(**given))


def test_a_bundle_without_says_how_to_add_it(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "given.npz", latents=drawn(1), mask=MASK)
    np.savez(tmp_path / "text.npz", embeddings=captions().embeddings)
    command = [str(bundle_folder), "--text-embeddings", str(tmp_path / "text.npz"), "--size", "80x48", "--frames", "17"]
    command += ["--latents", str(tmp_path / "given.npz"), "--save-latents", str(tmp_path / "out.npz")]
    assert run(command) == 1
    assert "export the checkpoint again with --conditioning" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()
