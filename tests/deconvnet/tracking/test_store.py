"""Which MLflow store is used, and that a store that can't be used is reported within seconds."""

import itertools
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import mlflow.artifacts
import pytest
from mlflow import MlflowClient

from deconvnet.tracking import registry, store
from deconvnet.tracking.mlflow_runs import MlflowTracker
from deconvnet.tracking.store import check_store, tracking_uri
from infra.deploy.local.process import free_port
from infra.errors import UserError
from tests.conftest import ROOT


def test_the_default_store_is_in_the_workspace_and_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("runs/a") == f"sqlite:///{tmp_path}/runs/a/mlflow/mlflow.db"


def test_the_environment_overrides_the_settings(tmp_path, monkeypatch):
    assert tracking_uri(str(tmp_path), "http://configured:5000") == "http://configured:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:5000")
    assert tracking_uri(str(tmp_path), "http://configured:5000") == "http://environment:5000"


@pytest.mark.parametrize("displaced", ["setting", "workspace", "nothing", "the same"])
def test_a_store_that_the_environment_displaces_is_named_once(displaced, tmp_path, monkeypatch, caplog):
    store._warn.cache_clear()
    own = tmp_path / "mlflow/mlflow.db"
    if displaced in ("workspace", "the same"):
        own.parent.mkdir()
        own.touch()
    configured = "http://user:secret@configured:5000" if displaced == "setting" else None
    named = f"sqlite:///{own}" if displaced == "the same" else "http://environment:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", named)
    for _ in range(2):
        assert tracking_uri(str(tmp_path), configured) == named
        assert tracking_uri("") == named
    other = {"setting": "http://configured:5000", "workspace": f"sqlite:///{own}"}.get(displaced)
    warning = f"MLFLOW_TRACKING_URI names the MLflow store http://environment:5000: {other} is not used"
    assert caplog.messages == ([warning] if other else [])


def test_a_relative_sqlite_uri_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("w", "sqlite:///m.db") == f"sqlite:///{tmp_path}/m.db"


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "mlruns"])
def test_a_relative_store_is_refused_in_a_job_s_copy_of_the_project(uri, tmp_path, monkeypatch):
    """Ray deletes the copy at the end, and the store with it."""
    copy = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(
        UserError, match=rf"^MLflow's store {uri} \(MLFLOW_TRACKING_URI or tracking\.uri\) is relative, and this job"
    ):
        tracking_uri(str(tmp_path), uri)
    for named in ("http://server:5000", f"sqlite:///{tmp_path}/m.db", "databricks", "file:///there/mlruns"):
        assert tracking_uri(str(tmp_path), named) == named
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="is relative"):
        tracking_uri(str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking_uri(str(tmp_path), uri) == "http://server:5000", "the other one is not used"


class Server(BaseHTTPRequestHandler):
    """Answers as an MLflow server of some version does that has no experiments."""

    version: ClassVar[str | None]

    def do_GET(self) -> None:
        self._reply(self.version if self.path == "/version" else None)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._reply('{"experiments": []}')

    def _reply(self, text: str | None) -> None:
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "not found").encode())

    def log_message(self, *_: object) -> None:
        """Write no log."""


@pytest.mark.parametrize(
    ("version", "ok"), [("2.22.0", False), ("3.0.1rc0", True), ("10.1.0", True), (None, True), ("<html>", True)]
)
def test_a_server_of_an_older_version_is_refused_at_the_start(version, ok):
    """It would refuse the model in the last stage. A proxy in front of a server may hide the version."""
    kind = type("Kind", (Server,), {"version": version})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as listener:
        threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True).start()
        try:
            with (
                nullcontext()
                if ok
                else pytest.raises(UserError, match=r"^MLflow's server at http://.* has version 2\.22\.0, and 3")
            ):
                check_store(f"http://127.0.0.1:{listener.server_port}")
        finally:
            listener.shutdown()


def test_a_workspace_on_s3_needs_a_server():
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        tracking_uri("s3://bucket/runs")


def silent_port() -> socket.socket:
    """A port that accepts connections and never replies."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(16)
    return listener


def test_an_unreachable_server_is_a_user_error_without_secrets():
    with pytest.raises(UserError, match=r"http://127.0.0.1:\d+ can't be used.*MLFLOW_TRACKING_URI") as refused:
        check_store(f"http://anne:pa55@127.0.0.1:{free_port()}")
    assert "pa55" not in str(refused.value) and "anne" not in str(refused.value)


def test_a_server_that_does_not_reply_is_a_user_error_after_some_seconds(monkeypatch):
    """After that the timeouts are again those of the user and of MLflow."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "9")
    assert store._CHECK_SECONDS < 15
    monkeypatch.setattr(store, "_CHECK_SECONDS", 0.2)
    with silent_port() as listener, pytest.raises(UserError, match=r"can't be used.*no answer within"):
        check_store(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ and os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "9"


def test_a_file_that_is_no_database_is_a_user_error(tmp_path):
    (tmp_path / "notes.db").write_text("not a database, but long enough to look like one " * 50)
    with pytest.raises(UserError, match=r"notes\.db can't be used"):
        check_store(f"sqlite:///{tmp_path}/notes.db")


AT_ONCE = """
import os, sys
from mlflow import MlflowClient
import mlflow.store.tracking.sqlalchemy_store, mlflow.store.db.utils
from deconvnet.tracking.store import check_store
children = []
for _ in range(4):
    children.append(child := os.fork())
    if child == 0:
        try:
            check_store(sys.argv[1])
        except Exception as error:
            print(error)
            os._exit(1)
        os._exit(0)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


def test_a_missing_sqlite_store_and_its_folder_are_created(new_store):
    """By `check_store` in the fixture, which takes seconds. The folder was not there, either."""
    with closing(sqlite3.connect(new_store)) as database:
        assert database.execute("select name from experiments").fetchall() == [("Default",)]


def test_a_store_is_opened_by_one_process_at_a_time(tmp_path, make_store, monkeypatch):
    log = []

    @contextmanager
    def alone(path):
        log.append(path.name)
        yield
        log.append("end")

    monkeypatch.setattr(store.storage, "one_process_at_a_time", alone)
    monkeypatch.setattr("mlflow.MlflowClient.search_experiments", lambda *_, **__: log.append("asked"))
    check_store(make_store(tmp_path / "w"))
    assert log == ["mlflow.db", "asked", "end"]


@pytest.mark.slow
def test_processes_that_open_a_new_store_at_once_all_can(tmp_path):
    """MLflow's creation of the tables fails if another process has begun it."""
    command = [sys.executable, "-c", AT_ONCE, f"sqlite:///{tmp_path}/new/mlflow.db"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr[-500:]


def registered(workspace: Path, make_store: Callable[[Path], str]) -> MlflowTracker:
    """A workspace with a registered version, whose only file says "weights"."""
    tracker = MlflowTracker(make_store(workspace), "test")
    client = tracker.client
    with tracker.pipeline("p", {}) as run:
        run.log_bytes(b"x", "report/a.txt")
    model = client.create_logged_model(tracker.experiment_id, name="ensemble", source_run_id=run.run_id)
    (workspace / "weights.txt").write_bytes(b"weights")
    client.log_model_artifact(model.model_id, str(workspace / "weights.txt"))
    client.create_registered_model("net")
    client.create_model_version("net", model.artifact_location, run_id=run.run_id, model_id=model.model_id)
    return tracker


def files_of_version(workspace: Path, target: Path) -> str:
    """Where the files of version 1 are, after checking that they can be downloaded."""
    uri = tracking_uri(str(workspace))
    check_store(uri)
    version, client = registry.find("models:/net/1", uri, "model"), MlflowClient(uri, uri)
    (model,) = client.search_logged_models([client.get_experiment_by_name("test").experiment_id])
    assert version.source == model.artifact_location == client.get_model_version_download_uri("net", "1"), "MLflow uses all three"
    copied = Path(mlflow.artifacts.download_artifacts(artifact_uri=version.source, dst_path=str(target), tracking_uri=uri))
    assert (copied / "weights.txt").read_bytes() == b"weights"
    return version.source


def test_a_version_that_was_registered_anew_under_an_old_number_is_another_one(tmp_path, make_store, monkeypatch):
    """What was made or copied of the old one would otherwise be used for the new one, which has the same name and number."""
    clock = "mlflow.store.model_registry.sqlalchemy_store.get_current_time_millis"
    monkeypatch.setattr(clock, itertools.count(1_800_000_000_000).__next__)
    client = registered(tmp_path, make_store).client
    before = registry.find("models:/net/1", client.tracking_uri, "model")
    assert registry.find("models:/net/1", client.tracking_uri, "model") == before
    client.delete_registered_model("net")
    client.create_registered_model("net")
    client.create_model_version("net", before.source)
    after = registry.find("models:/net/1", client.tracking_uri, "model")
    assert after.title == before.title and after.id != before.id


@pytest.mark.parametrize("name", ["moved here, für Anna", "deeper/and/deeper"])
def test_a_moved_workspace_finds_its_models_and_logs_to_its_new_folder(tmp_path, make_store, name):
    old, new = tmp_path / "old", tmp_path / name
    registered(old, make_store)
    new.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(old, new)
    assert files_of_version(new, tmp_path).startswith(f"{new.as_uri()}/mlflow/artifacts/")
    tracker = MlflowTracker(tracking_uri(str(new)), "test")
    with tracker.pipeline("p", {}) as run:
        run.log_bytes(b"x", "report/a.txt")
    assert (new / "mlflow/artifacts" / run.run_id / "artifacts/report/a.txt").exists() and not old.exists()
    shutil.move(new, old)
    assert files_of_version(old, tmp_path).startswith(f"{old.as_uri()}/")


def test_a_copied_workspace_uses_its_own_files_and_the_original_stays(tmp_path, make_store):
    registered(tmp_path / "a", make_store)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert files_of_version(tmp_path / "b", tmp_path).startswith((tmp_path / "b").as_uri())
    assert files_of_version(tmp_path / "a", tmp_path).startswith((tmp_path / "a").as_uri())
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert files_of_version(tmp_path / "link", tmp_path).startswith((tmp_path / "a").as_uri()), "it was not moved"


def test_artifacts_that_a_user_keeps_elsewhere_are_left_there(tmp_path, make_store):
    tracker = registered(tmp_path / "a", make_store)
    other = tmp_path / "big disk/artifacts"
    theirs = tracker.client.create_experiment("theirs", artifact_location=other.as_uri())
    with MlflowTracker(tracker.uri, "theirs").pipeline("p", {}) as run:
        run.log_bytes(b"x", "a.txt")
    shutil.rmtree(other)  # as if the disk were not mounted
    shutil.move(tmp_path / "a", tmp_path / "b")
    files_of_version(tmp_path / "b", tmp_path)
    client = MlflowTracker(tracking_uri(str(tmp_path / "b")), "test").client
    assert client.get_experiment(theirs).artifact_location == other.as_uri()
    assert client.get_run(run.run_id).info.artifact_uri.startswith(other.as_uri())


@pytest.mark.parametrize("begin", ["", "RESOURCE_DOES_NOT_EXIST: "])
@pytest.mark.parametrize(
    "uri", ["http://user:secret@host:5000/api", "postgresql://user:secret@db/mlflow", "s3://bucket/a?token=secret"]
)
def test_mlflows_errors_are_quoted_without_secrets(begin: str, uri: str) -> None:
    said = store.error_summary(ValueError(f"{begin}{uri} refused it\nTraceback"))
    assert "secret" not in said and said.startswith(begin) and said.endswith(" refused it")


def test_a_registered_model_is_not_looked_up_where_tracking_is_switched_off() -> None:
    """MLflow would look into a folder ./mlruns."""
    with pytest.raises(UserError, match=r"^model models:/net@champion is a registered model, but tracking\.enabled is false"):
        registry.find("models:/net@champion", "", "model")


def test_a_full_disk_is_not_taken_for_a_model_of_another_program(tmp_path, monkeypatch) -> None:
    def full(folder: str, target: str) -> None:
        raise UserError(f"the disk of {target} is full")

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", lambda **_: str(tmp_path))
    monkeypatch.setattr(registry, "read_options", lambda folder: {})
    monkeypatch.setattr(registry.storage, "copy_tree", full)
    with pytest.raises(UserError, match=r"^the disk of /there is full$"):
        registry.fetch(registry.Version("shapes", "1", "0", "models:/m-1"), "sqlite:///x.db", "/there")
