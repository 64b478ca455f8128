"""Pages: every relative link leads to a file or folder, and every room of the exporter has a page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
for package in ("adacache_export", "engines", "runtime"):
    PAGES += sorted((ROOT / package).rglob("*.md"))
ROOMS = [path.parent for path in sorted((ROOT / "adacache_export").glob("*/__init__.py"))]
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
LINES = 70  # of a page, at most


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.name))
def test_rooms_of_the_exporter_have_a_page(room: Path) -> None:
    assert 0 < len((room / "README.md").read_text(encoding="utf-8").splitlines()) <= LINES
