"""What a training reports: as a line for a person, and as a file of JSON lines."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_FORMS = (
    ("loss", "loss {:.4f}"),
    ("pixel_accuracy", "pixels right {:.1%}"),
    ("lr", "lr {:.2g}"),
    ("samples_per_s", "{:.1f} examples/s"),
    ("dev_mean_iou", "dev mean IoU {:.4f}"),
    ("final_dev_mean_iou", "final dev mean IoU {:.4f}"),
)


def progress(metrics: Mapping[str, Any], total: int) -> str:
    """One line on what rank 0 reported."""
    parts = [f"step {metrics['step']:,}/{total:,}", f"epoch {metrics['epoch']:.2f}"]
    return ", ".join(parts + [form.format(metrics[name]) for name, form in _FORMS if name in metrics])


class Curve:
    """A file of reports, one JSON object a line, that a training which goes on from `step` continues."""

    def __init__(self, path: Path, step: int) -> None:
        """Reports of later steps, which are made again, are dropped."""
        self._path = path
        kept = [line for line in _lines(path) if line["step"] <= step] if step else []
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def add(self, metrics: Mapping[str, float]) -> None:
        """Append one report."""
        with self._path.open("a") as file:
            file.write(json.dumps(dict(metrics)) + "\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines; one that a killed run left half written is passed over."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found
