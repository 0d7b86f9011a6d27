"""A real browser for tests: headless Chromium, driven through chromedriver by the W3C WebDriver protocol (HTTP and JSON).

It needs Debian's packages `chromium` and `chromium-driver`; tests are skipped if `missing()` returns a reason.
"""

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra.deploy.local.process import free_port
from tests.waiting import wait_until

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--hide-scrollbars",
    *(f"--disable-{name}" for name in ("gpu", "dev-shm-usage", "quic", "background-networking", "component-update", "sync")),
)
_START_SECONDS = 60.0
_WAIT_SECONDS = 60.0


def missing() -> str | None:
    """Why there is no browser to test with, or None if there is one."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed: apt-get install chromium chromium-driver" if absent else None


class Browser:
    """A browser window. Methods raise RuntimeError with chromedriver's message if it refuses a call."""

    def __init__(self, address: str, session: str) -> None:
        self._address = f"{address}/session/{session}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        """Call chromedriver for this window."""
        return _request(method, f"{self._address}/{path}", body)

    def open(self, url: str) -> None:
        """Load a page and wait until it has loaded. It is loaded anew even if only the part after # differs from that of now."""
        self._call("POST", "url", {"url": "about:blank"})
        self._call("POST", "url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript, the body of a function that gets `arguments`, and return its result."""
        return self._call("POST", "execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments: Any, seconds: float = _WAIT_SECONDS) -> Any:
        """Run a script again and again until its result is truthy, and return that. Raises TimeoutError with the page's text."""
        end = time.monotonic() + seconds
        while not (found := self.run(script, *arguments)):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} stayed {found!r}; the page's text:\n{self.text()[:3000]}")
            time.sleep(0.25)
        return found

    def text(self) -> str:
        """The page's visible text."""
        return str(self.run("return document.body.innerText"))

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page in pixels, without the window's frame."""
        self._call("POST", "window/rect", {"width": width, "height": height})
        inner = self.run("return [innerWidth, innerHeight]")
        self._call("POST", "window/rect", {"width": 2 * width - inner[0], "height": 2 * height - inner[1]})

    def screenshot(self, path: Path) -> None:
        """Save a PNG of what the window shows."""
        path.write_bytes(base64.b64decode(self._call("GET", "screenshot")))

    def log(self, kind: str) -> list[dict[str, Any]]:
        """New entries of a log: "browser" (console messages with their level) or "performance" (DevTools events)."""
        return list(self._call("POST", "se/log", {"type": kind}))

    def console(self, level: str = "SEVERE") -> list[str]:
        """New console messages of a level."""
        return [entry["message"] for entry in self.log("browser") if entry["level"] == level]

    def requests(self) -> list[str]:
        """URLs that were requested since the last call, including the pages themselves but no data: URLs."""
        events = (json.loads(entry["message"])["message"] for entry in self.log("performance"))
        requested = (event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent")
        return [url for url in requested if not url.startswith(("data:", "about:"))]


@contextmanager
def browser(width: int = 1200, height: int = 900) -> Iterator[Browser]:
    """Run a Chromium with an empty profile while the block runs."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with TemporaryDirectory(prefix="deconvnet-chromium-", ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: _is_ready(address), _START_SECONDS, description="chromedriver is ready")
            wanted = {
                "goog:chromeOptions": {"args": [*FLAGS, f"--user-data-dir={profile}", "about:blank"]},
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            session = _request("POST", f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            opened = Browser(address, session)
            try:
                opened.resize(width, height)
                opened.requests()  # forget those of the empty page at the start
                yield opened
            finally:
                with suppress(RuntimeError, OSError):
                    _request("DELETE", f"{address}/session/{session}")
        finally:
            driver.terminate()
            driver.wait(20)


def _request(method: str, url: str, body: Any = None) -> Any:
    """Call chromedriver and return the answer's value. Raises RuntimeError with its message if it refuses."""
    data = None if method != "POST" else json.dumps(body or {}).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(json.load(error)["value"]["message"]) from None


def _is_ready(address: str) -> bool:
    """Return whether chromedriver accepts calls."""
    with suppress(OSError):
        return bool(_request("GET", f"{address}/status")["ready"])
    return False
