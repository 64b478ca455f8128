"""The page at /: its files, and its behaviour in a browser, on the fake model."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from adacache_runtime.media.video import write_video
from adacache_serve.http.page import FILES, FOLDER, PAGE, content_security_policy
from adacache_serve.keys import KeyFile, new_key
from adacache_serve.settings import Settings
from tests.helpers.model.experts import GUIDANCES, two_experts
from tests.helpers.serving.fake_server import served, service, write_model
from tests.helpers.waiting import until
from tools.demo.browser import browser, console, missing, resize, servers

in_browser = pytest.mark.skipif(missing() is not None, reason=str(missing()))
REFUSALS = re.compile(r"status of (401|422) ")  # Chromium writes every answer that is an error to its console
BARS = "return [...document.querySelectorAll('.job:nth-of-type(%d) .plot .call')].map((bar) => bar.classList[1])"
MEDIA = """return [...document.querySelectorAll('.screen video')].map((video) => (
    {duration: video.duration, time: video.currentTime, paused: video.paused}))"""


def text_of(name: str) -> str:
    return FOLDER.joinpath(name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "fake"
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[httpx.Client]:
    with served(service(Settings(tmp_path_factory.mktemp("data")), bundle)) as client:
        yield client


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with browser() as driver:
        yield driver


class Page:
    """The page in a browser, as a person uses it."""

    def __init__(self, driver: Chrome, client: httpx.Client) -> None:
        self.driver, self.client = driver, client

    def open(self, fragment: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(f"{self.client.base_url}/{fragment}")

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return str(self.find(selector).text)

    def seen(self, selector: str) -> bool:
        return any(element.is_displayed() for element in self.driver.find_elements(By.CSS_SELECTOR, selector))

    def write(self, **fields: object) -> None:
        """Open the page, and wait for its form."""
        until(lambda: self.seen("#order"))
        if not self.seen("#size"):
            self.find("summary").click()
        for name, value in fields.items():
            field = self.find(f"#order [name={name}]")
            if field.tag_name == "select":
                Select(field).select_by_value(str(value))
            else:
                field.clear()
                field.send_keys(str(value))

    def make(self) -> None:
        self.find("#make").click()

    def statuses(self) -> list[str]:
        return [badge.text for badge in self.driver.find_elements(By.CSS_SELECTOR, ".badge")]

    def made(self, **fields: object) -> list[dict[str, Any]]:
        """Submit an order; return its videos once the page shows all of them."""
        self.write(**fields)
        before = self.shown()
        self.make()
        until(lambda: self.shown() != before and set(self.statuses()) == {"completed"})
        return [self.client.get(f"/v1/videos/{name}").json() for name in self.shown()]

    def shown(self) -> list[str]:
        return str(self.driver.current_url).partition("#")[2].split(",")

    def bars(self, column: int = 1) -> list[str]:
        """Return the kind of each call."""
        found: list[str] = self.driver.execute_script(BARS % column)
        return found

    def media(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.driver.execute_script(MEDIA)
        return found


@contextmanager
def watched(driver: Chrome, client: httpx.Client) -> Iterator[Page]:
    """The opened page; at the end, the browser has reported no errors and connected to no other server."""
    console(driver), servers(driver)  # of the test before
    page = Page(driver, client)
    page.open()
    yield page
    assert [line for line in console(driver) if not REFUSALS.search(line)] == []
    assert servers(driver) == {client.base_url.netloc.decode()}


@pytest.fixture
def page(driver: Chrome, client: httpx.Client) -> Iterator[Page]:
    with watched(driver, client) as page:
        yield page


def test_every_file_has_a_strict_policy(client: httpx.Client) -> None:
    answers = {path: client.get(path) for path in ("/", *(f"/page/{name}" for name in FILES))}
    for path, answer in answers.items():
        assert answer.status_code == 200
        rules = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
        assert rules["default-src"] == "'none'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        if path == "/":
            assert (rules["script-src"], rules["style-src"], rules["connect-src"]) == ("'self'",) * 3
    assert client.get("/page/none.js").status_code == 404
    assert client.get("/page/..%2Fsettings.py").status_code == 404
    assert client.get("/page/page.html").status_code == 404


def test_the_folder_has_what_is_sent_and_no_more() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {PAGE, *FILES}


def test_nothing_comes_from_elsewhere_and_nothing_runs_inline() -> None:
    page = text_of(PAGE)
    assert not re.search(r"""\s(on\w+|style)=|<style|<script(?! type="module" src=)""", page)
    named = set(re.findall(r"""(?:href|src)="([^"#]+)""", page))
    for name in FILES:
        links = re.findall(r"""(?:from|import|url\()\s*["']?([^"'\s);]+\.\w+)""", text_of(name))
        named |= {f"page/{link.removeprefix('./')}" for link in links}
        without = text_of(name).replace("http://www.w3.org/2000/svg", "")  # a name, not a place
        assert "://" not in without
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", without)
    assert named == {f"page/{name}" for name in FILES}


def test_results_elsewhere_are_the_only_other_place() -> None:
    bucket: Any = SimpleNamespace(link=lambda name: f"https://bucket.example:9000/videos/{name}?signature=1")
    rules = dict(rule.split(" ", 1) for rule in content_security_policy(bucket).split("; "))
    assert rules["media-src"] == "'self' blob: https://bucket.example:9000"
    assert rules["script-src"] == "'self'"


@in_browser
def test_a_video_is_made_and_shown(page: Page) -> None:
    (video,) = page.made(prompt="a slow boat", policy="interval-2", steps=7, seed=3, sampler="euler")
    assert (video["request"]["seed"], video["request"]["sampler"]) == (3, "euler")
    assert until(lambda: len(page.bars()) == 7 and page.bars().count("computed")) == video["trace"]["computed"] == 4
    assert page.bars().count("cached") == 3
    assert page.text(".computed-calls") == "4 of 7"
    assert page.text("#title") == "a slow boat"
    until(lambda: [media["duration"] for media in page.media()] == [pytest.approx(4 / 24, abs=0.01)])


@in_browser
def test_every_input_has_a_name(page: Page) -> None:
    nameless = """return [...document.querySelectorAll("input, select, textarea, button")]
        .filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map((e) => e.id)"""
    until(lambda: page.seen("#order"))
    assert page.driver.execute_script(nameless) == []


@in_browser
@pytest.mark.slow
def test_nothing_plays_by_itself_for_who_wants_no_motion(page: Page) -> None:
    feature = {"name": "prefers-reduced-motion", "value": "reduce"}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        page.made(prompt="a boat", policy="never")
        until(lambda: page.seen("#play") and page.text("#play") == "Play")
        assert [media["paused"] for media in page.media()] == [True]
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    page.find("#play").click()
    until(lambda: page.media()[0]["time"] > 0)


@in_browser
@pytest.mark.slow
def test_two_policies_side_by_side(page: Page) -> None:
    videos = page.made(prompt="a slow boat", policy="never", policy_b="interval-3", wrappers_b="extrapolate", seed="")
    assert [video["request"]["policy"] for video in videos] == ["never", "interval-3+extrapolate"]
    assert videos[0]["request"]["seed"] == videos[1]["request"]["seed"]
    until(lambda: page.bars(1) == ["computed"] * 6 and len(page.bars(2)) == 6)
    assert page.bars(2).count("computed") == videos[1]["trace"]["computed"] < 6
    fast, slow = sorted(video["trace"]["wall_ms"] for video in videos)
    assert f"was {slow / fast:.2f} times as fast as" in until(lambda: page.text("#verdict"))
    until(lambda: page.seen("#play") and page.text("#play") == "Pause both")
    page.find("#play").click()
    until(lambda: all(media["paused"] for media in page.media()))
    seek = "const at = document.getElementById('seek'); at.value = 0.1; at.dispatchEvent(new Event('input'))"
    page.driver.execute_script(seek)
    assert [media["time"] for media in page.media()] == pytest.approx([0.1, 0.1], abs=1e-3)


@in_browser
@pytest.mark.slow
def test_a_second_guidance_scale_is_asked_for_where_there_are_two_experts(
    driver: Chrome, bundle: Path, tmp_path: Path
) -> None:
    write_model(tmp_path / "experts", **two_experts())
    made = service(Settings(tmp_path / "data"), bundle, tmp_path / "experts")
    with served(made) as client, watched(driver, client) as page:
        page.write(model="fake")
        assert not page.seen("#guidance_2")
        page.write(model="experts")
        assert page.find("#guidance_2").get_attribute("placeholder") == f"{GUIDANCES[1]:g}"
        (video,) = page.made(prompt="a boat", guidance_2="1.5")
        assert video["request"]["guidance_2"] == 1.5
        (video,) = page.made(model="fake", prompt="a boat")  # what is hidden now is not sent
        assert "guidance_2" not in video["request"]


@in_browser
@pytest.mark.slow
def test_what_is_refused_is_told_at_its_field(page: Page, client: httpx.Client) -> None:
    before = client.get("/v1/videos").json()["data"]
    page.write(prompt="a boat", size="large", steps="many")
    page.make()
    until(lambda: "integer" in page.text("#error-steps"))
    assert page.driver.switch_to.active_element.get_attribute("name") == "steps"
    page.write(steps="")
    page.make()
    until(lambda: "size 'large' is unknown" in page.text("#error-size"))
    size = page.find("#size")
    assert (size.get_attribute("aria-invalid"), size.get_attribute("aria-describedby")) == ("true", "error-size")
    assert page.text("#error-steps") == ""
    page.write(size="")
    page.find("#prompt").clear()
    page.make()
    until(lambda: page.text("#error-prompt"))
    assert client.get("/v1/videos").json()["data"] == before
    page.write(prompt="slow", steps=900, policy_b="interval-2", wrappers_b="+nonsense")
    page.make()
    until(lambda: "nonsense" in page.text("#error-policy_b"))
    until(lambda: client.get("/v1/videos").json()["data"][0]["status"] == "cancelled")


@in_browser
@pytest.mark.slow
def test_the_schedule_grows_until_it_is_cancelled(page: Page, client: httpx.Client) -> None:
    page.write(prompt="slow", policy="interval-2", steps=900)
    page.make()
    first = until(lambda: len(page.bars()))
    until(lambda: len(page.bars()) > first)
    assert page.seen("progress")
    page.find("#cancel").click()
    until(lambda: page.statuses() == ["cancelled"])
    (name,) = page.shown()
    assert client.get(f"/v1/videos/{name}").json()["status"] == "cancelled"
    assert not page.seen("#cancel")


@in_browser
@pytest.mark.slow
def test_why_a_job_failed_is_told(page: Page) -> None:
    page.write(prompt="break")
    page.make()
    until(lambda: page.statuses() == ["failed"])
    assert page.text(".failure") == "the fake encoder breaks at this prompt"


@in_browser
@pytest.mark.slow
def test_a_single_frame_is_a_picture(page: Page) -> None:
    page.made(prompt="a boat", duration=1, unit="frames", policy="never")
    width = until(lambda: page.driver.execute_script("return document.querySelector('.screen img')?.naturalWidth"))
    assert width == 5


@in_browser
@pytest.mark.slow
def test_videos_of_before_come_back(page: Page) -> None:
    (video,) = page.made(prompt="the one of before", policy="interval-2", seed=9, sampler="unipc")
    (other,) = page.made(prompt="another", policy="never", sampler="")
    assert "sampler" not in other["request"]
    rows = until(lambda: page.driver.find_elements(By.CSS_SELECTOR, "#videos li"))
    (row,) = [row for row in rows if "the one of before" in row.text]
    row.find_element(By.CSS_SELECTOR, ".beside").click()
    until(lambda: page.statuses() == ["completed"] * 2)
    assert page.shown()[1] == video["id"]
    until(lambda: len(page.bars(2)) == 6)
    assert page.bars(2).count("computed") == video["trace"]["computed"]
    page.open(f"#{video['id']}")
    until(lambda: page.statuses() == ["completed"] and len(page.bars()) == 6)
    page.find("#again").click()
    assert page.find("#seed").get_attribute("value") == "9"
    assert page.find("#policy").get_attribute("value") == "interval-2"
    assert page.find("#sampler").get_attribute("value") == "unipc"


@in_browser
@pytest.mark.slow
def test_a_narrow_screen_has_all_of_it(page: Page) -> None:
    resize(page.driver, 360, 740)
    try:
        page.made(prompt="a boat", policy="never", policy_b="interval-2")
        assert page.driver.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        resize(page.driver, 1240, 1000)


@in_browser
@pytest.mark.slow
def test_a_picture_is_sent_along(driver: Chrome, tmp_path: Path) -> None:
    write_model(tmp_path / "conditioned", conditioned=True)
    picture = tmp_path / "picture.png"
    write_video(picture, np.full((1, 16, 40, 3), 255, np.uint8), fps=1.0)
    made = service(Settings(tmp_path / "data"), tmp_path / "conditioned")
    with served(made) as client, watched(driver, client) as page:
        (without,) = page.made(prompt="a boat", seed=1, policy="never")
        page.find("#image").send_keys(str(picture))
        (begun,) = page.made()
        assert client.get(begun["content"]).content != client.get(without["content"]).content


@in_browser
@pytest.mark.slow
def test_a_key_is_asked_for_and_sent(driver: Chrome, bundle: Path, tmp_path: Path) -> None:
    key, line = new_key("somebody")
    (tmp_path / "keys").write_text(line)
    made = service(Settings(tmp_path / "data"), bundle)
    with served(made, KeyFile(tmp_path / "keys")) as client, watched(driver, client) as page:
        client.headers["Authorization"] = f"Bearer {key}"
        until(lambda: page.seen("#key"))
        assert not page.seen("#order")
        page.find("#key").send_keys("ada-wrong\n")
        until(lambda: page.text("#error-key") == "This API key is unknown to the server.")
        page.find("#key").send_keys(f"{key}\n")
        page.made(prompt="a boat", policy="never")
        until(lambda: [media["duration"] for media in page.media()] == [pytest.approx(4 / 24, abs=0.01)])
        assert page.find(".screen video").get_attribute("src").startswith("blob:")
        page.find("#forget").click()
        until(lambda: page.seen("#key"))
