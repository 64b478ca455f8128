"""Make the README's picture of the server's page: full compute beside AdaCache on the demo model, in Chromium.

python -m tools.demo.screenshot [--bundle FOLDER] [--out FILE.png]
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from tools.demo.browser import browser, missing, resize

SERVE = "import sys; from adacache_serve.commands.serve import main; sys.exit(main())"
PROMPT, SEED, POLICIES = "a red circle moves left fast", 42, ("never", "adacache-fast")
WIDTH = 1200
SECONDS = 120  # for anything that is waited for
AT = 0.15  # seconds into the videos
STOP = """
document.getElementById("play").click();
const seek = document.getElementById("seek");
seek.value = arguments[0];
seek.dispatchEvent(new Event("input"));
document.activeElement.blur();
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("out/demo.adacache"), help="(default: that of make demo)")
    parser.add_argument("--out", type=Path, default=Path("tools/results/serve.png"))
    options = parser.parse_args()
    if reason := missing():
        sys.exit(f"screenshot: {reason}")
    with serving(options.bundle) as address, browser(WIDTH) as driver:
        driver.get(address)
        compare(driver)
        picture(driver, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


@contextmanager
def serving(bundle: Path) -> Iterator[str]:
    """Yield the address of a server of this bundle with an empty list of videos."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = [sys.executable, "-c", SERVE, bundle, "--port", "0", "--data", Path(folder, "data")]
        with log.open("wb") as file:
            server = subprocess.Popen(list(map(str, command)), stderr=file)
        try:
            yield _address(server, log)
        finally:
            server.terminate()
            server.wait()


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the server has made its warm-up video."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        told = log.read_text(encoding="utf-8")
        if (found := re.search(r"http://\S+", told)) and "worker is ready" in told:
            return found.group()
        time.sleep(0.2)
    sys.exit(f"screenshot: the server did not begin:\n{log.read_text(encoding='utf-8')}")


def compare(driver: Chrome) -> None:
    """Make both videos on the page, and stop them where their difference can be seen."""
    wait = WebDriverWait(driver, SECONDS)
    wait.until(lambda _: driver.find_element(By.ID, "order").is_displayed())
    driver.find_element(By.ID, "prompt").send_keys(PROMPT)
    for field, policy in zip(("policy", "policy-b"), POLICIES, strict=True):
        Select(driver.find_element(By.ID, field)).select_by_value(policy)
    driver.find_element(By.TAG_NAME, "summary").click()
    driver.find_element(By.ID, "seed").send_keys(str(SEED))
    driver.find_element(By.TAG_NAME, "summary").click()
    driver.find_element(By.ID, "make").click()
    wait.until(lambda _: driver.find_element(By.ID, "verdict").text and driver.find_element(By.ID, "play").text)
    driver.execute_script(STOP, AT)
    print(driver.find_element(By.ID, "verdict").text)


def picture(driver: Chrome, path: Path) -> None:
    """Write a picture of the whole page."""
    resize(driver, WIDTH, int(driver.execute_script("return document.body.scrollHeight")))
    time.sleep(1)  # the plots are drawn anew
    path.write_bytes(driver.get_screenshot_as_png())


if __name__ == "__main__":
    main()
