"""Which MLflow store is used, and that a store that can't be used is reported within seconds."""

import os
import socket
import time

import pytest

from deconvnet.tracking.store import check_store, tracking_uri
from infra.errors import UserError
from tests.deconvnet.mlflow_server import free_port


def test_the_default_store_is_in_the_workspace_and_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("runs/a") == f"sqlite:///{tmp_path}/runs/a/mlflow/mlflow.db"


def test_the_environment_overrides_the_settings(tmp_path, monkeypatch):
    assert tracking_uri(str(tmp_path), "http://configured:5000") == "http://configured:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:5000")
    assert tracking_uri(str(tmp_path), "http://configured:5000") == "http://environment:5000"


def test_a_relative_sqlite_uri_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("w", "sqlite:///m.db") == f"sqlite:///{tmp_path}/m.db"


def test_a_workspace_on_s3_needs_a_server():
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        tracking_uri("s3://bucket/runs")


def silent_port() -> socket.socket:
    """A port that accepts connections and never replies."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(16)
    return listener


def test_an_unreachable_server_is_a_user_error_within_15_s_without_secrets():
    started = time.monotonic()
    with pytest.raises(UserError, match=r"http://127.0.0.1:\d+ can't be used.*MLFLOW_TRACKING_URI") as refused:
        check_store(f"http://anne:pa55@127.0.0.1:{free_port()}")
    assert time.monotonic() - started < 15
    assert "pa55" not in str(refused.value) and "anne" not in str(refused.value)


def test_a_server_that_does_not_reply_is_a_user_error_within_15_s():
    started = time.monotonic()
    with silent_port() as listener, pytest.raises(UserError, match="can't be used"):
        check_store(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert time.monotonic() - started < 15
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_a_file_that_is_no_database_is_a_user_error(tmp_path):
    (tmp_path / "notes.db").write_text("not a database, but long enough to look like one " * 50)
    with pytest.raises(UserError, match=r"notes\.db can't be used"):
        check_store(f"sqlite:///{tmp_path}/notes.db")
