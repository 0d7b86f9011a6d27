"""A node of a training is taken away after a notice to Ray, as clouds take spot instances away."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cluster.conftest import ClusterFixture
from tests.deconvnet.training_tables import examples_table
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(900)]
NOTICE_SECONDS = 20
SELDOM = 100_000
"""Steps between checkpoints, besides those at the end of epochs, which have 90 steps."""


def steps(lines: Sequence[str]) -> list[int]:
    """The steps for which a loss was printed, in order."""
    found = (re.search(r"step ([\d,]+)/.*loss", line) for line in lines)
    return [int(m[1].replace(",", "")) for m in found if m]


@pytest.mark.parametrize("which", [0, 1])
def test_at_most_a_step_is_repeated(cluster: ClusterFixture, tmp_path: Path, which: int) -> None:
    """The first worker, which saves the checkpoints, is on the node or on the other. Training continues without the node."""
    examples_table(f"{tmp_path}/examples", 480)
    driver = cluster.start("-m", "tests.deconvnet.training_driver", str(tmp_path), *map(str, (2, 40, 1, SELDOM)))
    wait_until(lambda: max(steps(driver.lines), default=0) >= 8, description="step 8")
    training = [node for node in cluster.local.nodes if node.processes("RayTrainWorker")]
    assert len(training) == 2
    deadline = cluster.drain(training[which], NOTICE_SECONDS)
    driver.until(r"a node will be preempted in \d+ s: a checkpoint was saved")
    wait_until(lambda: time.time() >= deadline, description="the deadline")
    training[which].kill()
    restarted = driver.until("workers: 1")
    driver.until(r"step [\d,]+/.*loss", after=restarted)
    before = steps(driver.lines[:restarted])
    assert before == list(range(1, before[-1] + 1))
    assert before[-1] - steps(driver.lines)[len(before)] + 1 <= 1
    driver.process.terminate()
    assert driver.end() == 75, driver.output
