"""Pages of other sites, and hosts that are not the server's.

Without keys any page in a browser could drive a server on its machine: by DNS rebinding, with forms, and by requests
whose answers it cannot read. A browser is the judge here; a table of headers says what it cannot be made to send.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from typing import Any

import httpx
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import served, service, write_model
from tests.helpers.serving.http_jobs import create
from tests.helpers.waiting import HANG_SECONDS, until
from tools.demo.browser import browser, missing

in_browser = pytest.mark.skipif(missing() is not None, reason=str(missing()))
Tries = Callable[..., Any]

ASK = """
const [method, path, body, mode, done] = arguments;
const headers = body && mode !== "no-cors" ? {"Content-Type": "application/json"} : {};
fetch(path, {method, body: body ?? undefined, mode, headers})
    .then(async (answer) => done([answer.status, await answer.text()]))
    .catch((error) => done([String(error), ""]));
"""
FORM = """
const form = document.createElement("form");
form.method = "POST";
form.enctype = "multipart/form-data";
form.action = arguments[0];
form.innerHTML = '<input name="prompt" value="of another page">';
document.body.append(form);
form.submit();
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("server")
    write_model(folder / "fake")
    with served(service(Settings(folder / "data"), folder / "fake")) as client:
        yield client


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with browser(flags=["--host-resolver-rules=MAP *.test 127.0.0.1, MAP *.test. 127.0.0.1"]) as driver:
        driver.set_script_timeout(HANG_SECONDS)
        driver.execute_cdp_cmd("Page.enable", {})
        driver.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})  # a hostile page has no such policy
        yield driver


@contextmanager
def hostile_site() -> Iterator[int]:
    """Serve an empty page; yield its port."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>hostile</title><body></body>")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(driver: Chrome, method: str, path: str, body: str | None = None, mode: str = "cors") -> list[Any]:
    answer: list[Any] = driver.execute_async_script(ASK, method, path, body, mode)
    return answer


def videos(client: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/v1/videos", params={"limit": 100}).json()["data"]
    return found


@in_browser
def test_a_name_that_was_rebound_to_the_server_can_do_nothing(
    client: httpx.Client, driver: Chrome, tries: Tries
) -> None:
    kept = create(client)
    requests = [
        ("GET", "/", None),
        ("GET", "/v1/videos", None),
        ("GET", "/v1/models", None),
        ("GET", "/openapi.json", None),
        ("GET", f"/v1/videos/{kept}", None),
        ("GET", f"/v1/videos/{kept}/events", None),
        ("GET", f"/v1/videos/{kept}/content", None),
        ("DELETE", f"/v1/videos/{kept}", None),
        ("POST", "/v1/videos", '{"prompt": "rebound"}'),
    ]
    for host in ("127.0.0.1", "localhost"):  # the same requests do something where they may
        driver.get(f"http://{host}:{client.base_url.port}/healthz")
        assert ask(driver, "GET", "/v1/videos")[0] == 200
        assert ask(driver, "POST", "/v1/videos", '{"prompt": "allowed"}')[0] == 202
    before = videos(client)
    for site in tries(["evil.test", "localhost.evil.test", "evil.test."]):
        driver.get(f"http://{site}:{client.base_url.port}/healthz")
        assert driver.execute_script("return document.body.textContent") == "ok"  # the name leads to this server
        for request in tries(requests):
            status, text = ask(driver, *request)
            assert status == 421, (request, text)
            assert kept not in text or kept in request[1]
    assert [video["id"] for video in videos(client)] == [video["id"] for video in before]
    until(lambda: client.get(f"/v1/videos/{kept}").json()["status"] == "completed")
    assert client.get(f"/v1/videos/{kept}/content").status_code == 200


@in_browser
def test_a_page_of_another_site_can_neither_order_nor_delete_nor_read(
    client: httpx.Client, driver: Chrome, tries: Tries
) -> None:
    kept = create(client)
    before = videos(client)
    with hostile_site() as port:
        for site, host in tries(product(("evil.test", "localhost", "127.0.0.1"), ("127.0.0.1", "localhost"))):
            page, target = f"http://{site}:{port}/", f"http://{host}:{client.base_url.port}"
            driver.get(page)
            for method, path, body, mode in tries(
                [
                    ("GET", "/v1/videos", None, "cors"),
                    ("POST", "/v1/videos", '{"prompt": "a"}', "cors"),
                    ("POST", "/v1/videos", '{"prompt": "a"}', "no-cors"),
                    ("DELETE", f"/v1/videos/{kept}", None, "cors"),
                ]
            ):
                status, text = ask(driver, method, target + path, body, mode)
                assert text == ""  # nothing of an answer is seen
                assert status == 0 or "TypeError" in status
            driver.execute_script(FORM, f"{target}/v1/videos")
            until(lambda: driver.current_url.startswith(target))  # noqa: B023 - called at once
            assert "403" in until(lambda: driver.find_element(By.TAG_NAME, "body").text)
    assert [video["id"] for video in videos(client)] == [video["id"] for video in before]
    assert client.get(f"/v1/videos/{kept}").json()["status"] != "cancelled"


def raw(client: httpx.Client, head: list[str], body: bytes = b"") -> bytes:
    """Send these lines; return the first line of the answer."""
    with socket.create_connection((client.base_url.host, client.base_url.port), HANG_SECONDS) as connection:
        lines = [*head, f"Content-Length: {len(body)}", "Connection: close", "", ""]
        connection.sendall("\r\n".join(lines).encode("latin-1") + body)
        return connection.makefile("rb").readline()


HOSTS = [
    [],
    [""],
    ["evil.test"],
    ["evil.test:{port}"],
    ["localhost:{port}", "evil.test"],
    ["evil.test", "localhost:{port}"],
    ["localhost.evil.test:{port}"],
    ["127.0.0.1.evil.test"],
    ["evil.test:{port}@localhost"],
    ["localhost:{port}@evil.test"],
    ["localhost, evil.test"],
    ["localhost evil.test"],
    ["localhost\tevil.test"],
    ["localhost:99999"],
    ["localhost:{port}:1"],
    ["localhost/evil.test"],
    ["http://localhost:{port}"],
    ["l\xf6calhost"],
    ["[::1"],
    ["[::2]:{port}"],
    ["[::ffff:6.6.6.6]"],
    ["6.6.6.6"],
    ["0x7f000001"],
    ["2130706433"],
    ["a" * 5000],
]
TARGETS = ["/v1/videos", "http://localhost/v1/videos", "http://evil.test/v1/videos", "//localhost/v1/videos"]
ORIGINS = [
    ["null"],
    [""],
    ["http://evil.test"],
    ["http://localhost:3000"],
    ["http://127.0.0.1:{port}"],
    ["http://localhost:{port}/"],
    ["http://localhost:{port}.evil.test"],
    ["http://localhost:{port}@evil.test"],
    ["http://localhost:{port}", "http://evil.test"],
    ["http://evil.test", "http://localhost:{port}"],
    ["http://localhost:{port} http://evil.test"],
    ["file://"],
    ["chrome-extension://aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"],
    ["http://[::1]:{port}"],
    ["\xff"],
]
SITES = [[], ["same-origin"], ["none"], ["cross-site"], ["same-site"], ["same-origin", "cross-site"]]
BODY = b'{"prompt": "foreign"}'


def test_no_combination_of_headers_passes_for_the_servers_own(client: httpx.Client, tries: Tries) -> None:
    port = client.base_url.port
    kept = create(client)
    before = videos(client)
    json = "Content-Type: application/json"
    own = [f"Host: localhost:{port}"]

    def lines(name: str, values: list[str]) -> list[str]:
        return [f"{name}: {value.format(port=port)}" for value in values]

    for target, hosts in tries(product(TARGETS, HOSTS)):
        head = [f"POST {target} HTTP/1.1", *lines("Host", hosts), json, "Sec-Fetch-Site: same-origin"]
        assert raw(client, head, BODY).split()[1] in (b"400", b"404", b"421"), head
    for version, hosts in tries([("1.0", []), ("1.0", ["evil.test"]), ("1.1", ["evil.test"])]):
        head = [f"GET /v1/videos/{kept} HTTP/{version}", *lines("Host", hosts)]
        assert raw(client, head).split()[1] == b"421", head
    for origins, sites in tries(product(ORIGINS, SITES)):
        for method, path in (("POST", "/v1/videos"), ("DELETE", f"/v1/videos/{kept}")):
            head = [f"{method} {path} HTTP/1.1", *own, json, *lines("Origin", origins), *lines("Sec-Fetch-Site", sites)]
            assert raw(client, head, BODY).split()[1] == b"403", head
    for origins, sites in tries(product([[], ["http://localhost:{port}"]], [["cross-site"], ["same-site"]])):
        head = ["POST /v1/videos HTTP/1.1", *own, json, *lines("Origin", origins), *lines("Sec-Fetch-Site", sites)]
        assert raw(client, head, BODY).split()[1] == b"403", head
    assert [video["id"] for video in videos(client)] == [video["id"] for video in before]
    assert client.get(f"/v1/videos/{kept}").json()["status"] != "cancelled"
    head = ["POST /v1/videos HTTP/1.1", *own, json, *lines("Origin", ["http://localhost:{port}"])]
    assert raw(client, head, BODY).split()[1] == b"202"  # what differs is the header alone


def test_an_upgrade_to_a_websocket_leads_nowhere(client: httpx.Client, tries: Tries) -> None:
    for path in tries(["/v1/videos", "/", "/healthz"]):
        upgrade = ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
        head = [f"GET {path} HTTP/1.1", "Host: evil.test", "Connection: Upgrade", *upgrade]
        assert raw(client, head).split()[1] in (b"200", b"421"), path


def test_probes_of_any_host_are_answered(client: httpx.Client, tries: Tries) -> None:
    for path in tries(["/healthz", "/readyz", "/metrics"]):
        assert client.get(path, headers={"Host": "10.0.0.7:8000"}).status_code == 200
