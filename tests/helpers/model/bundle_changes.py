"""Change the manifest of a bundle that is there, and export without tracing anything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adacache_engines.bundle import files as bundle_module
from adacache_engines.bundle.files import MANIFEST
from adacache_export.tracing import graphs
from adacache_export.verification import parity


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and give it the digest of its new content."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    content.pop("digest")
    change(content)
    digest = bundle_module._digest(content)
    (folder / MANIFEST).write_text(bundle_module._canonical({**content, "digest": digest}), encoding="utf-8")


class Stubs:
    """Replace tracing and verification by nothing; ``error`` is the difference that every comparison shows."""

    def __init__(self) -> None:
        self.error = 0.0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(graphs, "trace", lambda *_: None)
        monkeypatch.setattr(graphs, "write_graph", lambda path, *_: path.write_bytes(b"graph"))
        monkeypatch.setattr(parity, "compare", lambda *_: self.error)
