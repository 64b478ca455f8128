"""Nothing below the exporter knows a family of models: no name of one in code, messages, help texts or data files."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from adacache_export.families.registry import FAMILIES

ROOT = Path(__file__).parent.parent
PACKAGES = [
    ROOT / "engines" / "adacache_engines",
    *(ROOT / "runtime" / name for name in ("adacache_runtime", "adacache_tune", "adacache_serve")),
]
# families that are there, and others that may come; as whole words, in any spelling
WORDS = (
    "open[-_ ]?sora([-_ ]?plan)?",
    "latte([-_ ]?t2v)?",
    "stdit[0-9]*",
    "wan(video)?",
    "hunyuan",
    "cogvideox?",
    "mochi",
)
FAMILY = re.compile(rf"(?<![a-z])({'|'.join(WORDS)})(?![a-z])", re.IGNORECASE)
DATA = (".css", ".html", ".js", ".json", ".svg", ".toml")
FILES = sorted(path for package in PACKAGES for path in package.rglob("*") if path.suffix in (".py", *DATA))


def docstrings(tree: ast.AST) -> Iterator[ast.expr]:
    """All strings that stand alone as a statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def words(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string constant that is no docstring, and of every identifier."""
    tree = ast.parse(source)
    apart = {id(node) for node in docstrings(tree)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in apart:
            yield line, node.value
        for field in ("id", "attr", "arg", "name", "module", "asname"):
            text = getattr(node, field, None)
            if isinstance(text, str):
                yield line, text


def named(text: str) -> list[str]:
    return [match[0] for match in FAMILY.finditer(text)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_family_is_named(path: Path) -> None:
    found = [f"the file's name: {path.name}"] if named(path.stem) else []
    if path.suffix == ".py":
        found += [f"line {line}: {text[:80]}" for line, text in words(path.read_text(encoding="utf-8")) if named(text)]
    else:
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        found += [f"line {line}: {text[:80]}" for line, text in lines if named(text)]
    assert found == []


def test_every_known_family_would_be_found() -> None:
    for name in FAMILIES:
        assert named(name)
        assert named(f'if family == "{name}":')
        assert named(name.replace("-", "_"))
    assert named("OpenSora's rule")
    assert not named("what we want of a plateau, once open")


def test_code_is_looked_at_and_docstrings_are_not() -> None:
    code = '"""As Latte."""\nlatte = 1\ndef f(x):\n    """As Latte."""\n    return x.open_sora or "of Wan"  # Latte\n'
    assert [text for _, text in words(code) if named(text)] == ["latte", "open_sora", "of Wan"]
