"""A real browser for tests of pages, and a service for it to look at."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ["AXE", "axe_violations", "chromium", "complaints_of", "serving", "show_as", "wait_until"]

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
AXE = Path(__file__).parent / "axe" / "axe.min.js"


@contextmanager
def chromium(downloads: Path | None = None) -> Iterator[Any]:
    """A browser with a fake camera; its logs hold its console and all requests."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    fake_camera = "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *fake_camera):
        options.add_argument(word)
    if downloads is not None:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def serving(*words: str | Path) -> Iterator[str]:
    """The address of `twinlens serve` with some options, in a process of its own."""
    command = [sys.executable, "-m", "twinlens", "serve", "--port", "0", *map(str, words)]
    # A pipe that nobody reads would stop the server once it is full.
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            log.seek(0)
            assert line.startswith("serving at "), line or log.read()
            yield line.split()[-1]
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_until(browser: Any, condition: Callable[[Any], Any], seconds: float = 60) -> Any:
    """The result of a condition once it is true; errors of the driver count as not yet.

    Chromium has several errors for an element of a page that is being left.
    """
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, 0.05, [WebDriverException]).until(condition)


def complaints_of(browser: Any, address: str) -> list[str]:
    """Lines of the browser's console, and requests to other addresses."""
    lines = [entry["message"] for entry in browser.get_log("browser")]
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent":
            url = event["params"]["request"]["url"]
            if not url.startswith((address, "blob:" + address, "data:")):
                lines.append(f"request to {url}")
    return lines


def axe_violations(browser: Any) -> list[str]:
    """Violations of accessibility on the page, as axe-core finds them."""
    # The protocol's evaluation, unlike a script of the page, is not subject to its policy.
    browser.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text(encoding="utf-8")})
    found = browser.execute_async_script("axe.run(document, {}).then(arguments[0])")
    return [
        f"{one['id']}: {one['help']}: {node['html']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def show_as(browser: Any, *, dark: bool = False, width: int = 1280, height: int = 900) -> None:
    """Show pages on a screen of some width, and in the dark."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    scheme = "dark" if dark else "light"
    features: Sequence[dict[str, str]] = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
