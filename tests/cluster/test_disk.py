"""The disk of the workspace fills up while the pipeline runs."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from infra.storage import tables
from tests.cluster.conftest import Driver, start
from tests.workflows.test_train_pipeline import TINY, command

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", place], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"needs a small disk, and mounting one is not allowed here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path) -> Path:
    """Leave nothing on the disk; the file that fills it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**12))
    return ballast


def run(workspace: Path, *arguments: str) -> Driver:
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    return start(command("--workspace", str(workspace), *TINY, *arguments), environment | {"PYTHONUNBUFFERED": "1"})


@pytest.mark.parametrize(
    ("when", "table"), [("proposals", "images"), pytest.param("stage1", "proposals", marks=pytest.mark.cluster)]
)
def test_a_full_disk_is_said_and_what_was_committed_stands(disk: Path, when: str, table: str) -> None:
    driver = run(disk / "w")
    driver.until(rf"\] {when}:")
    before = list(tables.iter_rows(str(disk / "w" / table)))
    ballast = fill(disk)
    assert driver.end() == 2, driver.said
    assert "error:" in driver.said and "full" in driver.said.lower() and "Traceback" not in driver.said
    assert list(tables.iter_rows(str(disk / "w" / table))) == before
    left = [p for p in (disk / "w").rglob(".*") if p.is_file() and p.name != ".validate_storage_marker"]  # which is Ray's
    assert not left, "half-written files were left"
    ballast.unlink()
    again = run(disk / "w", *(["--dry-run"] if when == "proposals" else []))  # a whole run takes its time
    assert again.end() == 0, again.said
    assert re.search(r"prepare .*stands|prepare: stands, not run again", again.said)
