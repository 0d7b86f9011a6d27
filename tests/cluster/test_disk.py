"""The disk of the workspace fills up while the pipeline runs on Ray. (Without Ray: tests/workflows/test_full_disk.py.)"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.storage import tables
from tests.cluster.conftest import Driver, start
from tests.small_disk import fill, small_disk
from tests.workflows.commands import TINY, command

pytestmark = [pytest.mark.timeout(300), pytest.mark.cluster, pytest.mark.ray]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB."""
    with small_disk(tmp_path, 48) as folder:
        yield folder


def run(workspace: Path) -> Driver:
    """Start the pipeline on small generated data."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    return start(command("--workspace", str(workspace), *TINY), environment | {"PYTHONUNBUFFERED": "1"})


def test_a_full_disk_gives_a_message_and_committed_tables_stay_complete(disk: Path) -> None:
    driver = run(disk / "w")
    driver.until(r"\] stage1:")
    before = list(tables.iter_rows(str(disk / "w" / "proposals")))
    ballast = fill(disk)
    assert driver.end() == 2, driver.output
    assert "error:" in driver.output and "full" in driver.output.lower() and "Traceback" not in driver.output
    assert list(tables.iter_rows(str(disk / "w" / "proposals"))) == before
    left = [p for p in (disk / "w").rglob(".*") if p.is_file() and p.name != ".validate_storage_marker"]  # Ray's own
    assert not left, "incomplete files were left"
    ballast.unlink()
    again = run(disk / "w")
    assert again.end() == 0, again.output
    assert re.search(r"prepare: complete, not run again", again.output)
