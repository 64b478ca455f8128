"""The engines of a bundle that are profiled, their shapes, and inputs of these shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adacache_engines.bundle.files import Bundle
from adacache_engines.bundle.manifest import Graph, Manifest, PartName
from adacache_engines.bundle.shape_profiles import check_profiles
from adacache_engines.bundle.tensors import INPUT_RANGES, NUMPY_DTYPES, TensorSpec
from adacache_engines.errors import InputError, OutOfRangeError
from adacache_runtime.request import Captions, Request
from adacache_runtime.settled import settle
from adacache_runtime.text.prompts import caption_length, tokenize

Kind = Literal["stage", "block", "reuse", "arithmetic", "encoder"]
REUSE = "add"  # of the arithmetic graphs: what a block runs instead of its own
FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class Subject:
    """An engine to profile; its ``kind`` is ``reuse`` for the addition that a reused block runs."""

    graph: Graph
    kind: Kind

    @property
    def name(self) -> str:
        return self.graph.name


def subjects(manifest: Manifest, only: Sequence[str], encoder: bool) -> list[Subject]:
    """Return the engines of a bundle in the order of execution, then arithmetic and signals.

    Args:
        manifest: manifest of the bundle.
        only: names of engines; all engines if empty.
        encoder: whether to include the encoders of text and images, where there are any.

    Raises:
        InputError: the bundle has no engine of a name; the message lists the names.
    """
    known = [Subject(stage.graph, "block" if stage.block else "stage") for stage in manifest.stages]
    known += [Subject(graph, "reuse" if name == REUSE else "arithmetic") for name, graph in manifest.arithmetic.items()]
    known += [Subject(graph, "arithmetic") for graph in manifest.signal_graphs()]
    encoders: tuple[PartName, ...] = ("text_encoder", "image_encoder")
    chain = [Subject(graph, "encoder") for part in encoders for graph in manifest.part_graphs(part)]
    if encoder or any(subject.name in only for subject in chain):
        known = [*chain, *known]
    names = [subject.name for subject in known]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise InputError(f"this bundle has no stage {', '.join(unknown)}; it has {', '.join(names)}")
    return [subject for subject in known if not only or subject.name in only]


def captions(manifest: Manifest, length: int) -> Captions:
    """Return a prompt's embeddings out of random numbers, (1, length, width).

    Raises:
        OutOfRangeError: the model takes no text of that length.
    """
    longest = manifest.text.max_length
    if not 1 <= length <= longest:
        raise OutOfRangeError(f"text of length {length} is not possible; this model takes 1 to {longest}")
    shape = (1, length, manifest.text.width)
    values, negative = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
    guided = manifest.guidance.null_captions is None
    return Captions(values, np.ones((1, length), np.bool_), negative if guided else None)


def text_length(bundle: Bundle, prompt: str) -> int:
    """Return the number of tokens of a prompt.

    Raises:
        InputError: the bundle has no text encoder.
    """
    if not bundle.manifest.text.encoder_stages:
        raise InputError(
            "this bundle has no text encoder for --prompt; leave it out and give --text-length: the embeddings are "
            "random then"
        )
    return caption_length(bundle, tokenize(bundle, [prompt]).mask)


def sizes_of(bundle: Bundle, request: Request, text: int) -> dict[str, int]:
    """Return the sizes of all dynamic axes in a generation with ``text`` tokens.

    Raises:
        OutOfRangeError: a number or size is outside what the model or the bundle's profiles allow.
    """
    settled = settle(bundle, request)
    sizes = {**settled.sizes, "text": text}
    check_profiles(bundle.manifest, sizes)
    remembered = settled.updates[0].weights.shape[0]
    return {**sizes, "calls": remembered, "pairs": max(sizes["patch_frames"] - 1, 1)}


def subject_sizes(manifest: Manifest, subject: Subject, sizes: Mapping[str, int]) -> Mapping[str, int]:
    """Return the sizes of a subject's own axes; encoders have one prompt at a time, as long as text may be."""
    if subject.kind != "encoder":
        return sizes
    return {**sizes, "batch": 1, "text": manifest.text.max_length}


def example(graph: Graph, sizes: Mapping[str, int], seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """Return seeded inputs of an engine, by name.

    They are normal numbers, conditions within their range, a mask that hides the end of every second row, or indices.
    numpy has no bfloat16 that Polygraphy would know, so such inputs are float32, rounded to bfloat16.
    """
    random = np.random.default_rng(seed)
    return {spec.name: _example(spec, sizes, random) for spec in graph.inputs}


def _example(spec: TensorSpec, sizes: Mapping[str, int], random: np.random.Generator) -> NDArray[np.generic]:
    shape = spec.shape(sizes)
    if spec.dtype == "bool":
        mask = np.ones(shape, np.bool_)
        mask[::2, (shape[-1] + 1) // 2 :] = False
        return mask
    if spec.dtype == "int64":
        indices = np.arange(shape[-1], dtype=np.int64)
        if spec.name == "later":  # each frame with the next one, where there is one
            indices = np.minimum(indices + 1, sizes["patch_frames"] - 1)
        return np.ascontiguousarray(np.broadcast_to(indices, shape))
    low_high = INPUT_RANGES.get(spec.name)
    values = random.uniform(*low_high, shape) if low_high else random.standard_normal(shape)
    return narrow(values.astype(np.float32).astype(NUMPY_DTYPES[spec.dtype]))


def narrow(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return the array as Polygraphy takes it: bfloat16 as float32, anything else as it is."""
    return array.astype(np.float32) if array.dtype == NUMPY_DTYPES["bfloat16"] else array


def fed_dtype(spec: TensorSpec) -> np.dtype:
    """Return the dtype in which Polygraphy sees a tensor."""
    return FLOAT32 if spec.dtype == "bfloat16" else NUMPY_DTYPES[spec.dtype]
