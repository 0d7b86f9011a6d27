"""The disk of the workspace fills up while the pipeline runs. (On Ray: tests/cluster/test_disk.py.)"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.storage import tables
from proposals import job
from tests.small_disk import fill, small_disk
from tests.workflows.commands import LOCAL, TINY, call
from workflows import train_pipeline


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB."""
    with small_disk(tmp_path, 48) as folder:
        yield folder


def test_a_full_disk_gives_a_message_and_committed_tables_stay_complete(
    disk: Path, make_store: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = disk / "w"
    make_store(workspace)
    make, images, before = job.make_proposals, str(workspace / "images"), []

    def on_a_full_disk(*given: Any, **options: Any) -> Any:
        before.extend(tables.iter_rows(images))
        fill(disk)
        return make(*given, **options)

    monkeypatch.setattr(job, "make_proposals", on_a_full_disk)
    command = ("--workspace", str(workspace), *TINY, *LOCAL)
    done = call(train_pipeline.main, *command)
    assert done.returncode == 2, done.stderr
    assert "error:" in done.stderr and "full" in done.stderr.lower() and "Traceback" not in done.stdout + done.stderr
    assert before and list(tables.iter_rows(images)) == before
    assert not [path for path in workspace.rglob(".*") if path.is_file()], "incomplete files were left"
    (disk / "ballast").unlink()
    again = call(train_pipeline.main, *command, "--dry-run")
    assert again.returncode == 0 and "prepare" in again.stdout and "complete" in again.stdout, again
