"""A made-up run summary, with names that would break the report or MLflow's pages if they were not escaped."""

import io
from datetime import UTC, datetime
from typing import Any

import numpy as np
from PIL import Image

from deconvnet.reporting.run_summary import Rejects, RunSummary

SCRIPT_TAG = '<script>document.title="harmed"</script>'
CLASSES = ["background", "cat", SCRIPT_TAG, "a|b *c* [d](e)"]


def example_results(**mean_iou: float | None) -> dict[str, Any]:
    """The content of a results.json; keywords replace the mean IoU of results."""
    means = {"fcn8s": 0.5012, "deconvnet": 0.4, "deconvnet_crf": 0.41, "edeconvnet": 0.6, "edeconvnet_crf": 0.6123} | mean_iou
    iou = {"background": 0.9, "cat": 0.1234, SCRIPT_TAG: None, CLASSES[3]: 0.0}
    rows = {name: {"mean_iou": mean, "pixel_accuracy": 0.875, "iou": iou} for name, mean in means.items()}
    return {"dataset": "cats & dogs val", "images": 1234, "classes": CLASSES, "rows": rows}


def grey_png(level: int = 90) -> bytes:
    """A grey PNG of 1,200 × 300 px."""
    sink = io.BytesIO()
    Image.fromarray(np.full((300, 1200, 3), level, np.uint8)).save(sink, "png")
    return sink.getvalue()


def example_images() -> list[dict[str, Any]]:
    """Rows of an images.parquet: an image with a harmful name, one whose annotation is all void, and others."""
    rows = []
    for number, (name, mean) in enumerate({"a10": 0.9, "a9": 0.25, f"50% {SCRIPT_TAG}#1": 0.5, "void": None}.items()):
        values = {
            f"mean_iou.{result}": mean for result in ("fcn8s", "deconvnet", "deconvnet_crf", "edeconvnet", "edeconvnet_crf")
        }
        ious = {f"iou.{each}": None for each in CLASSES} | {"iou.background": mean, "iou.cat": mean if number == 1 else None}
        measures = {"pixel_accuracy": mean, "boundary_f": None if number == 2 else mean, "boundary_iou": mean, "confidence": 0.75}
        measures |= {"entropy": 0.125, "disagreement": 0.0625, "boundary_doubt": None if mean is None else 0.5}
        rows.append({"image_id": name, **values, **measures, **ious, "picture": f"images/{name}.jpg" if number else ""})
    return rows


def example_summary(**changes: Any) -> RunSummary:
    """A run summary; keywords replace its fields."""
    fields: dict[str, Any] = {
        "title": f"mine · {SCRIPT_TAG}",
        "workspace": "/runs/mine",
        "results": example_results(),
        "figures": {"comparison": grey_png(), "iou_by_class": grey_png(200)},
        "splits": {"train": 9000, "dev": 40, "val": 1234},
        "digest": "d1" * 32,
        "crops": {"stage1": 70000},
        "rejects": Rejects({"not an image": 4, SCRIPT_TAG: 1}, {"not an image": ["a.jpg", "b.jpg"], SCRIPT_TAG: ["c.jpg"]}),
        "seconds": {"prepare": 8.2, "stage2": 7500.0},
        "step_seconds": {"stage2": {"waiting_for_data": 0.02, "forward_and_backward": 0.4, "all_reduce": 0.0, "optimiser": 0.08}},
        "proposals": {"objects": 77, "recall_10_iou50": 0.1, "recall_50_iou50": 0.9, "recall_50_iou70": 0.5},
        "against_champion": {},
        "images": [],
        "champion_images": [],
        "decision": "",
        "settings": {"data": {"root": SCRIPT_TAG, "limit": None}, "classes": ["x", "y"]},
        "code": "c0ffee+",
        "when": datetime(2026, 11, 23, 7, 30, tzinfo=UTC),
    }
    return RunSummary(**(fields | changes))
