"""The table of attacks says what a run of pytest found."""

from pathlib import Path

from tools.attacks import Attack, outcomes, page

REPORT = """<testsuites><testsuite>
<testcase classname="tests.attacks.test_doors" name="a">
  <properties><property name="tries" value="7"/></properties>
</testcase>
<testcase classname="tests.attacks.test_doors" name="b"><failure message="it broke"/></testcase>
<testcase classname="tests.attacks.test_doors" name="c"><skipped message="there is no door"/></testcase>
<testcase classname="tests.attacks.test_windows" name="a"><error message="no window"/></testcase>
<testcase classname="tests.other.test_roofs" name="a"/>
</testsuite></testsuites>"""


def test_a_class_counts_its_tries_its_failures_and_its_skips(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    (tmp_path / "test_doors.py").write_text('"""Doors that are open.\n\nMore."""')
    (tmp_path / "test_windows.py").write_text('"""Windows that are broken."""')
    found = outcomes(tmp_path / "report.xml", tmp_path)
    assert found == [
        Attack("Doors that are open", tried=8, survived=7, skipped=("there is no door",)),
        Attack("Windows that are broken", tried=1, survived=0, skipped=()),
    ]
    assert "| Doors that are open | 8 | 7 | there is no door |\n" in page(found)
    assert "| **all** | 9 | 7 | |" in page(found)
