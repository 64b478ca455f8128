"""A model of a few numpy lines in the shape of a bundle, so that the loop runs in milliseconds.

Four blocks of width 3 on pixels; each shows its tanh as the probe ``attn``, and the embedding what TeaCache measures.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from adacache_engines.bundle.files import MANIFEST, Bundle, dump_manifest, sha256_file
from adacache_engines.bundle.manifest import (
    VIDEO_CONDITION,
    X_MASK,
    CheckpointEntry,
    FileEntry,
    Graph,
    GuidanceRule,
    LatentSpace,
    Manifest,
    ProbeEntry,
    SamplerDefaults,
    SignalEntry,
    StageEntry,
    TextRule,
    VideoDefaults,
)
from adacache_engines.bundle.signals import Space
from adacache_engines.bundle.tensors import DType, TensorSpec
from adacache_engines.contract.device import Array
from adacache_engines.contract.fake import FakeBackend, Function
from adacache_runtime.caching.signals.registry import SIGNALS
from adacache_runtime.caching.signals.signal import Signal, graph_name
from adacache_runtime.pipeline import Pipeline
from adacache_runtime.request import Captions, Request

BLOCKS = ("spatial.00", "temporal.00", "spatial.01", "temporal.01")
WIDTH = 3
NULL = "null"
WEIGHTS = "onnx/weights.safetensors"
SIZE = (4, 2, 5)  # frames, rows, columns

Named = Mapping[str, Array]


def spec(name: str, *axes: int | str, dtype: DType = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, axes=axes)


def hidden(name: str) -> TensorSpec:
    return spec(name, "batch", "patch_frames", "tokens", WIDTH)


def latents(name: str, *before: int | str) -> TensorSpec:
    return spec(name, *before, WIDTH, "frames", "height", "width")


def graph(name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Graph:
    return Graph(name=name, path=f"onnx/{name}.onnx", inputs=inputs, outputs=outputs)


def block_entry(name: str) -> StageEntry:
    inputs = (hidden("hidden"), spec("modulation", "batch", 1), spec("text", "batch", "text", WIDTH))
    kind, index = name.split(".")
    site = f"{kind}.{int(index)}.attn"
    return StageEntry(
        graph=graph(
            name, (*inputs, spec("text_mask", "batch", "text", dtype="bool")), (hidden("hidden_out"), hidden("attn"))
        ),
        role="block",
        kind=kind,
        index=int(index),
        probes={site: ProbeEntry(output="attn", role="default" if site == "temporal.0.attn" else None)},
    )


def conditioned(plain: Manifest) -> dict[str, Any]:
    """Return the changes of a manifest whose model may keep frames: timesteps are a frame's own."""
    x_mask = spec(X_MASK, "batch", "patch_frames", dtype="bool")
    of_frames = spec("modulation", "batch", "patch_frames", 1)

    def change(entry: StageEntry) -> StageEntry:
        inputs, outputs = (
            tuple(of_frames if given.name == "modulation" else given for given in specs)
            for specs in (entry.graph.inputs, entry.graph.outputs)
        )
        inputs = (*inputs, x_mask) if entry.graph.name == "embed" else inputs
        return entry.model_copy(update={"graph": graph(entry.graph.name, inputs, outputs)})

    given = (spec("mask", "samples", "frames", dtype="bool"), latents("new", "samples"), latents("latents", "samples"))
    select = graph("select", given, (latents("latents_out", "samples"),))
    return {
        "stages": tuple(map(change, plain.stages)),
        "arithmetic": {**plain.arithmetic, "select": select},
        "conditioning": "kept-frames",
    }


def starting_from_image(plain: Manifest) -> dict[str, Any]:
    """Return the changes of a manifest whose model takes an encoded video beside its latents."""
    channels = plain.latent.frames.stretch + WIDTH
    given = spec(VIDEO_CONDITION, 1, channels, "frames", "height", "width")

    def change(entry: StageEntry) -> StageEntry:
        if entry.role != "embed":
            return entry
        return entry.model_copy(update={"graph": graph("embed", (*entry.graph.inputs, given), entry.graph.outputs)})

    return {"stages": tuple(map(change, plain.stages)), "conditioning": "encoded-video"}


def manifest(files: Mapping[str, FileEntry] | None = None) -> Manifest:
    captions = spec("captions", "batch", "text", WIDTH)
    conditions = (spec("timestep", "batch"), spec("fps", "batch"), spec("height", 1), spec("width", 1))
    kept = spec("residuals", "calls", "batch", "patch_frames", "tokens", WIDTH)
    arithmetic = [
        graph("add", (hidden("hidden"), hidden("residual")), (hidden("hidden_out"),)),
        graph("blend", (hidden("hidden"), kept, spec("weights", "calls")), (hidden("hidden_out"),)),
        graph("subtract", (hidden("after"), hidden("before")), (hidden("residual"),)),
        graph("velocity", (latents("prediction", "samples"),), (latents("velocity", "samples"),)),
        graph("guide", (latents("prediction", "batch"), spec("guidance", 1)), (latents("velocity", "samples"),)),
        graph(
            "combine",
            (
                latents("latents", "samples"),
                latents("history", "calls", "samples"),
                spec("scale", "samples"),
                spec("weights", "calls", "samples"),
            ),
            (latents("latents_out", "samples"), spec("magnitude", "samples")),
        ),
    ]
    embedded = (hidden("hidden"), spec("modulation", "batch", 1), spec("time", "batch", 1), hidden("modulated"))
    final = (hidden("hidden"), spec("time", "batch", 1), latents("latents", "batch"))
    return Manifest(
        schema_version=1,
        producer="tests",
        family="fake",
        conditioning="not-exported",
        config={},
        precision="fp32",
        profiles={"default": dict.fromkeys(("samples", "text", "frames", "height", "width"), (1, 8))},
        stages=(
            StageEntry(
                graph=graph("text", (captions,), (spec("text", "batch", "text", WIDTH),)),
                role="text",
                per_generation=True,
            ),
            StageEntry(
                graph=graph("embed", (latents("latents", "batch"), *conditions), embedded),
                role="embed",
                probes={"spatial.0.modulated": ProbeEntry(output="modulated", role="block_input")},
            ),
            *(block_entry(name) for name in BLOCKS),
            StageEntry(graph=graph("final", final, (latents("prediction", "batch"),)), role="final"),
        ),
        arithmetic={entry.name: entry for entry in arithmetic},
        signals={name: signal_entry(signal) for name, signal in SIGNALS.items()},
        sampler=SamplerDefaults(name="rflow", steps=6, guidance=2.0),
        video=VideoDefaults(height=SIZE[1], width=SIZE[2], frames=SIZE[0]),
        guidance=GuidanceRule(order=("conditional", "unconditional"), null_captions=NULL),
        latent=LatentSpace(channels=WIDTH, patch=(1, 1, 1), spatial_factor=1, decoder="pixels"),
        text=TextRule(
            max_length=4, width=WIDTH, cleaning="html-and-captions-trimmed", scores=("aesthetic", "motion", "camera")
        ),
        weights=WEIGHTS,
        checkpoint=CheckpointEntry(files=("model.safetensors",), sha256="0" * 64),
        files=dict(files or {WEIGHTS: _weights_entry()}),
    )


def run_block(name: str, given: Named) -> dict[str, Array]:
    weight = np.float32(0.3 + 0.2 * BLOCKS.index(name))
    mask = given["text_mask"][:, :, None].astype(np.float32)
    text = (given["text"] * mask).sum(1) / mask.sum(1)
    modulation = given["modulation"].reshape(len(given["hidden"]), -1, 1, 1)  # one for all frames, or one a frame
    change = np.tanh(given["hidden"] * weight + modulation / 1000 + text[:, None, None])
    return {"hidden_out": given["hidden"] + change, "attn": change}


def run_embed(given: Named) -> dict[str, Array]:
    latents = given["latents"]
    if VIDEO_CONDITION in given:  # the mask's channels, and those of the encoded video
        mask, video = np.split(given[VIDEO_CONDITION], [-WIDTH], axis=1)
        latents = latents + video + mask.mean(1, keepdims=True)
    tokens = np.moveaxis(latents, 1, -1)
    time = given["timestep"][:, None]
    embedded = tokens.reshape(*tokens.shape[:2], -1, WIDTH)
    modulation = np.where(given[X_MASK], time, 0)[:, :, None] if X_MASK in given else time
    modulated = embedded * (1 + modulation.reshape(len(time), -1, 1, 1) / 1000)
    return {"hidden": embedded, "modulation": modulation, "time": time, "modulated": modulated}


def run_final(given: Named) -> dict[str, Array]:
    frames = given["hidden"].reshape(len(given["hidden"]), *given["latents"].shape[2:], WIDTH)
    return {"prediction": np.moveaxis(frames, -1, 1)}


def run_guide(given: Named) -> dict[str, Array]:
    conditional, unconditional = np.split(given["prediction"], 2)
    return {"velocity": unconditional + given["guidance"] * (conditional - unconditional)}


def run_combine(given: Named) -> dict[str, Array]:
    scale, weights = (given[name][..., None, None, None, None] for name in ("scale", "weights"))
    out = scale * given["latents"] + (weights * given["history"]).sum(0)
    return {"latents_out": out, "magnitude": np.abs(out).mean((1, 2, 3, 4))}


def run_select(given: Named) -> dict[str, Array]:
    mask = given["mask"][:, None, :, None, None]
    return {"latents_out": np.where(mask, given["new"], given["latents"])}


def run_blend(given: Named) -> dict[str, Array]:
    update = (given["weights"][:, None, None, None, None] * given["residuals"]).sum(0)
    return {"hidden_out": given["hidden"] + update}


def functions() -> dict[str, Function]:
    def block(name: str) -> Function:
        return lambda given: run_block(name, given)

    return {
        "text": lambda given: {"text": given["captions"] / 2},
        "embed": run_embed,
        **{name: block(name) for name in BLOCKS},
        "final": run_final,
        "add": lambda given: {"hidden_out": given["hidden"] + given["residual"]},
        "blend": run_blend,
        "subtract": lambda given: {"residual": given["after"] - given["before"]},
        "velocity": lambda given: {"velocity": given["prediction"]},
        "guide": run_guide,
        "combine": run_combine,
        "select": run_select,
        **signal_functions(SIGNALS.values()),
    }


def signal_functions(signals: Iterable[Signal]) -> dict[str, Function]:
    """The references of signals, by the name of the graph."""

    def run(signal: Signal, space: Space) -> Function:
        return lambda given: signal.in_numpy(space, given)

    return {graph_name(signal.name, space): run(signal, space) for signal in signals for space in signal.spaces}


def signal_entry(signal: Signal, spaces: Iterable[Space] = ("hidden", "latents")) -> SignalEntry:
    """A signal with graphs for the fake model's tensors in some spaces."""
    tensors: dict[Space, TensorSpec] = {
        "hidden": hidden("hidden"),
        "latents": latents("latents", "samples"),
        "time": spec("time", "batch", WIDTH),
        "time_modulation": spec("time_modulation", "batch", 6 * WIDTH),
    }

    def entry(space: Space) -> Graph:
        def given(name: str) -> TensorSpec:
            pairs = name in ("earlier", "later")
            return spec(name, "pairs", dtype="int64") if pairs else tensors[space].model_copy(update={"name": name})

        numbers = tuple(spec(number, tensors[space].axes[0]) for number in signal.numbers)
        return graph(graph_name(signal.name, space), tuple(map(given, signal.inputs)), numbers)

    return SignalEntry(graphs={space: entry(space) for space in signal.spaces if space in spaces})


def write_weights(folder: Path) -> None:
    (folder / "onnx").mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(_weights())


@functools.cache
def _weights() -> bytes:
    return save({NULL: np.random.default_rng(7).standard_normal((4, WIDTH), np.float32)})


@functools.cache
def _weights_entry() -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(_weights()).hexdigest(), nbytes=len(_weights()))


def write_bundle(folder: Path, **changes: Any) -> Bundle:
    """A whole bundle on disk, with ``changes`` of the manifest; its graphs are files that no engine could load."""
    write_weights(folder)
    plain = manifest().model_copy(update=changes)
    for entry in plain.loop_graphs():
        (folder / entry.path).write_bytes(f"the graph of {entry.name}".encode())
    files = {
        path.relative_to(folder).as_posix(): FileEntry(sha256=sha256_file(path), nbytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    whole = plain.model_copy(update={"files": files})
    (folder / MANIFEST).write_text(dump_manifest(whole), encoding="utf-8")
    return Bundle(folder, whole)


def fake_pipeline(folder: Path, functions: Mapping[str, Function], **changes: Any) -> tuple[Pipeline, list[str]]:
    """A pipeline on ``functions``, and the log of the engines that it runs; ``changes`` are those of the manifest."""
    if not folder.exists():
        write_weights(folder)
    backend = FakeBackend(functions)
    return Pipeline(Bundle(folder, manifest().model_copy(update=changes)), backend), backend.log


def captions(prompts: int = 2) -> Captions:
    """Return captions of different lengths, the last tokens of the second prompt being holes."""
    random = np.random.default_rng(5)
    mask = np.ones((prompts, 4), bool)
    mask[1:, 2:] = False
    return Captions(random.standard_normal((prompts, 4, WIDTH), np.float32), mask)


def request(**options: Any) -> Request:
    prompts = options.pop("prompts_count", 2)
    usual: dict[str, Any] = {"height": SIZE[1], "width": SIZE[2], "frames": SIZE[0], "captions": captions(prompts)}
    return Request(**{**usual, **options})
