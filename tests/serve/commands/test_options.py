"""The options of ``adacache-serve``: values that are not possible, and addresses that cannot be listened on."""

from pathlib import Path

import pytest

from adacache_engines.errors import InputError
from adacache_serve.commands import serve as cli
from adacache_serve.commands.options import DEFAULTS, parser_of, settings_of

COUNTS = (
    "queue",
    "queue-per-client",
    "attempts",
    "in-flight",
    "max-pixels",
    "max-steps",
    "max-connections",
    "memory-budget",
)
AMOUNTS = ("header-seconds", "body-seconds", "hang-seconds", "keep-hours", "keep-gb", "forget-days")


def test_the_options_have_the_defaults_of_the_settings() -> None:
    assert settings_of(parser_of().parse_args(["bundle"])) == DEFAULTS


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *((option, value) for option in COUNTS for value in ("0", "-1")),
        *((option, value) for option in AMOUNTS for value in ("0", "-1", "nan", "inf", "1e300")),
        *(("drain-seconds", value) for value in ("-1", "nan", "inf")),
        ("receive-mb", "16"),
        ("receive-mb", "-1"),
    ],
)
def test_a_number_that_is_not_possible_is_refused_by_its_option(option: str, value: str) -> None:
    options = parser_of().parse_args(["bundle", f"--{option}={value}"])
    with pytest.raises(InputError, match=rf"^--{option} \S+ is (too small|not possible)") as refused:
        settings_of(options)
    assert "choose" in str(refused.value)


@pytest.mark.parametrize(
    ("host", "port"),
    [("127.0.0.1", 99999), ("127.0.0.1", -1), ("no such host", 0), ("a" * 10_000, 0), ("\xfc" * 70, 0), ("1\0", 0)],
)
def test_an_address_that_cannot_be_listened_on_is_named(
    host: str, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "open_bundles", lambda _: {})
    assert cli.main([str(tmp_path / "bundle"), f"--host={host}", f"--port={port}", f"--data={tmp_path / 'data'}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("adacache-serve: cannot listen on ")
    assert f"port {port}: " in line
    assert len(line) < 300
