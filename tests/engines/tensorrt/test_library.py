"""The installed library: which one is there, and whether it is new enough."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from adacache_engines.errors import MissingDependencyError
from adacache_engines.tensorrt.library import EXTRAS, LIBRARIES, MODULES, OLDEST, open_library
from tests.helpers.gpu.fake_tensorrt import ILogger, Logger

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def install(monkeypatch: pytest.MonkeyPatch, module: str, version: str) -> None:
    fake = SimpleNamespace(__version__=version, Builder=object, ILogger=ILogger, Logger=Logger)
    monkeypatch.setitem(sys.modules, module, fake)


@pytest.mark.parametrize("version", ["10.9.0.34", "10.13.3", "9.14"])
def test_an_older_library_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install(monkeypatch, "tensorrt", version)
    with pytest.raises(
        MissingDependencyError, match=rf"tensorrt {re.escape(version)} is installed, and 10\.14 or newer"
    ):
        open_library("tensorrt")


@pytest.mark.parametrize("version", ["10.14.1.48", "10.16", "11.0.0"])
def test_a_newer_library_is_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install(monkeypatch, "tensorrt", version)
    assert open_library("tensorrt").version == version


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_extras_ask_for_what_is_needed(library: str) -> None:
    (extra,) = (extra for name, extra in EXTRAS.items() if name == library)
    (oldest,) = (version for name, version in OLDEST.items() if name == library)
    assert f'{extra} = ["{library}>={oldest}"' in PYPROJECT.read_text(encoding="utf-8")
    assert {*OLDEST} == {*EXTRAS} == {*MODULES}
