"""Metrics wait in a file while MLflow is away, and arrive once and in order."""

import threading
import time

import pytest

from deconvnet.tracking import metric_spool
from deconvnet.tracking.metric_spool import MetricSpool, Point, SpoolDelivery, read_spool, spool_file
from infra.errors import UserError


def test_only_numbers_with_a_step_are_kept_and_the_spool_never_raises(tmp_path):
    spool = MetricSpool(tmp_path / "new" / "s.jsonl")
    spool({"step": 1, "loss": 1.0, "note": "x", "ok": True})
    spool({"loss": 1.0})
    spool({"step": 2, "note": "x"})
    assert read_spool(spool.file.read_bytes(), ("loss", "note", "ok")) == {"loss": ([1], [1.0])}
    spool.file.unlink()
    spool.file.parent.rmdir()
    spool({"step": 3, "loss": 1.0})
    assert not spool.file.exists()


def test_a_resumed_training_continues_its_spool_and_another_training_starts_anew(tmp_path):
    for step in (1, 2):
        MetricSpool(tmp_path / "s.jsonl", "f1")({"step": step, "loss": float(step)})
    MetricSpool(tmp_path / "s.jsonl", "f1")({"step": 2, "loss": 9.0})
    assert read_spool((tmp_path / "s.jsonl").read_bytes(), ["loss"]) == {"loss": ([1, 2], [1.0, 2.0])}
    MetricSpool(tmp_path / "s.jsonl", "f2")({"step": 1, "loss": 5.0})
    assert read_spool((tmp_path / "s.jsonl").read_bytes(), ["loss"]) == {"loss": ([1], [5.0])}


def test_a_line_that_is_not_complete_is_not_read(tmp_path):
    spool = MetricSpool(tmp_path / "s.jsonl", "f1")
    spool({"step": 1, "loss": 2.0})
    data = spool.file.read_bytes()
    assert read_spool(data + data[-20:-1], ["loss"]) == {"loss": ([1], [2.0])}


@pytest.mark.parametrize(
    "part", [b'{"st', b'{"step": 3, "time_ms": 1, "values": {"loss": 1', b'{"step": 3, "time_ms": 1, "values": {}}']
)
@pytest.mark.parametrize("training", ["f1", None])
def test_a_resumed_training_continues_after_half_a_line(tmp_path, part, training):
    """The training was killed while it wrote a line."""
    MetricSpool(tmp_path / "s.jsonl", "f1")({"step": 1, "loss": 1.0})
    with (tmp_path / "s.jsonl").open("ab") as file:
        file.write(part)
    got: list[Point] = []
    MetricSpool(tmp_path / "s.jsonl", training)({"step": 4, "loss": 4.0})
    assert read_spool((tmp_path / "s.jsonl").read_bytes(), ["loss"]) == {"loss": ([1, 4], [1.0, 4.0])}
    assert SpoolDelivery(tmp_path / "s.jsonl", got.extend, dict).close(10)
    assert [point.step for point in got] == [1, 4]


def test_a_local_file_is_used_as_it_is_and_none_is_temporary(tmp_path):
    with spool_file(str(tmp_path / "s.jsonl")) as file:
        assert file == tmp_path / "s.jsonl"
    with spool_file(None) as file:
        file.write_text("x")
    assert not file.exists()


@pytest.fixture
def on_s3(monkeypatch) -> None:
    """Every folder counts as one on S3, and a growing file is copied there at once."""
    monkeypatch.setattr(metric_spool.storage, "in_bucket", lambda uri: True)
    monkeypatch.setattr(metric_spool, "COPY_SECONDS", 0.01)


def test_a_spool_on_s3_is_there_while_the_training_runs(tmp_path, on_s3):
    """So it outlives a driver that is killed, whose /tmp is gone with its pod."""
    kept = tmp_path / "spool" / "s.jsonl"
    for step in (1, 2):
        with spool_file(str(kept)) as file:
            assert file.parent != kept.parent
            MetricSpool(file, "f1")({"step": step, "loss": float(step)})
            deadline = time.monotonic() + 30
            while not kept.exists() or read_spool(kept.read_bytes(), ["loss"]).get("loss", ([0],))[0][-1] != step:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert not file.exists()
    assert read_spool(kept.read_bytes(), ["loss"]) == {"loss": ([1, 2], [1.0, 2.0])}


def test_what_is_reported_last_is_copied_too_and_a_copy_that_fails_disturbs_nothing(tmp_path, on_s3, monkeypatch, caplog):
    monkeypatch.setattr(metric_spool, "COPY_SECONDS", 60)
    with spool_file(str(tmp_path / "s.jsonl")) as file:
        MetricSpool(file)({"step": 1, "loss": 1.0})
    assert read_spool((tmp_path / "s.jsonl").read_bytes(), ["loss"]) == {"loss": ([1], [1.0])}

    def away(uri, data):
        raise UserError("S3 is away")

    monkeypatch.setattr(metric_spool.storage, "write_bytes", away)
    with spool_file(str(tmp_path / "t.jsonl")) as file:
        MetricSpool(file)({"step": 1, "loss": 1.0})
    assert "could not be copied" in caplog.text


@pytest.mark.parametrize(("metrics", "requests"), [(3, [3]), (500, [500]), (501, [500, 1]), (1300, [500, 500, 300])])
def test_no_request_has_more_than_500_points_even_if_one_step_has(tmp_path, metrics, requests):
    """Twenty-one classes times some tables soon make a line of more metrics than MLflow takes at once."""
    MetricSpool(tmp_path / "s.jsonl")({"step": 1, **{f"iou.{i}": 0.5 for i in range(metrics)}})
    sent: list[int] = []
    assert SpoolDelivery(tmp_path / "s.jsonl", lambda points: sent.append(len(points)), dict).close(10)
    assert sent == requests


def test_a_request_that_fails_repeats_nothing_that_was_accepted(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_spool, "POLL_SECONDS", 0.01)
    for step in (1, 1, 2):
        MetricSpool(tmp_path / "s.jsonl")({"step": step, **{f"iou.{i}": 0.5 for i in range(700)}})
    got: list[Point] = []
    failures = [False, True, False, True]

    def send(points):
        if failures and failures.pop(0):
            raise ConnectionError("away")
        got.extend(points)

    assert SpoolDelivery(tmp_path / "s.jsonl", send, dict).close(20)
    assert sorted((point.key, point.step) for point in got) == sorted((f"iou.{i}", step) for i in range(700) for step in (1, 2))


def test_delivery_waits_while_the_store_is_away(tmp_path, monkeypatch):
    monkeypatch.setattr("deconvnet.tracking.metric_spool.POLL_SECONDS", 0.05)
    monkeypatch.setattr("deconvnet.tracking.metric_spool.MAX_PAUSE_SECONDS", 0.1)
    spool = tmp_path / "s.jsonl"
    got: list[Point] = []
    away, attempts = True, threading.Semaphore(0)

    def send(points):
        if away:
            attempts.release()
            raise ConnectionError("away")
        got.extend(points)

    delivery = SpoolDelivery(spool, send, dict)
    report = MetricSpool(spool)
    for step in range(2000):
        report({"step": step, "loss": float(step), "lr": float("nan")})
    assert all(attempts.acquire(timeout=60) for _ in range(3)) and got == []
    away = False
    assert delivery.close(60)
    assert [p.step for p in got if p.key == "loss"] == list(range(2000)) and len(got) == 4000


def test_delivery_gives_up_and_keeps_the_file(tmp_path):
    def send(points):
        raise ConnectionError("away")

    spool = tmp_path / "s.jsonl"
    MetricSpool(spool)({"step": 1, "loss": 1.0})
    delivery = SpoolDelivery(spool, send, dict)
    assert not delivery.close(0.05)
    assert read_spool(spool.read_bytes(), ["loss"]) == {"loss": ([1], [1.0])}
    delivery._thread.join(30)
    assert not delivery._thread.is_alive(), "it would go on trying as long as this process lives"


def test_a_line_still_being_written_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(metric_spool, "POLL_SECONDS", 0.01)
    spool = tmp_path / "s.jsonl"
    MetricSpool(spool)({"step": 1, "loss": 1.0})
    whole = spool.read_bytes()
    spool.write_bytes(whole + whole[:10])
    got: list[Point] = []
    sent = threading.Event()
    delivery = SpoolDelivery(spool, lambda points: (got.extend(points), sent.set()), dict)
    assert sent.wait(60)  # the half line was read with the whole one
    spool.write_bytes(whole + whole.replace(b'"step": 1', b'"step": 2'))
    assert delivery.close(60)
    assert [p.step for p in got] == [1, 2]
