"""Compiled plans of text encoders and VAEs in each precision."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from adacache_engines.bundle.files import open_bundle, read_manifest, replace_manifest
from adacache_engines.bundle.latent_space import LatentSpace, VaePrecision
from adacache_engines.bundle.manifest import DTYPES, Graph, Precision
from adacache_export.commands.export import main as export
from adacache_export.options import PartOptions
from adacache_export.parts.add_parts import add_parts
from adacache_export.phases import Progress
from tests.helpers.tiny_models.vae_bundle import LATENTS, write_vae_bundle

PROFILE = "16x16..32x32..48x64:1f..17f..34f"
T5_GRAPHS = {"encoder.embed", "encoder.00", "encoder.01", "encoder.final"}
OPEN_SORA_GRAPHS = {"decoder.temporal", "decoder.spatial", "vae_encoder.spatial", "vae_encoder.temporal"}


def dtypes_outside(graph: Graph) -> set[str]:
    return {spec.dtype for spec in (*graph.inputs, *graph.outputs)}


def bundle_of_parts(
    folder: Path, vae: Path, latent: LatentSpace, precision: VaePrecision, t5: Path, text: Precision
) -> None:
    """A bundle of parts alone."""
    write_vae_bundle(folder, vae, latent, precision)
    manifest = read_manifest(folder)
    changes = {"text": manifest.text.model_copy(update={"width": 24}), "profiles": {"any": {}}}
    replace_manifest(folder, manifest.model_copy(update=changes))
    logging.disable()  # as in conftest
    try:
        add_parts(folder, PartOptions(text_encoder=t5, text_precision=text), Progress())
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision", "text"),
    [
        ("open-sora", "fp32", "fp32"),
        ("open-sora", "bf16", "fp16"),
        ("stable-diffusion", "bf16", "bf16"),
        ("causal", "bf16", "fp16"),
        ("temporal-decoder", "bf16", "fp16"),
    ],
)
def test_plans_of_parts_build(
    kind: str,
    precision: VaePrecision,
    text: Precision,
    vae_of: Callable[[str], Path],
    tmp_path: Path,
    t5_folder: Path,
) -> None:
    folder = tmp_path / "bundle"
    bundle_of_parts(folder, vae_of(kind), LATENTS[kind], precision, t5_folder, text)
    manifest = open_bundle(folder).manifest
    assert (manifest.latent.precision, manifest.text.precision) == (precision, text)
    assert export([str(folder), "--backend", "tensorrt-rtx", "--profile", PROFILE, "--jobs", "1"]) == 0
    (plans,) = read_manifest(folder).plans.values()
    built = {entry.graph: entry for entry in plans.plans}
    assert set(built) == T5_GRAPHS | (OPEN_SORA_GRAPHS if kind == "open-sora" else {"decoder"})
    for graph in manifest.graphs():
        assert folder.joinpath(built[graph.name].path).stat().st_size == built[graph.name].nbytes > 0
        assert graph.check
        assert graph.check.error <= graph.check.tolerance
    for graph in manifest.vae_graphs():
        assert set(graph.weight_dtypes) == {"float32", DTYPES[precision]}
        assert dtypes_outside(graph) == {"float32"}
        assert graph.check
        assert (graph.check.error > 1e-4) == (precision == "bf16")
    for graph in manifest.text.encoder_stages[1:-1]:
        assert set(graph.weight_dtypes) == {DTYPES[text], DTYPES["fp32" if text == "fp16" else text]}
        assert dtypes_outside(graph) == {DTYPES[text] if text == "bf16" else "float32"}
