"""The soak: what it says of memory and answers, and a run of 20 seconds against the real server."""

from pathlib import Path

import pytest
from PIL import Image

from tests.benchmarks import soak
from tests.benchmarks.soak_report import Reading, Request, by_interval, by_kind, faults, growth


def readings(*memory: float) -> list[Reading]:
    """Readings at 0, 1, 2 … seconds."""
    return [Reading(float(at), {"serve.py": each, "replicas": 100.0}, {"serve.py": 10 + at}) for at, each in enumerate(memory)]


def request(at: float, kind: str = "image", seconds: float = 0.1, status: int = 200, wanted: int = 200) -> Request:
    return Request(at, kind, seconds, status, wanted)


GOOD = [request(at) for at in range(6)]


def test_growth_is_that_of_the_medians_of_both_halves() -> None:
    assert growth(readings(100, 100, 900, 120, 120, 0), "serve.py", 6) == pytest.approx(
        0.2
    )  # one odd reading each counts nothing
    assert growth(readings(120, 120, 120, 60, 60, 60), "serve.py", 6) == pytest.approx(-0.5)
    assert growth(readings(1, 1, 1, 9, 9), "serve.py", 6) is None is growth(readings(1, 1, 1, 1, 1, 1), "serve.py", 8)


def test_a_server_that_grows_is_at_fault_and_one_that_does_not_is_not() -> None:
    assert faults(GOOD, readings(100, 100, 100, 109, 109, 109), ["image"], 6, 0.1) == []
    found = faults(GOOD, readings(100, 100, 100, 111, 111, 111), ["image"], 6, 0.1)
    assert found == ["the memory of serve.py grew by 11.0% from the first half to the second; 10.0% are allowed"]


def test_every_wrong_answer_is_at_fault_and_so_is_a_kind_that_was_not_sent() -> None:
    wrong = [
        request(1, status=0),
        request(2, status=503),
        request(2, status=503),
        request(3, "not an image", status=200, wanted=400),
    ]
    found = faults([*GOOD, *wrong], readings(1, 1, 1, 1, 1, 1), ["image", "not an image", "10 GB"], 6, 0.1)
    assert found == [
        "3 of 9 requests did not get 200: image (1 × no answer, 2 × 503)",
        "1 of 1 requests did not get 400: not an image (1 × 200)",
        "no request was sent: 10 GB",
    ]


def test_nothing_is_passed_that_was_not_measured() -> None:
    assert faults(GOOD, [], ["image"], 6, 0.1) == ["nothing is known of the server's memory"]
    found = faults(GOOD, readings(1, 1), ["image"], 6, 0.1)
    assert len(found) == 2 and all("too little is known" in each for each in found)


def test_the_tables_show_each_interval_and_each_kind() -> None:
    requests = [
        request(0, seconds=0.1),
        request(1, seconds=0.3),
        request(2, "10 GB", 0.002, 413, 413),
        request(3, status=0, seconds=1),
    ]
    header, _, first, second = by_interval(requests, readings(100, 102, 104, 106), 4, interval=2)
    assert header == "| from s | image, ms | 10 GB, ms | answers | serve.py, MiB | replicas, MiB | serve.py, files |"
    assert first == "| 0 | 200 / 290 / 300 | – | 200: 2 | 101 | 100 | 11 |"
    assert second == "| 2 | 1000 / 1000 / 1000 | 2 / 2 / 2 | none: 1, 413: 1 | 105 | 100 | 13 |"
    assert by_kind(requests)[2:] == ["| image | 3 | 300 / 930 / 1000 | none: 1, 200: 2 |", "| 10 GB | 1 | 2 / 2 / 2 | 413: 1 |"]


@pytest.mark.ray
@pytest.mark.slow
def test_twenty_seconds_of_traffic(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds of requests get the answers that they must get, and the champion changes."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    pytest.importorskip("ray.serve", reason="the extra `serve` is not installed", exc_type=ImportError)
    done = soak.main(["--minutes", "0.34", "--growth", "0.5", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert done == 0, text
    assert all(f"| {kind} | " in text for kind in soak.PAUSES) and (tmp_path / "soak.md").read_text() in text
    with Image.open(tmp_path / "soak.png") as picture:
        assert picture.format == "PNG" and picture.width > 500


@pytest.mark.ray
@pytest.mark.slow
def test_a_server_that_answers_otherwise_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray.serve", reason="the extra `serve` is not installed", exc_type=ImportError)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(soak, "bad_bodies", soak.images)  # good images, which must not get 400, are not refused
    assert soak.main(["--minutes", "0.34", "--growth", "0.5", "--out", str(tmp_path)]) == 1
    assert "did not get 400: not an image" in capsys.readouterr().out
