"""Where training spends its time: every second is counted once, in its phase, without a wait for the GPU between reports."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from deconvnet.models.network import Network
from deconvnet.training import meter
from deconvnet.training.job import log_step_seconds
from deconvnet.training.meter import PHASES, StepTimes
from deconvnet.training.trainer import Trainer
from tests.deconvnet.training_runs import stage
from tests.deconvnet.training_tables import Small


class FakeTime:
    """A clock that only `sleep` moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(meter, "time", fake)
    return fake


def times(**seconds: float) -> dict[str, float]:
    return {f"time.{phase}_s": seconds.get(phase, 0.0) for phase in PHASES}


def test_seconds_a_step_are_means_since_the_last_report_and_since_the_start(clock: FakeTime):
    found = StepTimes(torch.device("cpu"))
    assert found.read() == {} and found.means() == {}
    for waited in (2.0, 4.0):
        clock.sleep(waited)
        found.lap("waiting_for_data")
        clock.sleep(1)
        found.lap("optimiser")
    assert found.read() == times(waiting_for_data=3, optimiser=1)
    clock.sleep(10)
    found.lap("checkpoints")
    clock.sleep(4)
    found.lap("optimiser")
    assert found.read() == times(checkpoints=10, optimiser=4)
    clock.sleep(6)
    found.lap("batch_norm")
    assert found.read() == {}  # no step
    assert {name: seconds for name, seconds in found.means().items() if seconds} == pytest.approx(
        {"waiting_for_data": 2, "optimiser": 2, "checkpoints": 10 / 3, "batch_norm": 2}
    )


class Slow(Small):
    """A network that takes 3 s forward and 4 s backward."""

    def __init__(self, clock: FakeTime) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and torch.is_grad_enabled():
            self.clock.sleep(3)
        scores = super().forward(images)
        if scores.requires_grad:
            scores.register_hook(lambda _: self.clock.sleep(4))
        return scores


class Batches:
    """Two batches an epoch, 2 s each."""

    steps_per_epoch = 2

    def __init__(self, clock: FakeTime) -> None:
        self.clock = clock

    def batches(self, first: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for _ in range(first, stop):
            self.clock.sleep(2)
            yield np.zeros((8, 3, 32, 32), np.uint8), np.zeros((8, 32, 32), np.uint8)


class Dev:
    """One batch of dev examples, which takes 50 s."""

    def __init__(self, clock: FakeTime) -> None:
        self.clock = clock

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        self.clock.sleep(50)
        yield np.zeros((2, 3, 32, 32), np.uint8), np.zeros((2, 32, 32), np.uint8)


@pytest.mark.parametrize("micro", [None, 2])
def test_every_second_of_a_training_is_counted_in_its_phase(clock: FakeTime, micro: int | None):
    """Also where a batch is computed in four pieces."""
    network: Network = Slow(clock)
    pieces = 1 if micro is None else 4
    settings = stage(batch=8, epochs=2, log_every=1, checkpoint_every=100, bn_batches=3, micro_batch=micro)
    trainer = Trainer(network, settings, Batches(clock), seed=0, dev=Dev(clock))
    step = trainer.optimiser.step
    trainer.optimiser.step = lambda: [clock.sleep(5), step()]
    seen: list[dict[str, Any]] = []
    clock.sleep(1000)  # before the training begins

    def report(metrics: dict[str, float], state: Any) -> None:
        seen.append(metrics)
        clock.sleep(0.5 if state is None else 20)

    outcome = trainer.fit(report=report)
    always = {"waiting_for_data": 2, "forward_and_backward": 7 * pieces, "optimiser": 5}
    assert [{n: v for n, v in m.items() if n.startswith("time.")} for m in seen] == [
        times(**always),
        times(**always, checkpoints=0.5, validation=50),
        times(**always, checkpoints=20),
        times(**always, checkpoints=0.5, validation=50),
        {},  # the final result
    ]
    found = {name: 4 * seconds for name, seconds in outcome.step_seconds.items()}
    expected = {name: 4 * seconds for name, seconds in always.items()}
    # At the end a checkpoint, batch norm's statistics on three batches, and another evaluation.
    expected |= {"checkpoints": 2 * 20 + 2 * 0.5, "validation": 3 * 50, "batch_norm": 3 * 2}
    assert found == pytest.approx({**dict.fromkeys(PHASES, 0), **expected})
    assert 1100 + sum(found.values()) == pytest.approx(clock.now - 0.5)  # without the report of the final result


def test_the_speed_is_that_of_the_global_batch_without_the_time_of_reports(clock: FakeTime):
    """On this rank, which has half of each batch."""
    settings = stage(batch=16, epochs=2, log_every=2, checkpoint_every=100)
    trainer = Trainer(Slow(clock), settings, Batches(clock), seed=0)
    step = trainer.optimiser.step
    trainer.optimiser.step = lambda: [clock.sleep(5), step()]
    speeds: list[float] = []

    def report(metrics: dict[str, float], state: Any) -> None:
        speeds.append(metrics["samples_per_s"])
        clock.sleep(20)

    trainer.fit(report=report)
    assert speeds == pytest.approx([2 * 16 / (2 * (2 + 7 + 5))] * 2)


class FakeEvent:
    """An event of a GPU that does each piece of work in 2 s, and only when something waits for it."""

    log: list[str]

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.number = self.log.count("record")
        self.log.append("record")

    def synchronize(self) -> None:
        self.log.append("wait")

    def elapsed_time(self, other: "FakeEvent") -> float:
        return 2000.0 * (other.number - self.number)


def test_a_gpu_is_waited_for_only_when_times_are_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(FakeEvent, "log", [], raising=False)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    found = StepTimes(torch.device("cuda", 0))
    for _ in range(3):
        for phase in ("copy_to_device", "forward_and_backward", "forward_and_backward", "optimiser"):
            found.lap(phase)
    assert FakeEvent.log == ["record"] * 13
    assert found.read() == times(copy_to_device=2, forward_and_backward=4, optimiser=2)
    assert FakeEvent.log.count("wait") == 12
    found.lap("optimiser")
    assert found.read() == times(optimiser=2)


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        ({}, ""),
        (dict.fromkeys(PHASES, 0.0), ""),
        (
            {"waiting_for_data": 0.021, "forward_and_backward": 0.4, "all_reduce": 0.002, "optimiser": 0.02},
            "0.44 s a step: forward and backward 0.40, waiting for data 0.02, optimiser 0.02",
        ),
        ({"forward_and_backward": 0.05, "all_reduce": 0.00123}, "51.23 ms a step: forward and backward 50.00, all reduce 1.23"),
        ({"forward_and_backward": 12.0, "validation": 120.0}, "132.00 s a step: validation 120.00, forward and backward 12.00"),
    ],
)
def test_the_log_names_the_largest_phases_first(seconds: dict[str, float], line: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "deconvnet")
    log_step_seconds(seconds)
    assert [message.strip() for message in caplog.messages] == ([line] if line else [])
