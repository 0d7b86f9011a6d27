"""Reports of training: the line that is logged and the file of curves."""

import json
from pathlib import Path

from deconvnet.training.job import CurveFile, progress_line


def test_a_progress_line_shows_every_metric_it_was_given():
    metrics = {"step": 1200, "epoch": 1.5, "loss": 0.51234, "lr": 0.001, "pixel_accuracy": 0.853, "samples_per_s": 61.23}
    line = progress_line({**metrics, "dev_mean_iou": 0.4}, 2400)
    assert line == (
        "step 1,200/2,400, epoch 1.50, loss 0.5123, pixel accuracy 85.3%, lr 0.001, 61.2 examples/s, dev mean IoU 0.4000"
    )


def test_a_resumed_training_continues_its_curve_file(tmp_path: Path):
    path = tmp_path / "curves" / "a.jsonl"
    curve = CurveFile(path, 0)
    for step in (1, 2, 3):
        curve.add({"step": step, "loss": 0.5})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed
    CurveFile(path, 2).add({"step": 3, "loss": 0.25})
    assert [json.loads(line) for line in path.read_text().splitlines()][1:] == [
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.25},
    ]
    CurveFile(path, 0)
    assert path.read_text() == ""
