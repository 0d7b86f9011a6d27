"""A real browser for tests: headless Chromium, driven by its own chromedriver over W3C WebDriver (plain HTTP and JSON).

Debian's packages `chromium` and `chromium-driver` are it; where they are absent, `missing()` says so and tests are skipped.
"""

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra.deploy.local.servers import free_port

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
_START_SECONDS = 60.0
_WAIT_SECONDS = 60.0


def missing() -> str | None:
    """Why there is no browser to test with; None where there is one."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed: apt-get install chromium chromium-driver" if absent else None


class Browser:
    """A session of one window. Its methods raise RuntimeError with what the driver says."""

    def __init__(self, address: str, session: str) -> None:
        self._address = f"{address}/session/{session}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        return _ask(method, f"{self._address}/{path}", body)

    def open(self, url: str) -> None:
        """Go there, and wait until the page has loaded: anew even where only what follows # differs from the page that is open."""
        self._call("POST", "url", {"url": "about:blank"})
        self._call("POST", "url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a piece of JavaScript (the body of a function of `arguments`) returns."""
        return self._call("POST", "execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments: Any, seconds: float = _WAIT_SECONDS) -> Any:
        """What the script returns, once that is true in JavaScript's sense. Raises TimeoutError with the page's text."""
        end = time.monotonic() + seconds
        while not (found := self.run(script, *arguments)):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} stayed {found!r}; the page says:\n{self.text()[:3000]}")
            time.sleep(0.25)
        return found

    def text(self) -> str:
        """What a reader sees of the page."""
        return str(self.run("return document.body.innerText"))

    def size(self, width: int, height: int) -> None:
        """Make the page (not the window with its frame) so large, px."""
        self._call("POST", "window/rect", {"width": width, "height": height})
        inner = self.run("return [innerWidth, innerHeight]")
        self._call("POST", "window/rect", {"width": 2 * width - inner[0], "height": 2 * height - inner[1]})

    def screenshot(self, path: Path) -> None:
        """PNG of what the window shows."""
        path.write_bytes(base64.b64decode(self._call("GET", "screenshot")))

    def log(self, kind: str) -> list[dict[str, Any]]:
        """New entries of the log `browser` (the console: level, message) or `performance` (DevTools' events)."""
        return list(self._call("POST", "se/log", {"type": kind}))

    def console(self, level: str = "SEVERE") -> list[str]:
        """New messages of the console of that level."""
        return [entry["message"] for entry in self.log("browser") if entry["level"] == level]

    def requests(self) -> list[str]:
        """The addresses asked for since this was last called, pages included; data: ones are none."""
        events = (json.loads(entry["message"])["message"] for entry in self.log("performance"))
        asked = (event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent")
        return [url for url in asked if not url.startswith(("data:", "about:"))]


@contextmanager
def browser(width: int = 1200, height: int = 900) -> Iterator[Browser]:
    """A Chromium of its own, with an empty profile, for the time of a block."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with TemporaryDirectory(prefix="deconvnet-chromium-", ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _until(lambda: _ask("GET", f"{address}/status")["ready"])
            wanted = {
                "goog:chromeOptions": {"args": [*FLAGS, f"--user-data-dir={profile}", "about:blank"]},
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            session = _ask("POST", f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            opened = Browser(address, session)
            try:
                opened.size(width, height)
                opened.requests()  # of the empty page that it starts with
                yield opened
            finally:
                with suppress(RuntimeError, OSError):
                    _ask("DELETE", f"{address}/session/{session}")
        finally:
            driver.terminate()
            driver.wait(20)


def _ask(method: str, url: str, body: Any = None) -> Any:
    data = None if method != "POST" else json.dumps(body or {}).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(json.load(error)["value"]["message"]) from None


def _until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        with suppress(OSError):
            if ready():
                return
        time.sleep(0.1)
    raise RuntimeError("chromedriver did not start")
