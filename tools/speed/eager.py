"""Measure a full call by engines against the same stages in PyTorch."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from adacache_engines.bundle.files import Bundle
from adacache_export.families.open_sora.family import stages
from adacache_export.families.open_sora.transformer import OpenSoraConfig
from adacache_export.stages import run_stages
from adacache_runtime.denoising.stages import BoundStages
from adacache_runtime.request import Request
from adacache_runtime.settled import initial_noise, settle
from adacache_runtime.text.prompts import branches, read_text
from tools.speed.timing import Spread, TimedBackend

REST_S = 0.3  # for the other library's threads to stop spinning


@dataclass(frozen=True)
class EagerCosts:
    """Engine time / eager time, pair by pair, and the largest difference between the predictions."""

    ratio: Spread
    engine_ms: Spread
    eager_ms: Spread
    difference: float


def measure_eager(
    bundle: Bundle,
    backend: TimedBackend,
    config: OpenSoraConfig,
    request: Request,
    repetitions: int,
    on_pair: Callable[[], None],
) -> EagerCosts:
    """Alternate the two on the same inputs, embed to final; what runs once a generation is left out."""
    manifest = bundle.manifest
    captions = branches(bundle, backend, read_text(bundle, request))
    settled = settle(bundle, request)
    count = len(manifest.guidance.order)
    inputs = {
        "latents": np.concatenate([initial_noise(request.seed, settled.latent_shape)] * count),
        "captions": captions.embeddings,
        "text_mask": captions.mask,
        "timestep": np.full(settled.sizes["batch"], 500, np.float32),
        "fps": np.tile(settled.fps, count),
        "height": np.array([request.height], np.float32),
        "width": np.array([request.width], np.float32),
    }
    sizes = {**settled.sizes, "text": captions.mask.shape[1]}
    bound = BoundStages(manifest, backend.loaded(manifest), backend.device, sizes, 2, {})
    for name, value in inputs.items():
        bound.tensors[name].write(value)
    for step in bound.begin():
        step.call()
    full = bound.forward()

    model = stages(config)
    weights = load_file(bundle.path(manifest.weights))
    for stage in model:
        stage.module.load_state_dict({name: weights[key] for name, key in stage.keys().items()}, assign=True)
    once, rest = ([stage for stage in model if stage.per_generation is once] for once in (True, False))
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    engine_s, eager_s = [], []
    with torch.inference_mode():
        tensors = run_stages(once, tensors)
        result: dict[str, Tensor] = {}
        for repetition in range(repetitions + 1):
            time.sleep(REST_S)
            start = time.perf_counter()
            for step in full:
                step.call()
            middle = time.perf_counter()
            time.sleep(REST_S)
            again = time.perf_counter()
            result = run_stages(rest, tensors)
            end = time.perf_counter()
            on_pair()
            if repetition:  # the first touches new memory
                engine_s.append(middle - start)
                eager_s.append(end - again)
    difference = float(np.abs(bound.tensors["prediction"].read() - result["prediction"].numpy()).max())
    return EagerCosts(
        Spread.of([engine / eager for engine, eager in zip(engine_s, eager_s, strict=True)]),
        Spread.of([1e3 * seconds for seconds in engine_s]),
        Spread.of([1e3 * seconds for seconds in eager_s]),
        difference,
    )
