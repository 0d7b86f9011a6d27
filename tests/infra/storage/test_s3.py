"""A real S3 server: outages, wrong credentials, conditions; and which failures are retried, for how long, by boto3 and others."""

import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as pafs
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError

from infra import storage
from infra.deploy.local.process import free_ports
from infra.deploy.local.servers import S3
from infra.errors import UserError
from infra.storage.objects import s3 as s3_store
from infra.storage.objects import s3_client, store
from infra.storage.objects.s3_errors import s3_errors_for_user
from tests.infra.conftest import use_s3
from tests.infra.storage.helpers import make_table, message_of, message_of_check
from tests.servers import ACCESS_KEY, SECRET_KEY, FlakyProxy


def test_listing_and_removing_work_beyond_one_page(bucket, monkeypatch):
    monkeypatch.setattr(s3_store, "PAGE", 20)
    for i in range(50):
        storage.write_bytes(f"{bucket}/many/{i:02d}", b"")
    assert storage.list_files(bucket) == [f"many/{i:02d}" for i in range(50)]
    storage.remove(bucket)
    assert storage.list_files(bucket) == [] and not storage.exists(bucket)


def test_occasional_failures_are_retried(proxy, bucket, monkeypatch, tmp_path):
    use_s3(monkeypatch, proxy)
    proxy.fail_one_in = 5
    assert make_table(bucket) == [f"{i:03d}" for i in range(200)]
    # As Ray Train uploads and downloads checkpoints.
    fs, path = storage.filesystem(bucket)
    (tmp_path / "up").mkdir()
    for i in range(10):
        (tmp_path / "up" / str(i)).write_bytes(os.urandom(2**20))
    pafs.copy_files(str(tmp_path / "up"), f"{path}/checkpoint", destination_filesystem=fs, use_threads=False)
    (tmp_path / "down").mkdir()
    pafs.copy_files(f"{path}/checkpoint", str(tmp_path / "down"), source_filesystem=fs)
    for i in range(10):
        assert (tmp_path / "up" / str(i)).read_bytes() == (tmp_path / "down" / str(i)).read_bytes()
        assert storage.exists(f"{bucket}/checkpoint/{i}")
    storage.remove(bucket)
    assert storage.list_files(bucket) == []
    assert proxy.refused > 5


def use_during_outage(proxy: FlakyProxy, bucket: str, seconds: float) -> None:
    """Write, read and list by boto3 and by a pickled pyarrow filesystem, starting while the server is away."""
    storage.write_bytes(f"{bucket}/there", b"content")
    fs, path = storage.filesystem(bucket)
    fs = pickle.loads(pickle.dumps(fs))

    def by_pyarrow() -> bytes:
        fs.create_dir(f"{path}/folder")
        with fs.open_output_stream(f"{path}/arrow") as stream:
            stream.write(b"arrow")
        with fs.open_input_file(f"{path}/there") as file:
            return file.read()

    started = time.monotonic()
    proxy.away_for(seconds)
    with ThreadPoolExecutor(4) as pool:
        done = [
            pool.submit(storage.write_bytes, f"{bucket}/new", b"new"),
            pool.submit(storage.read_bytes, f"{bucket}/there"),
            pool.submit(storage.list_files, f"{bucket}/there"),
            pool.submit(by_pyarrow),
        ]
        assert [each.result() for each in done] == [None, b"content", [], b"content"]
    assert time.monotonic() - started >= seconds
    assert storage.read_bytes(f"{bucket}/new") == b"new" and storage.read_bytes(f"{bucket}/arrow") == b"arrow"


def test_an_outage_of_2_seconds_is_waited_for(proxy, bucket, monkeypatch):
    use_s3(monkeypatch, proxy)
    use_during_outage(proxy, bucket, 2)


@pytest.mark.slow
def test_an_outage_of_20_seconds_is_waited_for(proxy, bucket, monkeypatch):
    use_s3(monkeypatch, proxy)
    use_during_outage(proxy, bucket, 20)


@pytest.mark.slow
def test_retries_do_not_run_out_over_many_failing_requests(proxy, bucket, monkeypatch):
    use_s3(monkeypatch, proxy)
    storage.write_bytes(f"{bucket}/x", b"x")
    fs, path = storage.filesystem(bucket)
    proxy.fail_one_in = 3
    for _ in range(400):  # enough to exhaust a client with a quota of retries
        assert fs.get_file_info(f"{path}/x").size == 1
        assert storage.version_token(f"{bucket}/x")
    assert proxy.refused > 200


def test_wrong_credentials_give_a_message(s3, bucket, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.setenv(name, "wrong-and-secret")
        for message in (
            message_of_check(bucket),
            message_of(lambda: storage.exists(bucket)),
            message_of(lambda: storage.version_token(f"{bucket}/x")),
            message_of(lambda: storage.list_files(bucket)),
        ):
            assert s3.url in message and "credentials" in message and "wrong-and-secret" not in message
        use_s3(monkeypatch, s3)


def test_missing_credentials_and_unreachable_servers_give_messages(s3, bucket, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "CHECK_SECONDS", 0.3)
        patch.setattr(store, "timeouts", lambda: (0.3, 6))
        patch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET_KEY}@127.0.0.1:{free_ports(1)[0]}")
        assert "does not answer at http://127.0.0.1:" in message_of_check(bucket)
        patch.setenv("AWS_ENDPOINT_URL", "http://192.0.2.255:9")  # a reserved address that never answers
        assert "does not answer at http://192.0.2.255:9" in message_of_check(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "seaweed:8333")
    assert "AWS_ENDPOINT_URL is not the address of an S3 server (Invalid endpoint: seaweed:8333)" in message_of_check(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"user:{SECRET_KEY}@seaweed:8333")
    assert "AWS_ENDPOINT_URL is not the address of an S3 server (seaweed:8333)" in message_of_check(bucket)
    use_s3(monkeypatch, s3)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "credentials" in message_of_check(bucket)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "set AWS_ACCESS_KEY_ID" in message_of_check(bucket)


def test_the_filesystem_uses_the_clients_endpoint_and_region(s3, bucket, monkeypatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION")  # servers other than Amazon's need none
    make_table(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # AWS_ENDPOINT_URL_S3 takes precedence
    make_table(bucket + "2")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    from botocore.stub import Stubber

    with Stubber(s3_client.client()) as amazon:
        amazon.add_response("head_bucket", {"BucketRegion": "eu-west-1"}, {"Bucket": "elsewhere"})
        fs, _ = storage.filesystem("s3://elsewhere/x")
    assert fs.region == "eu-west-1"


def test_many_threads_can_use_s3(s3: S3, bucket):
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: storage.write_json(f"{bucket}/{i}", i), range(64)))
        assert list(pool.map(lambda i: storage.read_json(f"{bucket}/{i}"), range(64))) == list(range(64))


@pytest.mark.parametrize("ignored", ["If-None-Match", "If-Match", "both refused"])
def test_a_server_without_conditional_writes_is_refused_for_locks(bucket, ignored):
    """As older servers do: they ignore the condition, or know no such request."""
    with store.short_retries():
        client = s3_client.client()

    def change(params: dict, **_: object) -> object:
        if ignored == "both refused" and {"If-None-Match", "If-Match"} & set(params["headers"]):
            reply = AWSResponse("", 501, {}, None)
            return reply, {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
        params["headers"].pop(ignored, None)
        return None

    storage.check_writable(bucket, locks=True)
    client.meta.events.register("before-call.s3.PutObject", change)
    try:
        message = message_of(lambda: storage.check_writable(bucket, locks=True))
        storage.check_writable(bucket)  # enough for files without a lock
    finally:
        client.meta.events.unregister("before-call.s3.PutObject", change)
    assert f"the server of {bucket}/" in message and "ignores the conditions of writes" in message
    assert "SeaweedFS from 4.18" in message
    assert storage.list_files(bucket) == []


def test_only_the_check_at_the_start_of_a_run_gives_up_soon(bucket):
    with store.short_retries():
        soon, short = store.retry_seconds(), s3_client.client().meta.config
    assert (soon, store.retry_seconds()) == (4, 60)
    long = s3_client.client().meta.config
    assert [(each.connect_timeout, each.read_timeout) for each in (short, long)] == [(3, 6), (10, 60)]


@pytest.mark.parametrize(
    ("status", "code", "again"),
    [
        *((status, "", True) for status in (408, 429, 500, 502, 503, 504)),
        (409, "OperationAborted", True),
        (409, "ConditionalRequestConflict", True),
        (400, "RequestTimeout", True),
        (400, "IncompleteBody", True),
        (200, "InternalError", True),
        (200, "SlowDown", True),
        (200, "", False),
        (403, "AccessDenied", False),
        (404, "NoSuchKey", False),
        (412, "PreconditionFailed", False),
    ],
)
def test_failures_that_may_pass_are_retried_for_a_minute(status, code, again, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(s3_client, "time", SimpleNamespace(monotonic=lambda: clock.now))
    request = {"context": {}}

    def is_retried(seconds: float) -> bool:
        clock.now = 1000.0 + seconds
        response = (SimpleNamespace(status_code=status), {"Error": {"Code": code}} if code else {})
        given = {"response": response, "attempts": 3, "caught_exception": None, "request_dict": request}
        return s3_client._retry_delay(60, **given) is not None

    assert [is_retried(seconds) for seconds in (0, 59.9, 60.1)] == [again, again, False]


def test_pyarrow_retries_for_about_as_long_as_the_other_clients(bucket, monkeypatch):
    given, real = [], pafs.AwsDefaultS3RetryStrategy
    monkeypatch.setattr(pafs, "AwsDefaultS3RetryStrategy", lambda max_attempts: given.append(max_attempts) or real(max_attempts))
    s3_client._filesystem(-1, frozenset(), "runs")  # none that is cached

    def distance(attempts: int) -> float:
        return abs(sum(0.025 * 2**n for n in range(attempts)) - store.RETRY_SECONDS)

    assert given == [min(range(100), key=distance)]


def test_pyarrow_waits_as_long_as_the_other_client_and_trusts_the_same_certificates(bucket, monkeypatch):
    made = SimpleNamespace()
    monkeypatch.setattr(s3_client, "_RetryingS3FileSystem", lambda **options: made.__dict__.update(options) or made)
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/company.pem")
    s3_client._filesystem(-2, frozenset(), "runs")  # none that is cached
    assert (made.connect_timeout, made.request_timeout) == store.timeouts() and made.tls_ca_file_path == "/etc/company.pem"


def test_objects_that_a_server_does_not_delete_are_tried_again_or_named(monkeypatch):
    sent = []
    replies = [
        [("a", "SlowDown"), ("b", "InternalError")],
        [("b", "SlowDown")],
        [],
        [("a", "SlowDown"), ("b", "AccessDenied")],
        *([("a", "SlowDown")] for _ in range(6)),
    ]

    def delete_objects(Bucket: str, Delete: dict[str, Any]) -> dict[str, Any]:
        sent.append("".join(each["Key"] for each in Delete["Objects"]))
        return {"Errors": [{"Key": key, "Code": code} for key, code in replies.pop(0)]}

    monkeypatch.setattr(s3_store, "client", lambda: SimpleNamespace(delete_objects=delete_objects))
    s3_store.delete("runs", "abc")
    assert sent == ["abc", "ab", "b"]
    with pytest.raises(UserError, match=r"won't delete s3://runs/b \(AccessDenied\)$"):
        s3_store.delete("runs", "ab")
    with pytest.raises(UserError, match=r"won't delete s3://runs/a \(SlowDown\)$"):
        s3_store.delete("runs", "a")
    assert replies == []


def test_delta_lakes_library_gets_the_server_and_all_credentials(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://127.0.0.1:1")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-a-role")
    uri, options = s3_client.delta_location("runs", "a b/t")
    assert uri == "s3://runs/a%20b/t"
    assert (options["aws_endpoint_url"], options["allow_http"]) == ("https://127.0.0.1:1", "false")
    assert (options["aws_access_key_id"], options["aws_secret_access_key"]) == (ACCESS_KEY, SECRET_KEY)
    assert options["aws_session_token"] == "of-a-role"
    assert options["aws_conditional_put"] == "etag", "of two writers one succeeds"
    assert (options["max_retries"], options["retry_timeout"]) == ("1000", "60s")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("AccessDenied", "forbids PutObject on s3://b/x (AccessDenied)"),
        ("SignatureDoesNotMatch", "refuses the credentials (SignatureDoesNotMatch)"),
        ("XMinioStorageFull", "has no room left for s3://b/x"),
        ("RequestTimeTooSkewed", "rejects this machine's clock"),
        ("NoSuchBucket", "there is no bucket b at "),
        ("Curious", "refuses PutObject on s3://b/x: Curious"),
    ],
)
def test_what_a_server_refuses_becomes_a_message(bucket, code, message):
    with pytest.raises(UserError) as caught, s3_errors_for_user("s3://b/x"):
        raise ClientError({"Error": {"Code": code}}, "PutObject")
    assert message in str(caught.value)
