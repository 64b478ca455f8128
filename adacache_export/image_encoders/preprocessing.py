"""The rule by which pixels become an image encoder's input, from the ``preprocessor_config.json`` beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adacache_engines.errors import CheckpointError
from adacache_export.checkpoint.formats import read_json

FILE = "preprocessor_config.json"
BESIDE = "image_processor"  # the folder beside the encoder's in which diffusers saves the file
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
BICUBIC = 3  # as Pillow numbers its filters
DEFAULTS: Mapping[str, Any] = {  # of transformers' CLIPImageProcessor
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "resample": BICUBIC,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    **dict.fromkeys(STEPS, True),
}


def read_preprocessing(folder: Path) -> dict[str, Any]:
    """Return the fields of an :class:`adacache_engines.bundle.image_rule.ImageRule` that say how pixels are prepared.

    Args:
        folder: folder of the encoder.

    Raises:
        CheckpointError: there is no file, or it describes something else than CLIP's preparation; lists all of that.
    """
    places = (folder / FILE, folder.absolute().parent / BESIDE / FILE)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise CheckpointError(
            f"{folder} has no {FILE}, and neither has {BESIDE} beside it; expected the one that belongs to the weights:"
            " download it too"
        )
    given = {**DEFAULTS, **{name: value for name, value in read_json(file).items() if value is not None}}
    shorter, side = _length(given["size"], ("shortest_edge",)), _length(given["crop_size"], ("height", "width"))
    colours = {name: _three(given[name]) for name in ("image_mean", "image_std")}
    expected = {
        "image_processor_type is not CLIP's": str(given["image_processor_type"]).startswith("CLIPImageProcessor"),
        **{f"{name} is not true": given[name] is True for name in STEPS},
        "resample is not 3, which is bicubic": given["resample"] == BICUBIC,
        "size is not that of the shortest edge in pixels": shorter is not None,
        "crop_size is not that of a square in pixels": side is not None,
        "size is smaller than crop_size": shorter is None or side is None or shorter >= side,
        "rescale_factor is not a positive number": _is_positive(given["rescale_factor"]),
        "image_mean is not three numbers": colours["image_mean"] is not None,
        "image_std is not three positive numbers": all(map(_is_positive, colours["image_std"] or (0.0,))),
    }
    wrong = [problem for problem, fine in expected.items() if not fine]
    if wrong:
        raise CheckpointError(f"{file} cannot be used: {'; '.join(wrong)}; expected the file of a CLIPImageProcessor")
    return {
        "side": side,
        "shorter": shorter,
        "scale": float(given["rescale_factor"]),
        "mean": colours["image_mean"],
        "deviation": colours["image_std"],
    }


def _length(value: Any, names: tuple[str, ...]) -> int | None:
    """Return a number of pixels, given as it is or under each of ``names``; None where it is given otherwise."""
    if isinstance(value, Mapping):
        if {*value} != {*names} or len({*value.values()}) > 1:
            return None
        value = value[names[0]]
    return value if isinstance(value, int) and _is_positive(value) else None


def _three(value: Any) -> tuple[float, ...] | None:
    """Return three numbers; None where something else is given."""
    fits = isinstance(value, list) and len(value) == 3 and all(_is_number(one) for one in value)
    return tuple(map(float, value)) if fits else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0
