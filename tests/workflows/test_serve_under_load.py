"""serve.py by its command, with many clients: the model changes under them, and some of them are slow, huge or malicious."""

import http.client
import io
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from PIL import Image

from deconvnet.tracking.mlflow_runs import MlflowTracker
from infra.deploy.local.process import free_port
from tests.conftest import ROOT
from tests.deconvnet.ensembles import register_ensemble, save_networks
from tests.waiting import wait_until
from tests.workflows.bad_clients import MIB, send_half
from tests.workflows.serving import PHOTO, started, wait_for
from workflows import promote, serve

CLIENTS = 50
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Server:
    """A server that follows shapes@champion, version 1 of two. `log` has its output."""

    port: int
    pid: int
    workspace: Path
    log: Path

    def get(self, path: str) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as client:
            client.request("GET", path)
            reply = client.getresponse()
            return reply.status, reply.read()

    def version(self) -> str:
        return str(json.loads(self.get("/version")[1])["version"])

    def post(self, body: bytes) -> tuple[int, str, bytes]:
        """Status, the header X-Model, and the body."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)) as client:
            client.request("POST", "/", body)
            reply = client.getresponse()
            return reply.status, reply.headers["X-Model"], reply.read()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], str]) -> Iterator[Server]:
    pytest.importorskip("ray.serve", reason="the extra `serve` is not installed", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("load")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = MlflowTracker(make_store(folder / "work"), "test")
        for seed in (1, 5):
            save_networks(folder, seed=seed)
            register_ensemble(tracker, folder)
        promote.main(["--to", "1", "--model", "shapes", "--workspace", str(folder / "work")])
        port, log = free_port(), folder / "log"
        options = ["--workspace", str(folder / "work"), "--model", "models:/shapes@champion", "--port", str(port)]
        more = ["--poll_seconds", "1", "--cluster.num_cpus", "2"]
        with started(log, sys.executable, serve.__file__, *options, *more) as process:
            wait_for(process, log, f"http://127.0.0.1:{port}/healthz")
            yield Server(port, process.pid, folder / "work", log)


@dataclass
class Clients:
    """Clients that send images one after the other. An answer is when it was asked for, its status and the header X-Model."""

    server: Server
    number: int
    answers: list[list[tuple[float, int, str]]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Clients":
        self.answers = [[] for _ in range(self.number)]
        self.threads = [threading.Thread(target=self.run, args=(mine,)) for mine in self.answers]
        for thread in self.threads:
            thread.start()
        return self

    def run(self, mine: list[tuple[float, int, str]]) -> None:
        while not self.stop.is_set():
            asked = time.monotonic()
            try:
                mine.append((asked, *self.server.post(PHOTO)[:2]))
            except OSError as error:
                mine.append((asked, 0, repr(error)))

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(300)

    def all_answered_after(self, moment: float) -> None:
        """Wait until each client has an answer to a request that it sent after a moment."""
        wait_until(lambda: all(mine and mine[-1][0] > moment for mine in self.answers))

    def models(self, begin: float, end: float) -> set[tuple[int, str]]:
        """Statuses and versions of the answers to requests that were sent in an interval."""
        return {(status, model) for mine in self.answers for asked, status, model in mine if begin < asked < end}


def test_fifty_clients_see_no_error_and_no_old_answer_while_the_champion_changes_and_is_taken_back(server: Server) -> None:
    arguments = ["--model", "shapes", "--workspace", str(server.workspace)]
    with pytest.MonkeyPatch.context() as patch, Clients(server, CLIENTS) as clients:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        clients.all_answered_after(0)
        moved = time.monotonic()
        promote.main(["--to", "2", *arguments])
        announced = wait_until(lambda: server.version() == "2")
        clients.all_answered_after(announced)
        back = time.monotonic()
        promote.main(["--back", *arguments])
        announced_back = wait_until(lambda: server.version() == "1")
        clients.all_answered_after(announced_back)
    assert clients.models(0, moved) == {(200, "shapes version 1")}
    assert clients.models(moved, announced) <= {(200, "shapes version 1"), (200, "shapes version 2")}
    assert clients.models(announced, back) == {(200, "shapes version 2")}
    assert clients.models(back, announced_back) <= {(200, "shapes version 1"), (200, "shapes version 2")}
    assert clients.models(announced_back, time.monotonic()) == {(200, "shapes version 1")}
    assert "serving shapes version 2 in place of version 1" in server.log.read_text()
    print(f"\n{sum(map(len, clients.answers))} answers; announced after {announced - moved:.1f} s, {announced_back - back:.1f} s")


def test_fifty_slow_and_fifty_huge_clients_stop_neither_health_checks_nor_others_and_memory_is_bounded(server: Server) -> None:
    process, latencies = psutil.Process(server.pid), []
    before = most = process.memory_info().rss
    command = [sys.executable, "-m", "tests.workflows.bad_clients", str(server.port), str(CLIENTS)]
    with Clients(server, 2) as honest:
        honest.all_answered_after(0)
        begin = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as bad:
            assert bad.stdout and bad.stdin
            while not select.select([bad.stdout], [], [], 0.02)[0]:
                asked = time.monotonic()
                assert server.get("/healthz")[0] == 200
                latencies.append(time.monotonic() - asked)
                most = max(most, process.memory_info().rss)
            sent = int(bad.stdout.readline())
            honest.all_answered_after(begin)
            bad.stdin.close()
    grown = (most - before) / MIB
    print(f"\n/healthz {max(latencies):.2f} s at most in {len(latencies)}; {grown:.0f} MiB more; one has sent {sent} MiB at most")
    assert honest.models(0, time.monotonic()) == {(200, "shapes version 1")}
    assert len(latencies) > 5 and grown < 450 and sent < 100


def test_a_small_file_of_a_hundred_megapixels_is_refused_before_it_is_decoded(server: Server) -> None:
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "png")
    status, _, body = server.post(file.getvalue())
    assert status == 400 and "larger than 25,000,000 pixels" in json.loads(body)["error"]


def test_half_sent_uploads_do_not_keep_the_server_from_stopping(server: Server) -> None:
    assert os.getpgid(server.pid) == server.pid  # the fixture stops it; this is the last test of the module
    stop = threading.Event()
    client = threading.Thread(target=send_half, args=(server.port, stop))
    client.start()
    wait_until(lambda: b"deconvnet_upload_bytes 50000.0" in server.get("/metrics")[1])
    psutil.Process(server.pid).send_signal(2)
    wait_until(lambda: not psutil.pid_exists(server.pid) or psutil.Process(server.pid).status() == "zombie", 100)
    stop.set()
    client.join(60)
    assert server.log.read_text().rstrip().endswith("stopped")
