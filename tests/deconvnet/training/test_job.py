"""The line that is logged for a report of training."""

from deconvnet.training.job import progress_line


def test_a_progress_line_shows_every_metric_it_was_given():
    metrics = {"step": 1200, "epoch": 1.5, "loss": 0.51234, "lr": 0.001, "pixel_accuracy": 0.853, "samples_per_s": 61.23}
    line = progress_line({**metrics, "dev_mean_iou": 0.4}, 2400)
    assert line == (
        "step 1,200/2,400, epoch 1.50, loss 0.5123, pixel accuracy 85.3%, lr 0.001, 61.2 examples/s, dev mean IoU 0.4000"
    )
