"""Run the attacks on the running system, and write down how many were tried and survived.

    python tools/attacks.py [--results DIR] [PYTEST OPTION ...]

The attacks are the tests in ``tests/attacks``, a file a class. The exit status is pytest's.
"""

import argparse
import ast
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
ATTACKS = ROOT / "tests" / "attacks"
COMMAND = "python tools/attacks.py --results tools/results"


@dataclass(frozen=True)
class Attack:
    """The outcome of a class of attacks.

    Attributes:
        name: name of the class.
        tried: number of hostile inputs and situations.
        survived: how many of them the system stood; a test that fails counts as one that it did not.
        skipped: why some were not tried, such as a package that is missing.
    """

    name: str
    tried: int
    survived: int
    skipped: tuple[str, ...]


def outcomes(report: Path, folder: Path) -> list[Attack]:
    """Return the outcome of each class of attacks.

    Args:
        report: JUnit XML file that pytest wrote.
        folder: folder of the tests, whose docstrings name the classes.
    """
    attacks = []
    cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - pytest wrote it just now
    for file in sorted(folder.glob("test_*.py")):
        of_file = [case for case in cases if case.get("classname", "").rpartition(".")[2] == file.stem]
        skipped = {each.get("message", "") for case in of_file for each in case.iter("skipped")}
        ran = [case for case in of_file if case.find("skipped") is None]
        tried = sum(map(_tries, ran))
        broken = sum(case.find("failure") is not None or case.find("error") is not None for case in ran)
        attacks.append(Attack(_title(file), tried, tried - broken, tuple(sorted(skipped))))
    return attacks


def _tries(case: ElementTree.Element) -> int:
    counted = [int(each.get("value", "1")) for each in case.iter("property") if each.get("name") == "tries"]
    return max(1, *counted) if counted else 1


def _title(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_text())) or file.stem).splitlines()[0].rstrip(".")


def page(attacks: Sequence[Attack]) -> str:
    """Return the outcomes as a Markdown page."""
    rows = [f"| {each.name} | {each.tried} | {each.survived} | {'; '.join(each.skipped)} |" for each in attacks]
    total = f"| **all** | {sum(each.tried for each in attacks)} | {sum(each.survived for each in attacks)} | |"
    head = ("| class of attack | tried | survived | not tried |", "|---|---:|---:|---|")
    intro = (
        f"# Attacks\n\nWritten by `{COMMAND}`. An attack has survived when the system\nrefused it in one line or with"
        " one answer below 500, left nothing behind, and went on serving everybody else.\nWhat each class tries is in"
        " `tests/attacks`.\n"
    )
    return "\n".join([intro, *head, *rows, total]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, metavar="DIR", help="folder to write attacks.md into")
    options, rest = parser.parse_known_args(arguments)
    if options.results is not None and not options.results.is_dir():
        parser.error(f"--results {options.results}: there is no such folder; create it, or name another one")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # the family of reports that holds what a test counts; in the usual one, to count is a warning, and so an error
        written = ["-o", "junit_family=xunit1", f"--junitxml={report}"]
        chosen = [sys.executable, "-m", "pytest", "-m", "attack", *written, str(ATTACKS), *rest]
        status = subprocess.run(chosen, cwd=ROOT, check=False).returncode
        if not report.exists():
            return status
        attacks = outcomes(report, ATTACKS)
    table = Table("class of attack", "tried", "survived", "not tried")
    for each in attacks:
        table.add_row(each.name, str(each.tried), str(each.survived), "; ".join(each.skipped))
    Console().print(table)
    if options.results is not None:
        (options.results / "attacks.md").write_text(page(attacks), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
