"""Train a small LatteT2V that draws the demo world.

AdaCache's codebooks for Latte-1 and Open-Sora-Plan are fitted to it, because the published weights are not at hand and
no codebooks for them are published.

    python -m tools.demo.train_latte --work DIR       # trains it (resumable) and writes its folder

Noise prediction with the linear schedule of both families, on pixels, with the states of the demo model's T5. Captions
are dropped for the empty prompt's, cut to the prompt's length, which is what the families' pipelines guide away from.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import T5EncoderModel

from adacache_export.families.latte_t2v import family as latte_t2v
from adacache_export.families.latte_t2v.transformer import Block, Embed, Final, LatteT2VConfig
from adacache_export.stages import run_stages
from adacache_runtime.samplers.ddim import ddim
from adacache_runtime.samplers.noise_schedule import signal_variances
from tools.demo import checker, world
from tools.demo.model import CONFIG as DEMO
from tools.demo.model import text_encoder_config, tokenise
from tools.demo.train import BATCH, CAPTION_DROPOUT, Training, report, train

CONFIG: dict[str, Any] = {
    "_class_name": "LatteT2V",
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "in_channels": 3,
    "out_channels": 3,
    "num_layers": 3,
    "patch_size": 4,
    "caption_channels": DEMO["caption_channels"],
    "sample_size": world.SIZE,
    "video_length": world.FRAMES,
    "activation_fn": "gelu-approximate",
}
HERE = Path(__file__).parent
ENCODER = HERE / "model" / "text_encoder"
ITERATIONS = 3000
TIMESTEPS = 1000
EVALUATED_STEPS = 50
GUIDANCE = 5.0
LARGEST_WEIGHT = 50.0  # of an iteration's samples in the loss


class LatteDemo(nn.Module):
    """The stages of the denoiser, for captions that are encoded already."""

    def __init__(self) -> None:
        super().__init__()
        fields = {name: CONFIG[name] for name in LatteT2VConfig.__dataclass_fields__ if name in CONFIG}
        self.config = LatteT2VConfig(**fields | {"sample_size": (world.SIZE, world.SIZE)})
        self.stages = latte_t2v.stages(self.config)
        self.denoiser = nn.ModuleList(stage.module for stage in self.stages)
        self.initialise()

    def initialise(self) -> None:
        """Xavier weights, and gates open from the start."""
        residual_scale = 1 / math.sqrt(2 * self.config.num_layers)
        for module in self.denoiser.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for module in self.denoiser.modules():
            if isinstance(module, Block):
                nn.init.normal_(module.scale_shift_table, std=0.02)
                with torch.no_grad():
                    module.scale_shift_table[[2, 5]] += 1.0
                    for name, parameter in module.named_parameters():
                        if name.endswith(("to_out.0.weight", "ff.net.2.weight")):
                            parameter.mul_(residual_scale)
            if isinstance(module, Embed):
                nn.init.normal_(module.adaln_single.linear.weight, std=0.02)
            if isinstance(module, Final):
                nn.init.zeros_(module.proj_out.weight)

    def forward(self, latents: Tensor, timestep: Tensor, captions: Tensor, text_mask: Tensor) -> Tensor:
        """Return the noise (B, 3, T, H, W) at ``timestep`` (B,) in 0..999."""
        tensors = {"latents": latents, "timestep": timestep, "captions": captions, "text_mask": text_mask}
        return run_stages(self.stages, tensors)["prediction"]

    def checkpoint(self) -> dict[str, Tensor]:
        """Return the tensors under LatteT2V's names."""
        return {
            key: stage.module.get_parameter(name).detach()
            for stage in self.stages
            for name, key in stage.keys().items()
        }


class Captions:
    """The states and masks of captions, from the demo model's text encoder."""

    def __init__(self) -> None:
        texts = [*(world.caption(what) for what in world.EVERYTHING), ""]
        ids, self.mask = tokenise(texts, DEMO["model_max_length"])
        encoder = T5EncoderModel(text_encoder_config())
        encoder.load_state_dict(load_file(ENCODER / "model.safetensors"), strict=False)
        with torch.no_grad():
            self.states = encoder(input_ids=ids, attention_mask=self.mask.long()).last_hidden_state
        self.rows = {text: row for row, text in enumerate(texts)}

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Return states (n, length, width) and mask (n, length)."""
        rows = torch.tensor([self.rows[caption] for caption in captions])
        return self.states[rows], self.mask[rows]


def loss_of(model: LatteDemo, captions: Captions, seed: int, iteration: int) -> Tensor:
    """Return the squared error of the noise.

    Noisy samples count for more, because a small error of their noise is a large error of the video.
    """
    rng = np.random.default_rng([seed, iteration])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    what = world.draw(BATCH, rng)
    clean = torch.from_numpy(world.render(what, rng))
    noise = torch.randn(clean.shape, generator=generator)
    timestep = torch.randint(TIMESTEPS, (BATCH,), generator=generator)
    signal = torch.from_numpy(signal_variances())[timestep][:, None, None, None, None]
    states, mask = captions([world.caption(each) for each in what])
    dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROPOUT
    empty, _ = captions([""])
    text = torch.where(dropped[:, None, None], empty, states)
    prediction = model(signal.sqrt() * clean + (1 - signal).sqrt() * noise, timestep.float(), text, mask)
    weight = (1 / signal).clamp(max=LARGEST_WEIGHT)
    loss: Tensor = ((prediction - noise).square() * weight).mean()
    return loss


@torch.no_grad()
def sample(model: LatteDemo, captions: Captions, prompts: list[str], noise: Tensor) -> Tensor:
    """Return videos (n, 3, T, H, W) from ``noise`` of that shape, by DDIM."""
    states, mask = captions(prompts)
    empty, _ = captions([""] * len(prompts))
    text, masks = torch.cat([empty, states]), torch.cat([mask, mask])
    latents = noise
    for update in ddim(EVALUATED_STEPS, 1):
        timestep = torch.full((2 * len(latents),), float(update.timestep[0]))
        unconditional, conditional = model(torch.cat([latents, latents]), timestep, text, masks).chunk(2)
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        latents = float(update.scale[0]) * latents + float(update.weights[0, 0]) * guided
    return latents


def adherence(model: LatteDemo, captions: Captions, count: int, seed: int) -> dict[str, float]:
    """Return the share of ``count`` seeded prompts whose video shows each attribute of the caption."""
    prompts = world.prompts(count, seed)
    shape = (count, 3, world.FRAMES, world.SIZE, world.SIZE)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    videos = sample(model, captions, prompts, noise).numpy()
    results = [checker.agreement(video, text) for video, text in zip(videos, prompts, strict=True)]
    return {name: sum(result[name] for result in results) / count for name in results[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the resumable state and the log")
    parser.add_argument("--model", type=Path, default=HERE / "latte", help="folder to write")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    captions = Captions()
    training = Training(LatteDemo, lambda model, *moment: loss_of(model, captions, *moment), options.seed)

    def evaluate(model: LatteDemo) -> dict[str, float]:
        return adherence(model, captions, 32, options.seed)

    train(training, evaluate, options.work, options.iterations, math.inf, evaluate_every=6)
    options.model.mkdir(exist_ok=True)
    (options.model / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    half = {key: value.half() for key, value in training.average.checkpoint().items()}
    save_file(half, options.model / "diffusion_pytorch_model.safetensors")
    report(options.work, iteration=training.iteration, adherence=adherence(training.average, captions, 100, 2024))


if __name__ == "__main__":
    main()
