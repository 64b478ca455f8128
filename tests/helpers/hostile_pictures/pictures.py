"""Pictures of noise, and their files, from which hostile ones are made."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image as Pillow

Named = Iterator[tuple[str, bytes]]


def picture(mode: str = "RGB", width: int = 24, height: int = 16) -> Pillow.Image:
    """Return a picture of noise."""
    noise = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
    return Pillow.fromarray(noise).convert(mode)


def encoded(image: Pillow.Image, kind: str, **options: Any) -> bytes:
    """Return a picture as the content of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
