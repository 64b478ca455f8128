"""The hosts that requests may name, and what the start says of who can reach the server."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from adacache_engines.errors import InputError
from adacache_serve.commands import serve as cli
from adacache_serve.commands.options import parser_of, settings_of
from adacache_serve.http.hosts import authority, hosts_of, wrong_host, wrong_page
from adacache_serve.settings import Settings

DATA = Path("data")


@pytest.mark.parametrize(
    ("text", "name", "port"),
    [
        ("localhost", "localhost", None),
        ("LocalHost:8000", "localhost", 8000),
        ("localhost.", "localhost", None),
        ("localhost.:8000", "localhost", 8000),
        ("localhost:", "localhost", None),
        ("gpu_box-1.example.org", "gpu_box-1.example.org", None),
        ("127.0.0.1:8000", ip_address("127.0.0.1"), 8000),
        ("[::1]", ip_address("::1"), None),
        ("[0:0:0:0:0:0:0:1]:8000", ip_address("::1"), 8000),
        ("[::FFFF:127.0.0.1]", ip_address("127.0.0.1"), None),
    ],
)
def test_a_host_is_read_as_a_browser_writes_it(text: str, name: object, port: int | None) -> None:
    assert authority(text) == (name, port)


NO_HOSTS = """
    :8000 localhost:x localhost:65536 localhost:8000:1 a/b user@localhost [::1 ::1 [localhost] [::1]x [fe80::1%eth0]
    2130706433 127.1 999.0.0.1 l\xf6cal . *
"""


@pytest.mark.parametrize("text", ["", "a b", "localhost\0", *NO_HOSTS.split()])
def test_what_is_no_host_is_none(text: str) -> None:
    assert authority(text) is None


def named(asked: str, address: str = "127.0.0.1", **settings: object) -> str | None:
    hosts = hosts_of(address, Settings(DATA, **settings), keys=False)  # type: ignore[arg-type]
    assert hosts is not None
    return wrong_host("/v1/videos", [(b"host", asked.encode())], hosts)


def test_localhost_and_the_servers_own_address_may_be_named_and_nothing_else() -> None:
    for host in ("localhost", "LOCALHOST.:1", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000"):
        assert named(host) is None
    for host in ("192.168.1.5", "evil.test:8000", "localhost.evil.test", "127.0.0.1.evil.test", "0.0.0.0", "[::]"):
        assert "--allowed-host" in str(named(host))
    assert named("192.168.1.5:8000", "192.168.1.5") is None
    assert named("gpubox:8000", "192.168.1.5", host="gpubox") is None
    assert named("GPUbox.:443", allowed_hosts=("gpubox",)) is None
    assert named("[2001:db8::0:5]", allowed_hosts=("2001:db8::5",)) is None
    assert named("gpubox", allowed_hosts=("gpubox.example.org",))


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_a_server_on_all_addresses_may_be_named_by_any_of_them_but_by_no_name(address: str) -> None:
    for host in ("192.168.1.5:8000", "[2001:db8::5]:8000", "localhost", "127.0.0.1"):
        assert named(host, address, host=address) is None
    assert named("evil.test:8000", address, host=address)


def test_probes_may_name_any_host_and_so_may_all_where_a_key_is_needed() -> None:
    hosts = hosts_of("127.0.0.1", Settings(DATA), keys=False)
    assert hosts is not None
    for path in ("/healthz", "/readyz", "/metrics"):
        assert wrong_host(path, [(b"host", b"10.1.2.3:8000")], hosts) is None
    for path in ("/", "/v1/videos", "/healthz/", "//healthz", "/openapi.json"):
        assert wrong_host(path, [(b"host", b"10.1.2.3:8000")], hosts)
    assert hosts_of("127.0.0.1", Settings(DATA), keys=True) is None
    assert hosts_of("127.0.0.1", Settings(DATA, allowed_hosts=("gpubox",)), keys=True) is not None


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("http://localhost:8000", "localhost:8000", True),
        ("http://LOCALHOST:8000", "localhost:8000", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("https://video.example.org", "video.example.org", True),
        ("https://video.example.org", "video.example.org:443", True),
        ("https://video.example.org", "127.0.0.1:8000", True),  # a proxy that names the server behind it
        ("http://localhost:3000", "localhost:8000", False),
        ("http://127.0.0.1:8000", "localhost:8000", False),
        ("http://video.example.org:3000", "video.example.org", False),
        ("https://video.example.org.evil.test", "video.example.org", False),
        ("http://evil.test", "localhost:8000", False),
        ("null", "localhost:8000", False),
        ("", "localhost:8000", False),
        ("localhost:8000", "localhost:8000", False),
        ("file://localhost:8000", "localhost:8000", False),
        ("http://localhost:8000/", "localhost:8000", False),
        ("http://localhost:8000 http://evil.test", "localhost:8000", False),
        ("http://user@localhost:8000", "localhost:8000", False),
        ("http://localhost:8000", "", False),
    ],
)
def test_a_request_that_changes_something_comes_from_the_servers_own_page(origin: str, host: str, own: bool) -> None:
    hosts = hosts_of("127.0.0.1", Settings(DATA, allowed_hosts=("video.example.org",)), keys=False)
    headers = [(b"host", host.encode()), (b"origin", origin.encode())]
    for method in ("POST", "DELETE", "PUT", "PATCH"):
        assert (wrong_page(method, headers, hosts) is None) == own
        assert wrong_page(method, headers[:1], hosts) is None  # no browser
        assert wrong_page(method, [*headers, (b"sec-fetch-site", b"cross-site")], hosts)
        assert wrong_page(method, [*headers[:1], (b"sec-fetch-site", b"Same-Site")], None)
        assert wrong_page(method, headers, None) is None
        assert wrong_page(method, [*headers, (b"origin", b"http://evil.test")], hosts)
    assert wrong_page("GET", headers, hosts) is None


def test_hosts_that_are_none_are_refused_at_the_start() -> None:
    for name in ("http://gpubox", "gpubox:8000", "", "a b", "*", "[::1]:80"):
        options = parser_of().parse_args(["bundle", "--allowed-host", name])
        with pytest.raises(InputError, match="is not a host; give a name or an address without http://"):
            settings_of(options)
    options = parser_of().parse_args(["bundle", "--allowed-host", "gpubox", "--allowed-host", "::1"])
    assert settings_of(options).allowed_hosts == ("gpubox", "::1")


@pytest.mark.parametrize(
    ("options", "address", "open_to_all"),
    [
        (["--host", "127.0.0.1"], "http://127.0.0.1:", False),
        (["--host", "0.0.0.0"], "http://0.0.0.0:", True),
        (["--host", "::"], "http://[::]:", True),
        (["--host", "0.0.0.0", "--keys", "KEYS"], "http://0.0.0.0:", False),
    ],
)
def test_the_start_says_in_one_line_who_can_use_a_server_without_keys(
    options: list[str],
    address: str,
    open_to_all: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"alice {'0' * 64}\n")
    monkeypatch.setattr(cli, "open_bundles", lambda folders: dict.fromkeys(map(str, folders)))
    monkeypatch.setattr("adacache_serve.http.server.serve", lambda *given: given[-1]())
    given = [str(keys) if word == "KEYS" else word for word in options]
    assert cli.main(["bundle", "--port", "0", *given]) == 0
    first, *more = capsys.readouterr().err.splitlines()
    assert first.startswith(f"adacache-serve: {address}")
    assert [line.startswith("adacache-serve: no --keys are given, so everybody") for line in more] == [
        True
    ] * open_to_all
