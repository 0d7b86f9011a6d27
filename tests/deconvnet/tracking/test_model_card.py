"""The registered model's description: its figures, how to load it, its history, and no more than the store keeps."""

from deconvnet.tracking.model_card import HEADING, Version, page
from deconvnet.tracking.run_notes import MOST


def version(number: int, *aliases: str, verdict: str = "not judged", **changes) -> Version:
    figures = {"mean_iou": {"edeconvnet_crf": 0.5 + number / 1000, "fcn8s": 0.4}, "pixel_accuracy": {"fcn8s": 0.9}} | changes
    return Version(number, "2026-11-23", figures["mean_iou"], figures["pixel_accuracy"], verdict, aliases)


def test_the_champion_is_told_of() -> None:
    text = page("net", "http://mlflow:5000", [version(3, "challenger"), version(2, "champion", verdict="promoted"), version(1)])
    assert text.startswith(HEADING) and "Champion: version 2," in text
    assert "| FCN-8s | 40.0 | 90.0 |" in text and "| EDeconvNet+CRF | 50.2 | – |" in text
    assert 'mlflow.set_tracking_uri("http://mlflow:5000")' in text and 'load_model("models:/net@champion")' in text
    assert "mlflow models serve -m models:/net@champion" in text
    assert text.splitlines()[-3:] == [
        "| 3 | 2026-11-23 | 50.3 | not judged | challenger |",
        "| 2 | 2026-11-23 | 50.2 | promoted | champion |",
        "| 1 | 2026-11-23 | 50.1 | not judged |  |",
    ]


def test_without_a_champion_or_figures() -> None:
    assert (
        "Challenger: version 2," in (text := page("net", "u", [version(3), version(2, "challenger")])) and "@challenger" in text
    )
    bare = page("net", "u", [version(3, mean_iou={}), version(2)])
    assert "The newest: version 3," in bare and "models:/net/3" in bare and "It was not measured." in bare


def test_as_many_versions_as_fit() -> None:
    every = [version(100 - i, verdict="not promoted: " + "why " * 30) for i in range(100)]
    text = page("net", "u", every, 4000)
    shown = text.count("| 2026-11-23 |")
    assert 5 < shown < 30 and text.endswith(f"… and {100 - shown} older.") and 3700 < len(text) <= 4000
    assert len(page("n" * 200, "u" * 200, every)) <= MOST
