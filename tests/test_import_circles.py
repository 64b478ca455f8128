"""No two modules import each other, by whatever way: in functions and for the type checker alone included."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = (
    ROOT / "engines" / "adacache_engines",
    *(ROOT / "runtime" / name for name in ("adacache_runtime", "adacache_tune", "adacache_serve")),
    ROOT / "adacache_export",
)


def modules() -> dict[str, Path]:
    """Return the files of all modules by their names."""
    found = {}
    for folder in PACKAGES:
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, known: Mapping[str, object]) -> Iterator[str]:
    """Return the known modules that a tree imports; ``from package import module`` is an import of the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def circles(edges: Mapping[str, set[str]]) -> list[set[str]]:
    """Return the sets of two or more modules that all reach each other."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = [start]
        while left:
            for other in edges[left.pop()] - seen:
                seen.add(other)
                left.append(other)
        return seen

    reach = {name: reached(name) for name in edges}
    found = {frozenset({name, *(other for other in reach[name] if name in reach[other])}) for name in edges}
    return sorted((set(each) for each in found if len(each) > 1), key=sorted)


def test_circles_are_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set()}
    assert circles(edges) == [{"a", "b", "c"}]


def test_no_modules_import_each_other() -> None:
    known = modules()
    edges = {name: {*imported(ast.parse(path.read_text()), known)} - {name} for name, path in known.items()}
    assert sum(map(len, edges.values())) > len(edges)  # else nothing was read
    assert circles(edges) == []
