"""Facts about a bundle, as its manifest states them."""

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from adacache_engines.bundle.manifest import Conditioning, ImageRule, Manifest
from adacache_engines.bundle.video_sizes import durations_of, usual_aspect

CONDITIONING: Mapping[Conditioning, str] = {
    "none": "none",
    "not-exported": "none; --conditioning exports the model so that frames may be given and kept",
    "kept-frames": "frames may be given and kept",
    "encoded-video": "a video begins with an image, which must be given",
}


def facts_table(folder: Path, manifest: Manifest, computation: Mapping[str, str]) -> Table:
    """Return a table of names and facts.

    Args:
        folder: folder of the bundle, which is the table's title.
        manifest: the bundle's manifest.
        computation: figures of one video by name; they follow the default video.
    """
    table = Table(title=str(folder), show_header=False)
    for name, value in _facts(manifest, computation).items():
        table.add_row(name, value)
    for profile, axes in manifest.profiles.items():
        table.add_row(f"profile {profile}", ", ".join(f"{axis} {low} to {high}" for axis, (low, high) in axes.items()))
    return table


def stages_table(manifest: Manifest) -> Table:
    """Return a table of all graphs of a bundle with their tensors; a row a graph."""
    table = Table("stage", "inputs", "outputs", "error", title="stages, in order")
    for graph in manifest.graphs():
        error = f"{graph.check.error:.1e}" if graph.check else ""
        table.add_row(graph.name, "\n".join(map(str, graph.inputs)), "\n".join(map(str, graph.outputs)), error)
    return table


def _facts(manifest: Manifest, computation: Mapping[str, str]) -> dict[str, str]:
    video, sampler, text, latent = manifest.video, manifest.sampler, manifest.text, manifest.latent
    nbytes = sum(entry.nbytes for entry in manifest.files.values())
    return {
        "family": manifest.family,
        "made by": manifest.producer,
        "checkpoint": f"{', '.join(manifest.checkpoint.files)}  sha256 {manifest.checkpoint.sha256}",
        "config": ", ".join(f"{key} {value}" for key, value in manifest.config.items()),
        "precision": manifest.precision,
        "granularity": manifest.granularity,
        "sampler": f"{sampler.name}, {sampler.steps} steps, guidance {sampler.guidance:g}",
        "default video": f"{video.width}x{video.height} pixels, {video.frames} frames",
        "sizes": _sizes(manifest),
        "durations": ", ".join(f"{name} ({frames})" for name, frames in durations_of(manifest).items()) or "none",
        **computation,
        "text": f"up to {text.max_length} tokens, width {text.width}, "
        + (f"with encoder in {text.precision}" if text.encoder_stages else "no encoder"),
        **_image(manifest.image),
        "decoder": latent.decoder + (f" in {latent.precision}" if manifest.vae_graphs() else ""),
        "conditioning": CONDITIONING[manifest.conditioning],
        "probes": ", ".join(manifest.probes()) or "none",
        "signals": ", ".join(manifest.signals),
        **_presets(manifest),
        "files": f"{len(manifest.files)}, {nbytes / 1e9:.3f} GB",
    }


def _image(rule: ImageRule | None) -> dict[str, str]:
    """Return a row on the image that a model attends to; none where it attends to no image."""
    if rule is None:
        return {}
    encoder = "with encoder" if rule.encoder_stages else "no encoder"
    return {"image": f"{rule.tokens} states, width {rule.width}, {encoder}"}


def _sizes(manifest: Manifest) -> str:
    """Return the names of all sizes, each with its usual pixels."""
    names = manifest.names
    usual = {size: aspects[usual_aspect(names, size)] for size, aspects in names.sizes.items()}
    return ", ".join(f"{size} ({width}x{height})" for size, (width, height) in usual.items()) or "none has a name"


def _presets(manifest: Manifest) -> dict[str, str]:
    """Return a row for each note with the presets that it is about, and one for presets without a note."""
    names: dict[str, list[str]] = {}
    for name, preset in manifest.policies.items():
        names.setdefault(preset.note, []).append(name)
    plain = names.pop("", [])
    noted = {f"presets {', '.join(some)}": note for note, some in names.items()}
    return {**noted, "presets": ", ".join(plain)} if plain else noted
