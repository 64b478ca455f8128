"""Markup in prompts, names, errors and addresses that a browser shows.

Whoever has no key shares the list of jobs with everybody, so a prompt is shown in the browsers of others.
"""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from adacache_serve.jobs.service import Service
from adacache_serve.settings import Settings
from tests.helpers.serving.fake_server import served, service, write_model
from tests.helpers.serving.http_jobs import VIDEOS, create, ended
from tests.helpers.waiting import until
from tools.demo.browser import browser, console, missing, servers

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
Tries = Callable[..., Any]

MODEL = "<img src=x onerror=top.ran=1>"
MARKUP = [
    MODEL,
    "<script>top.ran=1</script>",
    '"><svg onload=top.ran=1>',
    "' autofocus onfocus=top.ran=1 x='",
    '<iframe srcdoc="<script>top.ran=1</script>">',
    "</textarea></title></style><script>top.ran=1</script>",
    "<a id=main href=javascript:top.ran=1>x</a><base href=//evil.test/>",
    "<meta http-equiv=refresh content='0;url=javascript:top.ran=1'>",
    "<style>@import '//evil.test/x.css';</style><link rel=stylesheet href=//evil.test/y.css>",
    "<form id=order action=//evil.test><input name=prompt></form>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror=top.ran=1&gt;'>",
    "javascript:top.ran=1//",
    "${top.ran=1}{{constructor.constructor('top.ran=1')()}}",
    "&lt;img src=x onerror=top.ran=1&gt;",
    "__proto__",
    "\u202egnp.x\u2066 \ufeff\u2028top.ran=1",
]
INJECTED = "script:not([src]), iframe, base, meta[http-equiv], style, img[onerror], svg[onload], a[href^=javascript]"

ALT = "return document.querySelector('.screen img')?.alt"
KINDS = ("application/json", "application/problem+json", "text/plain")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder = tmp_path_factory.mktemp("server")
    for name in ("fake", MODEL):
        write_model(folder / name)
    return service(Settings(folder / "data"), folder / "fake", folder / MODEL)


@pytest.fixture(scope="module")
def client(made: Service) -> Iterator[httpx.Client]:
    with served(made) as client:
        yield client


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with browser() as driver:
        driver.get("about:blank")
        driver.execute_script("document.body.innerHTML = arguments[0]", MODEL)
        assert until(lambda: driver.execute_script("return top.ran"))  # it runs where it is let
        yield driver


@pytest.fixture
def opened(driver: Chrome, client: httpx.Client) -> Iterator[Callable[[str], None]]:
    """Opens a path in the browser; whatever a test opens runs nothing and asks no other server."""

    def check() -> None:
        assert driver.execute_script("return top.ran") is None
        assert driver.find_elements(By.CSS_SELECTOR, INJECTED) == []

    def go(path: str) -> None:
        check()
        driver.get("about:blank")
        driver.get(f"{client.base_url}{path}")

    driver.get("about:blank")
    console(driver), servers(driver)  # of the test before
    yield go
    check()
    complaints = [line for line in console(driver) if "Content Security Policy" in line or "Trusted" in line]
    assert complaints == []  # nothing was inserted that only the policy stopped
    assert servers(driver) == {client.base_url.netloc.decode()}


def texts(driver: Chrome, selector: str) -> list[str]:
    found: list[str] = driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((found) => found.textContent)", selector
    )
    return found


def test_prompts_are_shown_as_they_are(
    client: httpx.Client, driver: Chrome, opened: Callable[[str], None], tries: Tries
) -> None:
    for prompt in tries(MARKUP):
        name = create(client, prompt=prompt, model=MODEL, frames=1)
        assert ended(client, name)["status"] == "completed"
        opened(f"/#{name}")
        until(lambda: texts(driver, "#title") == [prompt])  # noqa: B023 - called at once
        until(lambda: prompt in texts(driver, "#videos .prompt"))  # noqa: B023
        assert MODEL in texts(driver, "#facts")[0]
        assert until(lambda: driver.execute_script(ALT)).startswith(prompt)
        driver.find_element(By.ID, "again").click()
        assert driver.find_element(By.ID, "prompt").get_property("value") == prompt


def test_errors_are_shown_as_they_are(
    client: httpx.Client, made: Service, driver: Chrome, opened: Callable[[str], None], tries: Tries
) -> None:
    for message in tries(MARKUP[::3]):
        name = create(client, prompt="slow", steps=900)
        made.store.fail(name, message, message)
        made.dispatcher.release(name)
        opened(f"/#{name}")
        until(lambda: texts(driver, ".failure") == [message])  # noqa: B023 - called at once


def test_what_is_refused_and_what_is_not_there_is_shown_as_it_is(
    client: httpx.Client, driver: Chrome, opened: Callable[[str], None], tries: Tries
) -> None:
    for text in tries(MARKUP[::3]):
        name = quote(text.replace(",", "").replace("/", ""), safe="")
        opened(f"/#{name}")
        until(lambda: "there is no video" in "".join(texts(driver, ".failure")))
        for field, place in (("size", "size"), ("wrappers", "policy")):
            form(driver)
            Select(driver.find_element(By.ID, "model")).select_by_value(MODEL)
            fill(driver, "prompt", text)
            fill(driver, field, text)
            driver.find_element(By.ID, "make").click()
            until(lambda: "".join(texts(driver, f"#error-{place}")))  # noqa: B023 - called at once
            fill(driver, field, "")
    assert client.get(VIDEOS, params={"status": "queued"}).json()["data"] == []


def form(driver: Chrome) -> None:
    until(lambda: driver.find_element(By.ID, "order").is_displayed())
    driver.execute_script("document.getElementById('more').open = true")


def fill(driver: Chrome, name: str, text: str) -> None:
    driver.execute_script("document.getElementById('order').elements[arguments[0]].value = arguments[1]", name, text)


def test_answers_are_no_pages(
    client: httpx.Client, driver: Chrome, opened: Callable[[str], None], tries: Tries
) -> None:
    job = create(client, prompt=MARKUP[1], frames=1)
    ended(client, job)
    named = [f"{prefix}{quote(text, safe='')}" for prefix in ("/v1/videos/", "/page/", "/") for text in MARKUP]
    queries = [f"/v1/videos?{field}={quote(MODEL)}" for field in ("limit", "after", "status")]
    for path in tries([*named, *queries, f"/v1/videos/{job}", "/v1/videos", "/v1/models", "/openapi.json", "/metrics"]):
        answer = client.get(path)
        assert answer.headers["content-type"].split(";")[0] in KINDS, path
        assert answer.headers["x-content-type-options"] == "nosniff"
    for path in (named[1], f"/v1/videos/{job}"):
        opened(path)
        assert driver.execute_script("return document.contentType") in KINDS
