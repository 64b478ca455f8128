"""The demo model as a bundle, exported once for all tools that take it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.exporting import convert_quietly

DEMO = Path(__file__).parents[2] / "tools" / "demo" / "model"


@pytest.fixture(scope="session")
def demo_bundle(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The demo model with its text encoder. Not to be changed."""
    return once("demo-bundle", lambda folder: convert_quietly(DEMO, folder, text_encoder=DEMO / "text_encoder"))
