"""A finished run as the pages tell of it, made up, with names that would do harm where they are not escaped."""

import io
from datetime import UTC, datetime
from typing import Any

import numpy as np
from PIL import Image

from deconvnet.reporting.run_summary import Facts, Rejects

EVIL = '<script>document.title="harmed"</script>'
CLASSES = ["background", "cat", EVIL, "a|b *c* [d](e)"]


def results(**mean_iou: float | None) -> dict[str, Any]:
    """A results.json."""
    means = {"fcn8s": 0.5012, "deconvnet": 0.4, "deconvnet_crf": 0.41, "edeconvnet": 0.6, "edeconvnet_crf": 0.6123} | mean_iou
    iou = {"background": 0.9, "cat": 0.1234, EVIL: None, CLASSES[3]: 0.0}
    rows = {name: {"mean_iou": mean, "pixel_accuracy": 0.875, "iou": iou} for name, mean in means.items()}
    return {"dataset": "cats & dogs val", "images": 1234, "classes": CLASSES, "rows": rows}


def png(colour: int = 90) -> bytes:
    """A picture 1,200 px wide."""
    sink = io.BytesIO()
    Image.fromarray(np.full((300, 1200, 3), colour, np.uint8)).save(sink, "png")
    return sink.getvalue()


def facts(**changes: Any) -> Facts:
    """The run; `changes` replace fields of it."""
    known: dict[str, Any] = {
        "title": f"mine · {EVIL}",
        "workspace": "/runs/mine",
        "results": results(),
        "pictures": {"comparison": png(), "iou_by_class": png(200)},
        "splits": {"train": 9000, "dev": 40, "val": 1234},
        "digest": "d1" * 32,
        "crops": {"stage1": 70000},
        "rejects": Rejects({"not an image": 4, EVIL: 1}, {"not an image": ["a.jpg", "b.jpg"], EVIL: ["c.jpg"]}),
        "seconds": {"prepare": 8.2, "stage2": 7500.0},
        "proposals": {"objects": 77, "recall_10_iou50": 0.1, "recall_50_iou50": 0.9, "recall_50_iou70": 0.5},
        "settings": {"data": {"root": EVIL, "limit": None}, "classes": ["x", "y"]},
        "code": "c0ffee+",
        "when": datetime(2026, 11, 23, 7, 30, tzinfo=UTC),
    }
    return Facts(**(known | changes))
