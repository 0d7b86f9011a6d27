"""Both servers by their commands, as in the README: Ray Serve behind serve.py, and `mlflow models serve`; and user errors."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NoReturn, cast

import numpy as np
import pytest
from PIL import Image

from deconvnet.inference.saved_ensemble import SavedEnsemble
from deconvnet.serving import server
from deconvnet.serving.limits import Limits
from deconvnet.serving.ray_serve import run_replicas
from deconvnet.serving.replica import ServedModel
from deconvnet.tracking import registry
from deconvnet.tracking.mlflow_runs import MlflowTracker
from infra.deploy.local.process import free_port
from infra.errors import UserError
from infra.settings import ClusterSettings
from tests.conftest import ROOT
from tests.deconvnet.ensembles import register_ensemble, save_networks
from tests.workflows.serving import PHOTO, started, wait_for
from workflows import serve

CURLS = [
    "curl --data-binary @photo.jpg http://127.0.0.1:8000 -o mask.png",
    "curl --data-binary @photo.jpg 'http://127.0.0.1:8000?overlay=1' -o overlay.jpg -D -",
]
SERVE_MLFLOW = "mlflow models serve -m models:/edeconvnet@challenger --env-manager local --port 5000"
ASK_MLFLOW = """\
(printf '{"dataframe_split": {"columns": ["image"], "data": [["'; base64 < photo.jpg | tr -d '\\n'; printf '"]]}}') |
  curl -s -w '%{stderr}%{time_total} s\\n' -H 'Content-Type: application/json' --data-binary @- \
http://127.0.0.1:5000/invocations |
  python3 -c 'import base64, json, sys; open("mask.png", "wb").write(base64.b64decode(\
json.load(sys.stdin)["predictions"][0]["mask"]))'
"""


@pytest.fixture
def ray_serve() -> ModuleType:
    """Ray Serve, without which the command says only that it is not installed."""
    return cast(ModuleType, pytest.importorskip("ray.serve", reason="the extra `serve` is not installed", exc_type=ImportError))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, make_store: Callable[[Path], str]) -> Path:
    """A workspace whose MLflow has a tiny ensemble, shapes@challenger."""
    folder = tmp_path_factory.mktemp("serve")
    save_networks(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        register_ensemble(MlflowTracker(make_store(folder / "work"), "test"), folder)
    return folder / "work"


@pytest.fixture
def expected(workspace: Path, tmp_path: Path) -> np.ndarray:
    """The mask of PHOTO by the registered ensemble."""
    store = f"sqlite:///{workspace}/mlflow/mlflow.db"
    registry.fetch(registry.find("models:/shapes@challenger", store, "model"), store, str(tmp_path / "ensemble"))
    mask = SavedEnsemble(str(tmp_path / "ensemble")).predict(PHOTO).mask
    assert len(np.unique(mask)) > 1, "a mask of one class would prove little"
    return mask


def shell(text: str, folder: Path) -> str:
    done = subprocess.run(["bash", "-e", "-c", text], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def labels(file: Path) -> np.ndarray:
    image = Image.open(file)
    assert image.format == "PNG" and image.mode == "P"
    return np.asarray(image)


def refused(url: str, data: bytes) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(url, data, timeout=60)
    return caught.value.code, json.loads(caught.value.read())["error"]


@pytest.mark.ray
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_ray_serve_replies_to_the_readmes_curl_commands_and_stops_at_sigterm(
    ray_serve: ModuleType, workspace: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "log"
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    command = [
        sys.executable,
        serve.__file__,
        "--workspace",
        str(workspace),
        "--model",
        "models:/shapes@challenger",
        "--port",
        str(port),
        "--max_megabytes",
        "1",
        "--cluster.num_cpus",
        "2",
    ]
    with started(log, *command) as process:
        url = f"http://127.0.0.1:{port}"
        wait_for(process, log, f"{url}/healthz")
        plain, drawn = (line.replace("http://127.0.0.1:8000", url) for line in CURLS)
        shell(plain, tmp_path)
        np.testing.assert_array_equal(labels(tmp_path / "mask.png"), expected)
        headers = shell(drawn, tmp_path).lower()
        assert (
            "x-classes: background" in headers
            and "server-timing: wait;dur=" in headers
            and "x-model: shapes version 1" in headers
        )
        assert Image.open(tmp_path / "overlay.jpg").format == "JPEG"
        assert refused(url, b"text") == (400, "the image can't be used: not an image")
        assert refused(url, bytes(2**20 + 1)) == (413, "the body is larger than 1 MiB: send a smaller image")
        page = urllib.request.urlopen(url, timeout=60).read().decode()
        assert "shapes version 1" in page and "circle" in page
        with pytest.raises(ConnectionRefusedError):  # it listens at 127.0.0.1 alone
            socket.create_connection(("127.0.0.2", port), 5).close()
        deadline = time.monotonic() + 60
        while "Ctrl-C stops it" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 0
    said = log.read_text()
    assert "one image of 500×375 px takes" in said and said.rstrip().endswith("stopped"), said
    assert "Traceback" not in said and "INFO" not in said, said


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_mlflow_models_serve_replies_to_the_readmes_curl_command(workspace: Path, expected: np.ndarray, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{workspace}/mlflow/mlflow.db",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # what `. .venv/bin/activate` does
    }
    command = SERVE_MLFLOW.replace("edeconvnet", "shapes").replace("5000", str(port)).split()
    with started(log, *command, **environment) as process:
        wait_for(process, log, f"http://127.0.0.1:{port}/ping")
        shell(ASK_MLFLOW.replace("5000", str(port)), tmp_path)
        np.testing.assert_array_equal(labels(tmp_path / "mask.png"), expected)
        body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [["bm8gcGhvdG8="]]}}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
        answer = json.loads(urllib.request.urlopen(request, timeout=60).read())
        assert answer == {"predictions": [{"mask": None, "error": "not an image"}]}


def test_the_commands_that_are_tested_here_are_documented() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), Path(serve.__file__)))
    for command in CURLS:
        assert command.removesuffix(" -D -") in text
    assert "mlflow models serve" in text


@pytest.mark.ray
def test_more_replicas_than_there_is_room_for_are_refused(ray_session: None) -> None:
    served = ServedModel(registry.Version("shapes", "1", "id", "nowhere"), "store", replicas=2, cpus=2)
    with pytest.raises(UserError, match="replicas 2 is too many: this Ray cluster has room for 1 with 2 CPUs each"):
        server.check_room(served, ClusterSettings(), {})
    server.check_room(ServedModel(served.version, "store", replicas=2, cpus=1), ClusterSettings(), {})


@pytest.mark.slow
@pytest.mark.ray
def test_a_model_whose_files_are_missing_is_a_user_error_and_nothing_stays_served(
    ray_serve: ModuleType, ray_session: None, tmp_path: Path
) -> None:
    gone = registry.Version("shapes", "7", "id", str(tmp_path / "gone"))
    said = r"shapes version 7 can't be served: models:/shapes/7 can't be fetched"
    with pytest.raises(UserError, match=said), run_replicas(ServedModel(gone, f"sqlite:///{tmp_path}/m.db")):
        pytest.fail("it started")
    assert not ray_serve.status().applications


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another server listens at, in a way that lets Ray Serve share it."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_or_host_that_is_not_free_is_a_user_error(ray_serve: ModuleType, taken: int) -> None:
    with pytest.raises(UserError, match=f"can't listen at 127.0.0.1:{taken}: .*another --port"):
        serve.main(["--workspace", "nowhere", "--port", str(taken)])
    with pytest.raises(UserError, match=r"can't listen at 203\.0\.113\.9"):
        serve.main(["--workspace", "nowhere", "--host", "203.0.113.9"])
    with pytest.raises(UserError, match=r"no\.such\.host\.invalid is not an address"):
        serve.main(["--workspace", "nowhere", "--host", "no.such.host.invalid"])
    server.check_port_free("127.0.0.1", free_port())


def test_a_model_that_does_not_exist_is_a_user_error(
    ray_serve: ModuleType, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    port = ["--port", str(free_port())]
    with pytest.raises(UserError, match="where is the model registered"):
        serve.main(port)
    with pytest.raises(UserError, match="there is no MLflow store"):
        serve.main([*port, "--workspace", str(tmp_path)])
    with pytest.raises(UserError, match=r"model models:/edeconvnet@champion is not in .*, which has shapes"):
        serve.main([*port, "--workspace", str(workspace)])


def test_a_challenger_that_can_never_be_tried_out_is_refused(
    ray_serve: ModuleType, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(server, "serve", lambda *_: pytest.fail("it is served"))
    given = ["--port", str(free_port()), "--workspace", str(workspace), "--model", "models:/shapes@challenger"]
    for more, said in {
        ("--challenger", "models:/typo/3", "--canary", "0.1"): r"challenger models:/typo/3 is not in .*, which has shapes",
        ("--shadow",): "model models:/shapes@challenger would be its own challenger",
    }.items():
        with pytest.raises(UserError, match=said):
            serve.main([*given, *more])


def test_a_challenger_with_which_nothing_is_done_is_said_to_have_no_effect(
    ray_serve: ModuleType, workspace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be left in a settings file when its trial has ended, and the server must start again."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    served: list[tuple[object, ...]] = []
    monkeypatch.setattr(server, "serve", lambda *given: served.append(given))
    given = ["--port", str(free_port()), "--workspace", str(workspace), "--model", "models:/shapes@challenger"]
    serve.main([*given, "--challenger", "models:/typo/3"])
    assert served and "challenger models:/typo/3 has no effect without --canary SHARE or --shadow" in caplog.text


def test_megabytes_and_seconds_of_the_settings_limit_the_server(
    ray_serve: ModuleType, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    served: list[Limits] = []
    monkeypatch.setattr(server, "serve", lambda model, follow, limits, *_: served.append(limits))
    given = ["--port", str(free_port()), "--workspace", str(workspace), "--model", "models:/shapes@challenger"]
    sizes = ["--max_megabytes", "3", "--max_total_megabytes", "7", "--max_waiting", "5"]
    serve.main([*given, *sizes, "--read_timeout", "2", "--request_timeout", "4"])
    assert [vars(each) for each in served] == [vars(Limits(3 * 2**20, 7 * 2**20, 5, 2, 4))]


def test_the_memory_for_all_bodies_must_hold_the_largest_one() -> None:
    with pytest.raises(UserError, match="max_total_megabytes 8 is less than max_megabytes 9"):
        serve.main(["--max_megabytes", "9", "--max_total_megabytes", "8"])


@pytest.mark.parametrize(("gpus", "pool"), [(0, "cpu"), (1, "gpu")])
def test_the_gate_is_told_what_is_tried_out_and_replicas_with_gpus_are_on_training_nodes(
    gpus: int, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registry.Version("shapes", "1", "id", "nowhere")
    nodes: list[object] = []
    named: list[dict[str, object]] = []

    def gate(*_: object, **options: object) -> NoReturn:
        named.append(options)
        raise KeyboardInterrupt

    @contextmanager
    def start(model: ServedModel, selected: object, shared_ray: bool) -> Iterator[SimpleNamespace]:
        nodes.append(selected)
        yield SimpleNamespace(loaded={version: None})

    monkeypatch.setattr(server, "connected", lambda _: nullcontext())
    monkeypatch.setattr(server, "check_room", lambda model, cluster, selected: nodes.append(selected))
    monkeypatch.setattr(server, "run_replicas", start)
    monkeypatch.setattr(server, "ServingApp", gate)
    cluster = ClusterSettings(data_nodes="pool=cpu", training_nodes="pool=gpu")
    served = ServedModel(version, "store", replicas=2, cpus=1, gpus=gpus)
    with pytest.raises(KeyboardInterrupt):
        server.serve(served, server.FollowOptions("m", canary=0.25, shadow=True), Limits(), "127.0.0.1", 1, cluster)
    assert nodes == [{"pool": pool}] * 2 and named == [{"replicas": 2, "canary": 0.25, "shadow": True}]


class Failing(BaseHTTPRequestHandler):
    """Answers that there is no memory, with the status of its server."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b"RuntimeError: out of memory")

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def failing() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Failing) as found:
        threading.Thread(target=found.serve_forever, args=(0.05,), daemon=True).start()
        yield found
        found.shutdown()


@pytest.mark.parametrize("status", [200, 400, 413, 429, 500, 502, 503, 504])
def test_a_server_that_fails_on_the_test_image_is_refused_and_one_that_declines_it_is_not(status, failing, monkeypatch) -> None:
    """The proxy of the environment, which does not know this server, is not asked."""
    failing.status, url = status, f"http://127.0.0.1:{failing.server_port}"
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if status in (500, 502, 504):
        with pytest.raises(UserError, match=rf"can't predict a test image \(HTTP status {status}\): RuntimeError: out of memory"):
            server.measure_latency(url)
    else:
        assert (server.measure_latency(url) is None) == (status != 200)


def test_the_printed_address_can_be_opened() -> None:
    assert [server.url_host(host) for host in ("127.0.0.1", "0.0.0.0", "::", "box")] == ["127.0.0.1", "127.0.0.1", "[::1]", "box"]
