"""The first block's modulated input as a probe of the embedding, and policies that look into a call on real engines."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from adacache_engines.bundle.manifest import Manifest
from adacache_engines.errors import InputError
from adacache_export import convert
from adacache_export.families.open_sora.transformer import OpenSoraConfig
from adacache_export.families.registry import FAMILIES, Family
from adacache_export.options import Options
from adacache_export.stages import Stage, run_stages
from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.caching.policies.measured.easycache import EasyCache
from adacache_runtime.caching.policies.measured.fbcache import FBCache
from adacache_runtime.caching.policies.measured.teacache import TeaCache
from adacache_runtime.caching.policies.wrappers import Extrapolate
from adacache_runtime.events import Denoised
from adacache_runtime.pipeline import Pipeline
from tests.helpers.model.bundle_changes import Stubs
from tests.helpers.originals.latte_originals import ORIGINALS, model_inputs
from tests.helpers.originals.open_sora_original import variant
from tests.helpers.originals.reference import DATA, OPEN_SORA, config
from tests.helpers.originals.reference import request as open_sora_request

MODULATED = "spatial.0.modulated"
TOLERANCE = 2e-5  # absolute
STEPS = 14


@dataclass(frozen=True)
class Model:
    """A reference model: its family, and where its first block's table and attention are."""

    family: Family
    config: Any
    weights: Mapping[str, Tensor]
    inputs: Mapping[str, Any]
    table: str
    attention: str

    def stages(self, sites: tuple[str, ...], **options: Any) -> list[Stage]:
        stages = self.family.stages(self.config, sites, **options)
        for stage in stages:
            stage.module.load_state_dict({name: self.weights[key] for name, key in stage.keys().items()})
        return stages

    def run(self, stages: list[Stage]) -> dict[str, Tensor]:
        given = {name: torch.as_tensor(np.ascontiguousarray(value)) for name, value in self.inputs.items()}
        with torch.no_grad():
            return run_stages(stages, given)


@pytest.fixture(scope="module", params=["open-sora", *ORIGINALS])
def model(request: pytest.FixtureRequest) -> Model:
    if request.param == "open-sora":
        weights = load_file(OPEN_SORA / "weights_A.safetensors")
        place = ("spatial_blocks.0.scale_shift_table", "attn")
        return Model(FAMILIES["open-sora-1.2"], config(OpenSoraConfig), weights, variant("cfg"), *place)
    original = ORIGINALS[request.param]
    place = ("transformer_blocks.0.scale_shift_table", "attn1")
    return Model(original.family, original.config(), original.weights, model_inputs(original, "nomask"), *place)


def test_the_embedding_shows_what_the_first_attention_begins_with(model: Model) -> None:
    """LN(x) (1 + scale) + shift with the table of the first block, which the block itself makes once more."""
    stages = model.stages((MODULATED,))
    seen: list[Tensor] = []
    first = next(stage for stage in stages if stage.block)
    attention = getattr(first.module, model.attention)
    attention.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    shown = model.run(stages)[MODULATED]
    embedded = model.run([stage for stage in stages if not stage.block and stage.role != "final"])
    x, given = (embedded[name].double() for name in ("hidden", "modulation"))
    shift, scale = (model.weights[model.table][None] + given).unbind(1)[:2]
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = normed * (1 + scale[:, None, None]) + shift[:, None, None]
    assert shown.shape == x.shape
    assert (shown - expected).abs().max() <= TOLERANCE
    assert torch.equal(shown.flatten(), seen[0].flatten())
    assert float(scale.std()) > 0.01  # or nothing would be told by all this


def test_the_probe_changes_nothing_else(model: Model) -> None:
    """Neither the model's output nor the tensors that it takes from the checkpoint."""
    plain, probed = (model.stages(sites) for sites in ((), (MODULATED,)))
    assert torch.equal(model.run(plain)["prediction"], model.run(probed)["prediction"])
    modules = model.stages((MODULATED,), granularity="module")
    keys = [{key for stage in stages for key in stage.keys().values()} for stages in (plain, probed, modules)]
    assert keys[0] == keys[1] == keys[2]
    assert model.table in next(stage for stage in modules if stage.name == "embed").keys().values()


# exports


@pytest.mark.parametrize(
    "name", ["open-sora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("latte", "open-sora-plan"))]
)
def test_default_probes(name: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TeaCache's probe does not take the place of the one that AdaCache measures unless it is told otherwise."""
    Stubs().install(monkeypatch)
    source = checkpoint if name == "open-sora" else DATA / name
    default = ("temporal.1.attn",)
    for number, (probes, sites, defaults) in enumerate(
        [
            ((MODULATED,), {*default, MODULATED}, default),
            ((MODULATED, MODULATED), {*default, MODULATED}, default),
            (("spatial.1.attn", MODULATED), {"spatial.1.attn", MODULATED}, ("spatial.1.attn",)),
            ((MODULATED, "spatial.1.attn", *default), {"spatial.1.attn", *default, MODULATED}, default),
            ((), {*default}, default),
        ]
    ):
        manifest = convert.convert(source, tmp_path / str(number), Options(probes=probes))
        assert set(manifest.probes()) == sites
        assert manifest.sites("default") == defaults
        assert manifest.sites("block_input") == ((MODULATED,) if MODULATED in sites else ())
    with pytest.raises(InputError, match=r"spatial\.1\.modulated.*and spatial\.0\.modulated"):
        convert.convert(source, tmp_path / "other", Options(probes=("spatial.1.modulated",)))


def test_weights_are_stored_once(bundle_folder: Path, pipeline: Pipeline) -> None:
    manifest: Manifest = pipeline.bundle.manifest
    assert manifest.probes()[MODULATED].graph.name == "embed"
    stages = FAMILIES["open-sora-1.2"].stages(config(OpenSoraConfig))
    wanted = [key for stage in stages for key in stage.keys().values()] + [manifest.guidance.null_captions]
    with safe_open(bundle_folder / manifest.weights, "np") as file:
        stored = {key: file.get_tensor(key).nbytes for key in file.keys()}  # noqa: SIM118 - no mapping
    assert sorted(stored) == sorted(key for key in wanted if key)
    assert manifest.files[manifest.weights].nbytes < sum(stored.values()) + 100_000


# real engines


def generate(pipeline: Pipeline, policy: Any) -> Denoised:
    result = pipeline.generate(open_sora_request(policy=policy, steps=STEPS, keep_calls=True))
    assert np.isfinite(result.latents).all()
    assert len(result.trace.calls) == STEPS
    assert 3 < len(whole(result)) < STEPS - 1
    return result


def whole(result: Denoised) -> list[int]:
    return [call.call for call in result.trace.calls if all(call.compute)]


def distances(result: Denoised) -> list[float]:
    """From the second call on."""
    return [float(call.observation.get("distance") or 0) for call in result.trace.calls[1:]]


def test_teacache(pipeline: Pipeline) -> None:
    policy = TeaCache(coefficients=(2, 1, 0), threshold=0.9)
    result = generate(pipeline, policy)
    expected, total = [1], 0.0
    for call, distance in enumerate(distances(result), 2):
        total += 2 * distance**2 + distance
        if total >= 0.9 or call == STEPS:
            expected.append(call)
            total = 0.0
    assert whole(result) == expected
    embeds = [probe_by_hand(result, call) for call in (0, 1)]
    relative = np.abs(embeds[1] - embeds[0]).sum() / np.abs(embeds[0]).sum()
    assert distances(result)[0] == pytest.approx(relative, rel=1e-4)


def probe_by_hand(result: Denoised, call: int) -> Any:
    """Return the tensor that the torch stage shows for a call's latents, of both branches."""
    assert result.calls is not None
    latents = np.concatenate([result.calls[call]] * 2)
    batch = len(latents)
    weights = load_file(OPEN_SORA / "weights_A.safetensors")
    stages = FAMILIES["open-sora-1.2"].stages(config(OpenSoraConfig), (MODULATED,))
    before = [stage for stage in stages if stage.role in ("positions", "embed")]
    for stage in before:
        stage.module.load_state_dict({name: weights[key] for name, key in stage.keys().items()})
    given = {
        "latents": torch.from_numpy(latents),
        "timestep": torch.full((batch,), result.trace.calls[call].timestep),
        "fps": torch.full((batch,), 24.0),
        "height": torch.tensor([48.0]),
        "width": torch.tensor([80.0]),
    }
    with torch.no_grad():
        return run_stages(before, given)[MODULATED].double().numpy()


def test_fbcache(pipeline: Pipeline) -> None:
    result = generate(pipeline, FBCache(threshold=0.5))
    assert whole(result) == [1, *(call for call, distance in enumerate(distances(result), 2) if not distance < 0.5)]
    assert all(call.compute[0] for call in result.trace.calls)


def test_easycache(pipeline: Pipeline) -> None:
    """From the latents alone: a step's change is the velocity times what the sampler steps on."""
    policy = EasyCache(threshold=0.8)
    result = generate(pipeline, policy)
    assert result.calls is not None
    latents = np.stack([*result.calls, result.latents]).astype(np.float64)
    times = [call.timestep for call in result.trace.calls] + [0.0]
    velocities = [(latents[k + 1] - latents[k]) / (times[k] - times[k + 1]) * 1000 for k in range(STEPS)]
    expected, factor, total = [1, 2], 0.0, 0.0
    for k in range(1, STEPS):
        dx = np.abs(latents[k] - latents[k - 1]).mean()
        if k > 1:
            total += factor * dx / np.abs(velocities[k - 1]).mean()
            assert result.trace.calls[k].observation.get("metric") == pytest.approx(total, rel=1e-2)
            if total >= 0.8 or k == STEPS - 1:
                expected.append(k + 1)
        if k + 1 in expected:
            factor, total = np.abs(velocities[k] - velocities[k - 1]).mean() / dx, 0.0
    assert whole(result) == expected
    kept = velocities[0] - latents[0]
    for k in range(STEPS):
        if k + 1 in expected:
            kept = velocities[k] - latents[k]
        scale = np.abs(velocities[k]).max()
        assert np.abs(velocities[k] - latents[k] - kept).max() <= 1e-4 * scale


def test_extrapolated_adacache(pipeline: Pipeline) -> None:
    codebook = ((0.2, 3), (1.0, 2))
    plain = AdaCache(codebook=codebook, probe=("temporal.1.attn",))
    result, other = (generate(pipeline, policy) for policy in (Extrapolate(policy=plain), plain))
    expected, following = [1], 2
    for call in range(2, STEPS + 1):
        if call == following or call >= STEPS - 1:
            expected.append(call)
            distance = result.trace.calls[call - 1].observation.get("distance")
            following = call + (3 if distance < 0.2 else 2)
    assert whole(result) == expected
    full = pipeline.generate(open_sora_request(steps=STEPS)).latents
    errors = [float(np.abs(each.latents - full).mean()) for each in (result, other)]
    assert errors[0] != errors[1]
