"""Headless Chromium for tests that look at what is drawn, over the WebDriver protocol."""

from __future__ import annotations

import base64
import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium with chromedriver (Debian: chromium, chromium-driver)"
)
OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]


class Browser:
    """One window."""

    def __init__(self, driver: str):
        capabilities = {"goog:chromeOptions": {"binary": CHROMIUM, "args": OPTIONS}}
        self.http = httpx.Client(base_url=driver, timeout=120)
        session = self.http.post("/session", json={"capabilities": {"alwaysMatch": capabilities}}).json()["value"]
        self.session = f"/session/{session['sessionId']}"

    def _send(self, command: str, **values: Any) -> Any:
        answer = self.http.post(f"{self.session}/{command}", json=values).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(f"{answer['error']}: {answer['message']}")
        return answer

    def open(self, place: Path | str, width: int = 1200, height: int = 900) -> None:
        """A file or an address, once it is loaded; `width` is that of the page (a window is never as narrow)."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._send("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)
        self._send("url", url=place.resolve().as_uri() if isinstance(place, Path) else place)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that the body of a JavaScript function returns."""
        return self._send("execute/sync", script=script, args=list(arguments))

    def wait(self, script: str, seconds: float = 60) -> Any:
        """The first true value of `script`."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"not within {seconds} s: {script}"
            time.sleep(0.2)
        return value

    def picture(self, path: Path) -> None:
        """A screenshot of the window."""
        answer = self.http.get(f"{self.session}/screenshot").json()["value"]
        path.write_bytes(base64.b64decode(answer))


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/status")
                break
            time.sleep(0.1)
        browser = Browser(f"http://127.0.0.1:{port}")
        yield browser
        browser.http.delete(browser.session)
    finally:
        driver.terminate()
        driver.wait()
