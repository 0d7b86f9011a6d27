"""Define the layout of a pipeline's workspace: the URIs of its tables, models, report and lock."""

import getpass
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal

from infra import storage
from infra.runtime.stages import digest
from infra.storage import tables
from infra.storage.lock import Lock, hold_lock

LOCK = "workspace.lock"
"""Name of the lock file in a workspace. Every command that writes to the workspace holds this lock."""
WAIT_SECONDS = 2.0
"""Seconds between two attempts to take the lock of a workspace that is inside another one."""
ExampleTable = tuple[str, Literal[1, 2], Literal["train", "dev"]]
"""The name of a table of training crops, its training stage of DeconvNet, and the split that its crops are cut from."""
EXAMPLE_TABLES: tuple[ExampleTable, ...] = (
    ("stage1", 1, "train"),
    ("stage1_dev", 1, "dev"),
    ("stage2", 2, "train"),
    ("stage2_dev", 2, "dev"),
)
"""The tables of training crops."""

logger = logging.getLogger(__name__)


@contextmanager
def hold_workspace(
    workspace: str,
    command: str,
    minutes: float = 15,
    outer: Sequence[Lock] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Lock]:
    """Hold the lock of a workspace for the duration of a `with` statement, so that no other command writes to the workspace.

    Args:
        workspace: folder or s3:// prefix. A missing local folder is created.
        command: name of the command, such as "train_pipeline.py", for the message that other commands get.
        minutes: time without a sign of life after which another command may take the lock over.
        outer: locks of workspaces around this one, which the caller holds. If another command holds the lock of this workspace
            in spite of them, it has probably lost an outer lock and is about to leave. Then this function waits for it, for
            `minutes` at most.
        should_stop: called while waiting. Once it returns True, this function waits no longer.

    Yields:
        The lock.

    Raises:
        UserError: if the workspace can't be written to, or an S3 server does not support locks.
        Locked: if another command holds the lock.
        Interrupted: if an outer lock is lost, or the lock was lost before the end of the `with` block. Another command may have
            written to the workspace meanwhile. Interrupted then replaces any other exception of the block, because the lost lock
            is its likely reason.
    """
    storage.check_writable(workspace, locks=True)
    user = ""
    with suppress(OSError, KeyError):  # a container's user need not have a name
        user = f" of {getpass.getuser()}"
    for each in outer:
        each.check()
    deadline = time.monotonic() + 60 * minutes

    def wait() -> bool:
        """Wait a moment for the holder of the lock to leave, and return True. If waiting is useless, return False."""
        if not outer or time.monotonic() > deadline or should_stop():
            return False
        logger.info(f"  another run is still at work in {workspace}: waiting for it to leave")
        time.sleep(WAIT_SECONDS)
        return True

    with hold_lock(storage.join(workspace, LOCK), command + user, 60 * minutes, wait) as lock:
        try:
            yield lock
        except Exception:
            lock.check()
            raise
        lock.check()


class Workspace:
    """A workspace: the folder or s3:// prefix that holds the tables, models and report of a pipeline run.

    Attributes:
        root: path or s3:// URI of the workspace.
        images: URI of the table `images`, which holds the images with their masks and splits.
        proposals: URI of the table `proposals`, which holds for each image the boxes that may contain objects.
        changes: URI of the table `changes`, which compares the images with those of an earlier workspace.
    """

    def __init__(self, root: str) -> None:
        """Store the root of the workspace. Nothing is read or written.

        Args:
            root: local folder or s3:// prefix.
        """
        self.root = root
        self.images, self.proposals, self.changes = (self.uri(table) for table in ("images", "proposals", "changes"))

    def identity(self, create: bool = True) -> str:
        """Return the identity of the workspace, a random text in its file workspace.json. It does not change with the location.

        Args:
            create: True to choose and store an identity if the workspace has none yet.

        Returns:
            The identity. "" if the workspace has none and `create` is False.
        """
        file = self.uri("workspace.json")
        if create and not storage.exists(file):
            storage.exchange(file, None, f'{{"id": "{uuid.uuid4().hex}"}}\n'.encode())
        return str(storage.read_json(file)["id"]) if storage.exists(file) else ""

    def uri(self, *parts: str) -> str:
        """Return the URI of a file or folder of the workspace. The names `parts` are joined to its path in the workspace."""
        return storage.join(self.root, *parts)

    def examples(self, table: str) -> str:
        """Return the URI of a table of training crops.

        Args:
            table: name of the table: "stage1", "stage1_dev", "stage2" or "stage2_dev". The number is the training stage of
                DeconvNet, and `_dev` marks the crops of the dev images.
        """
        return self.uri("examples", table)

    def model(self, stage: str) -> str:
        """Return the URI of the model folder that the training stage `stage` writes ("fcn8s", "stage1" or "stage2")."""
        return self.uri("models", stage)

    def report(self, *parts: str) -> str:
        """Return the URI of a file of the report.

        Args:
            *parts: names that are joined to the path of the file in the report's folder. Without them, the URI of this folder is
                returned.
        """
        return self.uri("report", *parts)

    def write_rejects(self) -> None:
        """Collect the rejected inputs of all tables made so far, and write them to the table `rejects`.

        A rejected input is an image that can't be used. It has a row with its id, its path, the stage and the reason. An earlier
        table is replaced.
        """
        names = (self.images, self.proposals, *(self.examples(name) for name, _, _ in EXAMPLE_TABLES))
        commits = [tables.read_commit(table) for table in names]
        found = sorted({(r.image_id, r.path, r.stage, r.reason) for commit in commits if commit for r in commit.rejects})
        rows = [dict(zip(tables.REJECTS.names, row, strict=True)) for row in found]
        fingerprint = digest(rows)
        part = tables.write_part(self.uri("rejects"), fingerprint, 0, rows, tables.REJECTS)
        tables.commit(self.uri("rejects"), fingerprint, [part])

    def num_rejects(self) -> int:
        """Return the number of rejected inputs in the table `rejects`. It is 0 if there is no such table."""
        commit = tables.read_commit(self.uri("rejects"))
        return commit.rows if commit else 0
