"""Serve a tiny random ensemble under mixed traffic for a while, and see whether memory grows: `make soak`, ARGS="--minutes 30".

python tests/benchmarks/soak.py --minutes 30 --growth 0.1 --out build/soak

The traffic: images of several sizes and formats, bodies that are not images, uploads that stop half-way, bodies that say they
have 10 GB, /healthz, /version and /metrics. Half-way the champion changes. Each client sends one request after the other, with a
pause. Tables by minute and by kind of request are printed and written beside a picture (soak.md, soak.png). Exit code 1, with the
reasons, if a request did not get the answer that it must get, if the new champion did not answer in the end, or if memory grew by
more than the given share from the first half to the second.
"""

import argparse
import http.client
import io
import itertools
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.soak_report import Reading, Request, by_interval, by_kind, draw, faults  # noqa: E402  (needs the path above)

READ_TIMEOUT = 3  # of the server, so that a slow client soon gets its answer
PAUSES = {
    "image": 0.05,
    "not an image": 1.0,
    "half an upload": 1.0,
    "10 GB": 1.0,
    "/healthz": 0.5,
    "/version": 2.0,
    "/metrics": 2.0,
}
"""Seconds between two requests of a client, by kind of request."""

IMAGE_CLIENTS = 2
MIB = 2**20


def images() -> list[bytes]:
    """Files of images of several sizes and formats."""
    from tests.deconvnet.ensembles import random_image

    found = []
    for number, (kind, height, width) in enumerate(
        [("JPEG", 90, 120), ("PNG", 60, 200), ("JPEG", 480, 640), ("WEBP", 150, 150), ("PNG", 1, 1), ("GIF", 80, 100)]
    ):
        Image.fromarray(random_image(number, height, width)).save(file := io.BytesIO(), kind)
        found.append(file.getvalue())
    return found


def bad_bodies() -> list[bytes]:
    """Bodies that are not images: text, nothing, half a JPEG, and a small file of a hundred megapixels."""
    Image.new("1", (10_000, 10_000)).save(large := io.BytesIO(), "png")
    return [b"hello", b"", images()[0][:500], large.getvalue()]


def ask(port: int, method: str, path: str, body: bytes = b"", length: int | None = None) -> tuple[int, bytes]:
    """Send a request, with the header Content-Length `length` if given. Return the answer's status (0: none) and body."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as client:
        try:
            client.putrequest(method, path)
            client.putheader("Content-Length", str(len(body) if length is None else length))
            client.endheaders()
            client.send(body)
            reply = client.getresponse()
            return reply.status, reply.read()
        except (OSError, http.client.HTTPException):
            return 0, b""


def traffic(port: int) -> list[tuple[str, int, Iterator[Callable[[], tuple[int, bytes]]]]]:
    """The clients: for each the kind of its requests, the status that they must get, and the requests one after the other."""
    post = partial(ask, port, "POST")
    good = [partial(post, path, body) for body in images() for path in ("/", "/?overlay=1")]
    bad = [partial(post, "/", body) for body in bad_bodies()]
    clients = [("image", 200, itertools.cycle(good[number:] + good[:number])) for number in range(IMAGE_CLIENTS)]
    clients += [
        ("not an image", 400, itertools.cycle(bad)),
        ("half an upload", 408, itertools.repeat(partial(post, "/", bytes(50_000), 100_000))),
        ("10 GB", 413, itertools.repeat(partial(post, "/", bytes(50_000), 10**10))),
    ]
    return clients + [
        (path, 200, itertools.repeat(partial(ask, port, "GET", path))) for path in ("/healthz", "/version", "/metrics")
    ]


class Soak:
    """The clients and what they have seen. `begin` is when it began (time.monotonic)."""

    def __init__(self, port: int, pid: int) -> None:
        self.port, self.process = port, psutil.Process(pid)
        self.requests: list[Request] = []
        self.readings: list[Reading] = []
        self.begin, self.stop = time.monotonic(), threading.Event()

    def seconds(self) -> float:
        """Return how many seconds ago the soak began."""
        return time.monotonic() - self.begin

    def client(self, kind: str, wanted: int, requests: Iterator[Callable[[], tuple[int, bytes]]]) -> None:
        """Send one request after the other until the soak ends. A thread runs this."""
        for request in requests:
            at = self.seconds()
            status, _ = request()
            self.requests.append(Request(at, kind, self.seconds() - at, status, wanted))
            if self.stop.wait(PAUSES[kind]):
                return

    def read(self) -> None:
        """Note what the server's processes use."""
        memory, files = {"serve.py": 0.0, "replicas": 0.0, "Ray": 0.0}, {"serve.py": 0, "replicas": 0}
        for process in (self.process, *self.process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                name = " ".join(process.cmdline()[:1])
                group = "serve.py" if process == self.process else "replicas" if "ServeReplica" in name else "Ray"
                memory[group] += process.memory_info().rss / MIB
                if group in files:
                    files[group] += process.num_fds()
        self.readings.append(Reading(self.seconds(), memory, files))

    def run(self, seconds: float, half_way: Callable[[], None]) -> float:
        """Send traffic for some seconds, and call a function half-way. Return when that was, in seconds after the begin."""
        threads = [threading.Thread(target=self.client, args=client, daemon=True) for client in traffic(self.port)]
        self.begin, changed = time.monotonic(), 0.0
        for thread in threads:
            thread.start()
        while self.seconds() < seconds:
            self.read()
            if not changed and self.seconds() > seconds / 2:
                changed = self.seconds()
                half_way()
            time.sleep(min(5.0, seconds / 20))
        self.stop.set()
        for thread in threads:
            thread.join(150)
        return changed


def main(argv: list[str] | None = None) -> int:
    """Run a soak. Exit code 1 if the server failed it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument(
        "--growth", type=float, default=0.1, help="share by which memory may grow from the first half to the second"
    )
    parser.add_argument("--out", type=Path, default=Path("build/soak"))
    options = parser.parse_args(argv)
    seconds = 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    with tempfile.TemporaryDirectory(prefix="deconvnet-soak-") as folder:
        soak, changed, version = serve_and_soak(Path(folder), seconds)
    found = faults(soak.requests, soak.readings, list(PAUSES), seconds, options.growth)
    if version != "2":
        found.append(f"after the champion changed to version 2, /version says {version or 'nothing'}")
    lines = [*by_interval(soak.requests, soak.readings, seconds, min(60.0, seconds / 4)), "", *by_kind(soak.requests)]
    (options.out / "soak.md").write_text("\n".join(lines) + "\n")
    draw(soak.requests, soak.readings, changed, options.out / "soak.png")
    print("\n".join(lines), *(f"FAILED: {each}" for each in found), f"{options.out}/soak.md, soak.png", sep="\n")
    return 1 if found else 0


def serve_and_soak(folder: Path, seconds: float) -> tuple[Soak, float, str]:
    """Serve one of two random ensembles from an empty folder, send traffic, and change to the other one.

    Returns:
        The soak, when the champion was changed in seconds after the begin, and the version that the server names in the end.
    """
    from deconvnet.tracking.mlflow_runs import MlflowTracker
    from infra.deploy.local.process import free_port
    from tests.deconvnet.ensembles import register_ensemble, save_networks
    from tests.workflows.serving import started, wait_for
    from workflows import promote, serve

    (workspace := folder / "work").joinpath("mlflow").mkdir(parents=True)
    tracker = MlflowTracker(f"sqlite:///{workspace}/mlflow/mlflow.db", "soak")
    for seed in (1, 5):
        save_networks(folder, seed=seed)
        register_ensemble(tracker, folder)
    alias = ["--model", "shapes", "--workspace", str(workspace)]
    promote.main(["--to", "1", *alias])
    port, log = free_port(), folder / "log"
    command = [sys.executable, serve.__file__, "--workspace", str(workspace), "--model", "models:/shapes@champion"]
    command += ["--port", str(port), "--poll_seconds", "1", "--read_timeout", str(READ_TIMEOUT), "--cluster.num_cpus", "2"]
    with started(log, *command) as process:
        wait_for(process, log, f"http://127.0.0.1:{port}/healthz")
        for body in images():  # so that what is loaded and compiled for the first images is not taken for growth
            ask(port, "POST", "/", body)
        soak = Soak(port, process.pid)
        changed = soak.run(seconds, lambda: promote.main(["--to", "2", *alias]))
        answer = ask(port, "GET", "/version")[1]
        return soak, changed, str(json.loads(answer)["version"]) if answer else ""


if __name__ == "__main__":
    sys.exit(main())
