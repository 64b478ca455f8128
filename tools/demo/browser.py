"""Chromium without a screen, driven through Selenium, for the screenshot and for the tests of the server's page.

Needs Debian's packages: ``apt-get install --no-install-recommends chromium chromium-driver``.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
OWN = ("blob", "data", "about", "chrome")  # schemes of what no server sends


def missing() -> str | None:
    """Return why there is no browser; None where there is one."""
    absent = [str(path) for path in (CHROMIUM, DRIVER) if not path.exists()]
    return f"{' and '.join(absent)} missing: install Debian's chromium and chromium-driver" if absent else None


@contextmanager
def browser(width: int = 1240, height: int = 1000, flags: Sequence[str] = ()) -> Iterator[webdriver.Chrome]:
    """Yield a browser with a profile of its own, which is deleted at the end.

    Args:
        width, height: size of the page in pixels.
        flags: further options of Chromium's command line.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, *flags, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
        try:
            resize(driver, width, height)
            yield driver
        finally:
            driver.quit()


def resize(driver: webdriver.Chrome, width: int, height: int) -> None:
    """Set the size of the page, whatever the window around it takes."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def console(driver: webdriver.Chrome) -> list[str]:
    """Return the browser's complaints since the last call."""
    log: list[dict[str, Any]] = driver.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in log]


def servers(driver: webdriver.Chrome) -> set[str]:
    """Return the hosts, with their ports, that the page has asked for anything since the last call."""
    log: list[dict[str, Any]] = driver.get_log("performance")  # type: ignore[no-untyped-call]
    found = set()
    for entry in log:
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = urlsplit(message["params"]["request"]["url"])
            if url.scheme not in OWN:
                found.add(url.netloc)
    return found
