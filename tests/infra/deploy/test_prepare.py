"""prepare.py, which creates the bucket and the MLflow user of a new installation, and backup.py, which uploads MLflow's dumps."""

import json
import re
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from infra.deploy.local.servers import S3
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "infra" / "deploy" / "docker"))
import backup
import prepare


def test_the_bucket_is_created_once(s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the first credentials
    assert prepare.create_bucket("new-one") == "created the bucket new-one"
    assert prepare.create_bucket("new-one") == "the bucket new-one exists"
    assert "new-one" in [b["Name"] for b in boto3.client("s3").list_buckets()["Buckets"]]
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(SystemExit, match="can't be used"):
        prepare.create_bucket("new-one")


@pytest.fixture
def mlflow() -> Iterator[tuple[str, dict[str, str]]]:
    """A stand-in for MLflow's API of users, which answers like a real server: its URL, and the passwords by user."""
    users = {"admin": "right"}

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            import base64

            name, _, password = base64.b64decode(self.headers["Authorization"].split()[1]).decode().partition(":")
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
            status = 200 if users.get(name) == password else 401
            if status == 200 and self.path.endswith("users/create") and body["username"] in users:
                status = 400
            elif status == 200 and "/users/" in self.path:
                users[body["username"]] = body["password"]
            self.send_response(status)
            self.end_headers()

        do_GET = do_POST = do_PATCH = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", users
    server.shutdown()
    server.server_close()


def test_the_pipelines_user_is_created_once_and_gets_a_changed_password(mlflow: tuple[str, dict[str, str]]) -> None:
    url, users = mlflow
    assert prepare.create_user(url, "pipeline", "first", "admin", "right") == "created MLflow's user pipeline"
    assert prepare.create_user(url, "pipeline", "first", "admin", "wrong") == "MLflow's user pipeline exists"
    assert prepare.create_user(url, "pipeline", "second", "admin", "right") == "changed the password of MLflow's user pipeline"
    assert users["pipeline"] == "second"
    with pytest.raises(SystemExit, match="refuses the administrator"):
        prepare.create_user(url, "other", "x", "admin", "wrong")


@pytest.mark.parametrize("bucket", ["", "runs"])
def test_the_variables_of_the_environment_name_the_bucket_and_the_user(
    bucket: str, mlflow: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, users = mlflow
    buckets: list[str] = []
    monkeypatch.setattr(prepare, "create_bucket", lambda name: buckets.append(name) or "created")
    given = {"BUCKET": bucket, "MLFLOW_TRACKING_URI": f"{url}/"}
    given |= {"MLFLOW_TRACKING_USERNAME": "pipeline", "MLFLOW_TRACKING_PASSWORD": "first"}
    given |= {"MLFLOW_AUTH_ADMIN_USERNAME": "admin", "MLFLOW_AUTH_ADMIN_PASSWORD": "right"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert prepare.main() == 0
    assert users == {"admin": "right", "pipeline": "first"} and buckets == [name for name in [bucket] if name]


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        ("us-east-1", {"Bucket": "runs"}),
        ("eu-west-1", {"Bucket": "runs", "CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}}),
    ],
)
def test_a_bucket_is_created_in_the_region_of_the_credentials(
    region: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS refuses the name of its default region. A server that only fails for the moment is asked again."""
    status, created = 500, []

    def head_bucket(Bucket: str) -> None:
        raise prepare.ClientError({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": status}}, "HeadBucket")

    s3 = SimpleNamespace(head_bucket=head_bucket, meta=SimpleNamespace(region_name=region))
    s3.create_bucket = lambda **given: created.append(given)
    monkeypatch.setattr(boto3, "client", lambda name: s3)
    with pytest.raises(ConnectionError, match="S3 answers 500"):
        prepare.create_bucket("runs")
    assert created == []
    status = 404
    assert prepare.create_bucket("runs") == "created the bucket runs" and created == [expected]


def test_servers_that_are_still_starting_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare.time, "sleep", lambda _: None)
    answers: list[Any] = [
        ConnectionRefusedError("not yet"),
        prepare.botocore.exceptions.EndpointConnectionError(endpoint_url="x"),
        "done",
    ]

    def step() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    prepare.retry_until_reachable(step)
    assert capsys.readouterr().out == "done\n"
    monkeypatch.setattr(prepare, "RETRY_SECONDS", -1)
    answers.append(OSError("gone"))
    with pytest.raises(SystemExit, match="does not answer: gone"):
        prepare.retry_until_reachable(step)


def test_a_server_that_is_silent_is_asked_again_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(prepare.requests, "request", lambda *_, **more: given.append(more) or SimpleNamespace(status_code=200))
    prepare.create_user("http://mlflow", "pipeline", "first", "admin", "right")
    assert [0 < each["timeout"] < prepare.RETRY_SECONDS for each in given] == [True]


def test_as_many_backups_are_kept_as_the_documents_say() -> None:
    for text in ((ROOT / "docs" / "operations.md").read_text(), backup.__doc__ or ""):
        assert re.findall(r"the newest (\d+) are kept", text) == [str(backup.KEPT)]


def test_the_newest_backups_are_kept(s3: S3, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setattr(backup, "KEPT", 2)
    name, first = bucket.removeprefix("s3://").partition("/")[0], datetime(2026, 11, 26, 1, tzinfo=UTC)
    for night in range(3):
        dump = tmp_path / "mlflow.dump"
        dump.write_text(f"night {night}")
        kept = backup.upload(str(dump), name, first + timedelta(days=night))
    assert kept == ["backups/mlflow-2026-11-27T010000.dump", "backups/mlflow-2026-11-28T010000.dump"]
    client = boto3.client("s3")
    assert [item["Key"] for item in client.list_objects_v2(Bucket=name, Prefix="backups/")["Contents"]] == kept
    assert client.get_object(Bucket=name, Key=kept[-1])["Body"].read() == b"night 2"
