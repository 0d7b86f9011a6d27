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
from tests.workflows.commands import LOCAL, TINY, command

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small file system can't be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Fill the disk with a file and return the file."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**12))
    return ballast


def run(workspace: Path, *arguments: str) -> Driver:
    """Start the pipeline on small generated data."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    return start(command("--workspace", str(workspace), *TINY, *arguments), environment | {"PYTHONUNBUFFERED": "1"})


@pytest.mark.parametrize(
    ("when", "table", "where"),
    [
        ("proposals", "images", LOCAL),
        pytest.param("stage1", "proposals", [], marks=(pytest.mark.cluster, pytest.mark.ray)),
    ],
)
def test_a_full_disk_gives_a_message_and_committed_tables_stay_complete(
    disk: Path, when: str, table: str, where: list[str]
) -> None:
    driver = run(disk / "w", *where)
    driver.until(rf"\] {when}:")
    before = list(tables.iter_rows(str(disk / "w" / table)))
    ballast = fill(disk)
    assert driver.end() == 2, driver.output
    assert "error:" in driver.output and "full" in driver.output.lower() and "Traceback" not in driver.output
    assert list(tables.iter_rows(str(disk / "w" / table))) == before
    left = [p for p in (disk / "w").rglob(".*") if p.is_file() and p.name != ".validate_storage_marker"]  # Ray's own
    assert not left, "incomplete files were left"
    ballast.unlink()
    again = run(disk / "w", *where, *(["--dry-run"] if when == "proposals" else []))  # a whole run takes long
    assert again.end() == 0, again.output
    assert re.search(r"prepare .*complete|prepare: complete, not run again", again.output)
