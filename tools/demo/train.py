"""Train the demo model: ``python -m tools.demo.train --work DIR --iterations N``.

Flow matching as in Open-Sora (x_t = (1 - t) x0 + t eps, v = x0 - eps, logit-normal t), captions dropped one time in
ten. Iteration i draws from its own seed, so a run that is interrupted and started again goes on as if it had not
been. The learning rate is constant and falls to zero over the last part, which is why ``--iterations`` may be
lowered when a run is resumed.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tools.demo import checker, world
from tools.demo.model import CONFIG, SCHEDULER, Demo, read_folder, sample, tokenise, write_folder

ITERATIONS = 3800
BATCH = 16
WARM_UP = 100  # iterations
DECAY = 0.45  # share of the iterations over which the learning rate falls
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
MEASURE_SEED = 2024
# Open-Sora draws t from sigmoid(normal(0, 1)). Place and motion of so simple a video are settled while there is
# hardly anything but noise, above t = 0.9, where that draw would go one time in seventy.
TIME_MEAN, TIME_STD = 0.6, 1.4
# Once shapes are right, every second sample is noisier still: which way things move is decided there.
NOISY_FROM, NOISY_MEAN = 2000, 2.6  # iteration
LR_MATRICES, LR_OTHERS = 3e-3, 1.5e-3


Model = TypeVar("Model", bound=nn.Module)


def optimisers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network, AdamW for embeddings, ends, biases and gains."""
    denoiser = model.denoiser
    assert isinstance(denoiser, nn.ModuleList)
    ends = {id(parameter) for parameter in denoiser[-1].parameters()}
    tables = ("embed_tokens", "shared", "relative_attention_bias", "scale_shift_table", "null_caption")
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        table = any(part in tables for part in name.split("."))
        inner = parameter.ndim == 2 and id(parameter) not in ends and not table
        (matrices if inner else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=LR_MATRICES, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LR_OTHERS, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(iteration: int, iterations: int) -> float:
    """Return the share of the full learning rate."""
    return min(1.0, (iteration + 1) / WARM_UP, (iterations - iteration) / (DECAY * iterations))


class Captions:
    """Return every caption of the world, tokenised once."""

    def __init__(self, length: int) -> None:
        self.rows = {what: row for row, what in enumerate(world.EVERYTHING)}
        self.ids, self.mask = tokenise([world.caption(what) for what in world.EVERYTHING], length)

    def __call__(self, what: list[world.Attributes]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor([self.rows[each] for each in what])
        return self.ids[rows], self.mask[rows]


def loss_of(model: Demo, captions: Captions, seed: int, iteration: int) -> Tensor:
    rng = np.random.default_rng([seed, iteration])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    what = world.draw(BATCH, rng)
    clean = torch.from_numpy(world.render(what, rng))
    noise = torch.randn(clean.shape, generator=generator)
    mean = torch.full((BATCH,), TIME_MEAN)
    mean[1::2] = NOISY_MEAN if iteration >= NOISY_FROM else TIME_MEAN
    moment = torch.sigmoid(mean + TIME_STD * torch.randn(BATCH, generator=generator))
    dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROPOUT
    ids, mask = captions(what)
    text = torch.where(dropped[:, None, None], model.null_caption, model.encode(ids, mask))
    mixed = torch.lerp(clean, noise, moment[:, None, None, None, None])
    prediction = model(mixed, 1000 * moment, text, mask)
    return torch.nn.functional.mse_loss(prediction, clean - noise)


def adherence(model: Demo, count: int, seed: int, guidance: float) -> dict[str, float]:
    """Return the share of ``count`` seeded prompts whose video shows each attribute of the caption."""
    captions = world.prompts(count, seed)
    shape = (count, 3, world.FRAMES, world.SIZE, world.SIZE)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    videos = torch.cat(
        [
            sample(model, captions[start : start + BATCH], noise[start : start + BATCH], guidance)
            for start in range(0, count, BATCH)
        ]
    ).numpy()
    results = [checker.agreement(video, text) for video, text in zip(videos, captions, strict=True)]
    return {name: sum(result[name] for result in results) / count for name in results[0]}


def measure(folder: Path) -> dict[str, float]:
    """Return the adherence of a written model, with the precision and the guidance in its folder."""
    guidance = json.loads((folder / "scheduler_config.json").read_text())["cfg_scale"]
    return adherence(read_folder(folder), 100, MEASURE_SEED, guidance)


class Training(Generic[Model]):
    """A training run: the weights, their average, the optimisers and the number of iterations.

    Args:
        make: returns a model with fresh weights, whose ``denoiser`` lists the modules of its stages.
        loss: returns the loss of a model at an iteration of this number with this seed.
        seed: seed of all random numbers.
    """

    def __init__(self, make: Callable[[], Model], loss: Callable[[Model, int, int], Tensor], seed: int) -> None:
        torch.manual_seed(seed)
        self.loss, self.seed, self.iteration = loss, seed, 0
        self.model, self.average = make(), make()
        self.average.load_state_dict(self.model.state_dict())
        self.steppers = optimisers(self.model)

    def step(self, iterations: int) -> float:
        """Run one iteration of ``iterations``; return its loss."""
        share = rate(self.iteration, iterations)
        for stepper, peak in zip(self.steppers, (LR_MATRICES, LR_OTHERS), strict=True):
            stepper.param_groups[0]["lr"] = share * peak
            stepper.zero_grad(set_to_none=True)
        loss = self.loss(self.model, self.seed, self.iteration)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for stepper in self.steppers:
            stepper.step()
        self.iteration += 1
        keep = min(EMA_DECAY, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - keep)
        return loss.item()

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all."""
        state = {
            "iteration": self.iteration,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "steppers": [stepper.state_dict() for stepper in self.steppers],
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def restore(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.iteration = state["iteration"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for stepper, saved in zip(self.steppers, state["steppers"], strict=True):
            stepper.load_state_dict(saved)


def train(
    training: Training[Model],
    evaluate: Callable[[Model], dict[str, float]],
    work: Path,
    iterations: int,
    minutes: float,
    evaluate_every: float,
) -> None:
    """Train until ``iterations`` are done or ``minutes`` are over; state and log (``log.jsonl``) go to ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    if (work / "state.pt").exists():
        training.restore(work / "state.pt")
    began = last_evaluation = time.monotonic()
    start = training.iteration
    losses: list[float] = []
    while training.iteration < iterations and time.monotonic() - began < 60 * minutes:
        losses.append(training.step(iterations))
        if training.iteration % 50 == 0:
            seconds = (time.monotonic() - began) / (training.iteration - start)
            loss = sum(losses) / len(losses)
            report(work, iteration=training.iteration, loss=round(loss, 5), seconds=round(seconds, 3))
            losses.clear()
        if training.iteration % 250 == 0:
            training.save(work / "state.pt")
        if time.monotonic() - last_evaluation > 60 * evaluate_every:
            report(work, iteration=training.iteration, adherence=evaluate(training.average))
            last_evaluation = time.monotonic()
    training.save(work / "state.pt")


def report(work: Path, **values: object) -> None:
    line = json.dumps(values)
    with (work / "log.jsonl").open("a") as log:
        log.write(line + "\n")
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the resumable state and the log")
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "model", help="folder to write")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop then; start again to go on")
    parser.add_argument("--evaluate-every", type=float, default=10, metavar="MINUTES")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", action="store_true", help="only measure the adherence of the model in --model")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        print(json.dumps(measure(options.model)))
        return
    if options.work is None:
        parser.error("--work is needed to train")
    captions = Captions(CONFIG["model_max_length"])
    training = Training(Demo, lambda model, *moment: loss_of(model, captions, *moment), options.seed)

    def evaluate(model: Demo) -> dict[str, float]:
        return adherence(model, 32, options.seed, SCHEDULER["cfg_scale"])

    train(training, evaluate, options.work, options.iterations, options.minutes, options.evaluate_every)
    write_folder(training.average, options.model)
    report(options.work, iteration=training.iteration, adherence=measure(options.model))
    if training.iteration < options.iterations:
        sys.exit("stopped by --minutes; the same command goes on")


if __name__ == "__main__":
    main()
