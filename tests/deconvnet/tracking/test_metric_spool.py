"""Metrics wait in a file while MLflow is away, and arrive once and in order."""

import time

from deconvnet.tracking.metric_spool import MetricSpool, Point, SpoolDelivery, local_folder, read_spool


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


def test_a_local_folder_is_used_as_it_is_and_none_is_temporary(tmp_path):
    with local_folder(str(tmp_path)) as folder:
        assert folder == tmp_path
    with local_folder(None) as folder:
        assert folder.is_dir()
    assert not folder.exists()


def test_delivery_waits_while_the_store_is_away(tmp_path, monkeypatch):
    monkeypatch.setattr("deconvnet.tracking.metric_spool.POLL_SECONDS", 0.05)
    monkeypatch.setattr("deconvnet.tracking.metric_spool.MAX_PAUSE_SECONDS", 0.1)
    spool = tmp_path / "s.jsonl"
    got: list[Point] = []
    away = True

    def send(points):
        if away:
            raise ConnectionError("away")
        got.extend(points)

    delivery = SpoolDelivery(spool, send, dict)
    for step in range(2000):
        MetricSpool(spool)({"step": step, "loss": float(step), "lr": float("nan")})
    time.sleep(0.4)
    assert got == []
    away = False
    assert delivery.close(10)
    assert [p.step for p in got if p.key == "loss"] == list(range(2000)) and len(got) == 4000


def test_delivery_gives_up_in_time_and_keeps_the_file(tmp_path):
    def send(points):
        raise ConnectionError("away")

    spool = tmp_path / "s.jsonl"
    MetricSpool(spool)({"step": 1, "loss": 1.0})
    delivery = SpoolDelivery(spool, send, dict)
    started = time.monotonic()
    assert not delivery.close(1.5)
    assert time.monotonic() - started < 3 and spool.read_text()


def test_a_line_still_being_written_waits(tmp_path):
    spool = tmp_path / "s.jsonl"
    MetricSpool(spool)({"step": 1, "loss": 1.0})
    whole = spool.read_bytes()
    spool.write_bytes(whole + whole[:10])
    got: list[Point] = []
    delivery = SpoolDelivery(spool, got.extend, dict)
    time.sleep(0.3)
    spool.write_bytes(whole + whole.replace(b'"step": 1', b'"step": 2'))
    assert delivery.close(5)
    assert [p.step for p in got] == [1, 2]
