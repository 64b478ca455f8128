"""Times one generation in PyTorch and through a bundle, each without and with caching, in turn.

    python -m tools.speed.pytorch [--results DIR]

The model is an STDiT3 of Open-Sora's width with random weights, and both sides run the same calls: the guidance, the
sampler's update and the schedule of computed calls are alike, and so are the final latents but for rounding. In PyTorch
the cached residual of all blocks is a tensor that is added to the embedded latents, and the change of the probed
residual is summed in every computed call, as AdaCache does it.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from adacache_export.convert import convert
from adacache_export.families.open_sora.family import stages
from adacache_export.families.open_sora.transformer import OpenSoraConfig
from adacache_export.options import Options
from adacache_export.stages import Stage, run_stages
from adacache_runtime import OnnxRuntime, Pipeline, Request
from adacache_runtime.caching.policies.measured.adacache import AdaCache
from adacache_runtime.text.prompts import branches
from tools.speed.checkpoint import config_of, write_checkpoint
from tools.speed.size import Size
from tools.speed.timing import Spread

STEPS = 12  # calls of a generation
ROUNDS = 5  # generations of each kind that count; one more before them touches new memory
REST_S = 0.3  # between two generations, for the threads of the other library to stop spinning
EVERY_THIRD = AdaCache(codebook=((1.0, 3),))  # the same schedule whatever it measures
GUIDANCE = 7.0
PROBES = ("temporal.0.attn",)
KINDS = ("PyTorch eager", "PyTorch eager with caching", "bundle", "bundle with caching")


class Eager:
    """The model's stages in PyTorch, with the residual of all blocks cached between calls.

    Args:
        model: the stages in order, with their weights.
        probe: the site whose change is summed in every computed call.
        inputs: named inputs of all stages but the latents and the timestep, for both guidance branches.
    """

    def __init__(self, model: Sequence[Stage], probe: str, inputs: Mapping[str, Tensor]) -> None:
        self._once = [stage for stage in model if stage.per_generation]
        self._embed, *self._blocks, self._final = (stage for stage in model if not stage.per_generation)
        self._probe, self._inputs = probe, inputs

    def generate(self, latents: Tensor, timesteps: Sequence[float], computed: Sequence[bool]) -> Tensor:
        """Return the final latents of a rectified flow with Euler steps (arXiv 2209.03003).

        Args:
            latents: noise (1, channels, frames, height, width).
            timesteps: one for each call, falling, in 1000ths.
            computed: whether each call runs the blocks.
        """
        residual, probed = None, None
        given = run_stages(self._once, {**self._inputs, "latents": latents})
        for timestep, following, compute in zip(timesteps, (*timesteps[1:], 0.0), computed, strict=True):
            named = {**given, "latents": torch.cat([latents] * 2), "timestep": torch.full((2,), timestep)}
            named = run_stages([self._embed], named)
            before = named["hidden"]
            if compute:
                named = run_stages(self._blocks, named)
                residual = named["hidden"] - before
                if probed is not None:
                    change = (probed - named[self._probe]).abs().sum() / probed.abs().sum()
                    assert torch.isfinite(change)
                probed = named[self._probe]
            else:
                assert residual is not None
                named["hidden"] = before + residual
            prediction = run_stages([self._final], named)["prediction"][:, : latents.shape[1]]
            conditional, unconditional = prediction.chunk(2)
            velocity = unconditional + GUIDANCE * (conditional - unconditional)
            latents = latents + velocity * ((timestep - following) / 1000)
        return latents


def eager_model(pipeline: Pipeline, config: OpenSoraConfig, request: Request) -> Eager:
    """Return the bundle's model in PyTorch, with the inputs that a generation has for both guidance branches."""
    manifest = pipeline.bundle.manifest
    model = stages(config, PROBES)
    weights = load_file(pipeline.bundle.path(manifest.weights))
    for stage in model:
        stage.module.load_state_dict({name: weights[key] for name, key in stage.keys().items()}, assign=True)
    loop = pipeline.prepare(request).checked.loops[0]
    captions = branches(pipeline.bundle, pipeline.backend, loop.text)
    inputs = {
        "captions": captions.embeddings,
        "text_mask": captions.mask,
        "fps": np.tile(loop.settled.fps, 2),
        "height": np.array([loop.settled.height], np.float32),
        "width": np.array([loop.settled.width], np.float32),
    }
    return Eager(model, PROBES[0], {name: torch.from_numpy(value) for name, value in inputs.items()})


@dataclass(frozen=True)
class Comparison:
    """Times of a generation, and how far the two sides' results are apart.

    Attributes:
        seconds: kind of generation -> seconds of each round.
        difference: largest |PyTorch - bundle| of the final latents, over their root mean square, with and without
            caching.
        computed: number of computed calls with caching.
    """

    seconds: Mapping[str, Sequence[float]]
    difference: float
    computed: int

    def relative(self, kind: str) -> Spread:
        """Return the time of a kind over that of full compute in PyTorch eager, round by round."""
        pairs = zip(self.seconds[kind], self.seconds[KINDS[0]], strict=True)
        return Spread.of([one / full for one, full in pairs])


def compare(folder: Path, threads: int, rounds: int, size: Size) -> Comparison:
    """Export a random model into ``folder`` and time its generations, each kind once a round, in turn."""
    torch.set_num_threads(threads)
    config = config_of(size)
    write_checkpoint(folder / "random.safetensors", config)
    convert(folder / "random.safetensors", folder / "bundle", Options(probes=PROBES))
    with Pipeline.open(folder / "bundle", backend=OnnxRuntime(threads=threads)) as pipeline:
        never = replace(size.request(), steps=STEPS, guidance=GUIDANCE)
        cached = replace(never, policy=EVERY_THIRD)
        trace = pipeline.generate(cached).trace
        computed = [record.computed for record in trace.calls]
        timesteps = [record.timestep for record in trace.calls]
        eager, noise = eager_model(pipeline, config, never), torch.from_numpy(never.latents)
        whole = [True] * STEPS

        def in_pytorch(calls: Sequence[bool]) -> NDArray[np.float32]:
            with torch.inference_mode():
                latents: NDArray[np.float32] = eager.generate(noise, timesteps, calls).numpy()
            return latents

        kinds: tuple[Callable[[], NDArray[np.float32]], ...] = (
            lambda: in_pytorch(whole),
            lambda: in_pytorch(computed),
            lambda: pipeline.generate(never).latents,
            lambda: pipeline.generate(cached).latents,
        )
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        results: dict[str, NDArray[np.float32]] = {}
        for number in track(range(rounds + 1), "generations of each kind", console=Console(stderr=True)):
            for kind, generate in zip(KINDS, kinds, strict=True):
                time.sleep(REST_S)
                begun = time.perf_counter()
                results[kind] = generate()
                if number:
                    seconds[kind].append(time.perf_counter() - begun)
    apart = max(_apart(results[KINDS[side]], results[KINDS[side + 2]]) for side in (0, 1))
    return Comparison(seconds, apart, sum(computed))


def _apart(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).max() / np.sqrt(np.mean(np.square(one))))


def rows(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return a row for each kind: its name, the median of its relative time, and the smallest and largest."""
    spreads = {kind: comparison.relative(kind) for kind in KINDS}
    return [
        (kind, f"{spread.median:.2f}", f"{spread.low:.2f} to {spread.high:.2f}" if kind != KINDS[0] else "")
        for kind, spread in spreads.items()
    ]


def markdown(comparison: Comparison, size: Size, threads: int) -> str:
    """Return the page of results."""
    lines = [
        "# Against PyTorch",
        "",
        "Made by `python -m tools.speed.pytorch --results tools/results`: one generation of each kind in turn,",
        "with the same noise, guidance and schedule on both sides.",
        "",
        f"- Calls: {STEPS}, of which {comparison.computed} are computed with caching.",
        f"- Model: an STDiT3 with random weights in float32, {size.depth} block(s) of each kind, {size.width} wide;",
        "  without text encoder and VAE.",
        f"- Tokens: 2 guidance branches x {size.frames} frames x {size.tokens}; threads: {threads}.",
        f"- Final latents of the two sides differ by at most {comparison.difference:.0e} of their root mean square.",
        "",
        "| | time of a generation, relative to PyTorch eager | smallest to largest |",
        "|---|---|---|",
        *(f"| {kind} | {median} | {span} |" for kind, median, span in rows(comparison)),
        "",
        "The ratios hold for the machine, the size and the run that they were measured on, and for nothing else.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, metavar="DIR", help="folder that gets pytorch.md")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="generations of each kind (%(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of both sides (all cores)")
    parser.add_argument("--depth", type=int, default=Size.depth, help="blocks of each kind (%(default)s)")
    parser.add_argument("--width", type=int, default=Size.width, help="width of the model (%(default)s)")
    parser.add_argument("--tokens", type=int, default=Size.tokens, help="tokens of a frame (%(default)s)")
    options = parser.parse_args()
    size = replace(Size(), depth=options.depth, width=options.width, tokens=options.tokens)
    with tempfile.TemporaryDirectory(prefix="adacache-pytorch-") as folder:
        comparison = compare(Path(folder), options.threads, options.rounds, size)
    table = Table("", "relative time", "smallest to largest", title=f"one generation, {comparison.computed} of {STEPS}")
    for row in rows(comparison):
        table.add_row(*row)
    Console().print(table)
    if options.results:
        (options.results / "pytorch.md").write_text(markdown(comparison, size, options.threads), encoding="utf-8")


if __name__ == "__main__":
    main()
