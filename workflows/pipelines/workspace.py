"""Define the layout of a pipeline's workspace: the URIs of its tables, models, report and lock."""

import getpass
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Literal

from infra import storage
from infra.runtime.stages import digest, read_record
from infra.storage import tables
from infra.storage.lock import Lock, LockRecord, hold_lock
from infra.storage.lock import read_record as read_lock

LOCK = "workspace.lock"
"""Name of the lock file in a workspace. Every command that writes to the workspace holds this lock."""
WAIT_SECONDS = 2.0
"""Seconds between two attempts to take the lock of a workspace."""
ExampleTable = tuple[str, Literal[1, 2], Literal["train", "dev"]]
"""The name of a table of training crops, its training stage of DeconvNet, and the split that its crops are cut from."""
EXAMPLE_TABLES: tuple[ExampleTable, ...] = (
    ("stage1", 1, "train"),
    ("stage1_dev", 1, "dev"),
    ("stage2", 2, "train"),
    ("stage2_dev", 2, "dev"),
)
"""The tables of training crops."""
STAGE_OF_TABLE = {
    "images": "prepare",
    "proposals": "proposals",
    **{f"examples/{name}": "examples" for name, _, _ in EXAMPLE_TABLES},
}
"""The stage that makes each versioned table of a workspace, by the name of the table."""

GENERATION_NAME_FORMAT = "%Y%m%d-%H%M%S"
"""Format of the names of generations (retraining runs), which name their folders."""
TABLES_TAG = "tables"
"""Name of the tag of a registered model that says which versions of the tables it was made from."""

logger = logging.getLogger(__name__)


def parent_workspace(workspace: str) -> str:
    """Return the URI of the workspace that holds a generation, given the URI of the generation's workspace.

    The path of a generation's workspace ends like WORKSPACE/generations/20260131-235959. The URI of any other workspace is
    returned as it is.

    Args:
        workspace: URI of a workspace.
    """
    parent, *rest = workspace.rstrip("/").rsplit("/", 2)
    return parent if len(rest) == 2 and rest[0] == "generations" and is_generation(rest[1]) else workspace


def is_generation(name: str) -> bool:
    """Return whether a folder's name is that of a generation, such as "20260131-235959". Other folders are the user's own."""
    try:
        return f"{datetime.strptime(name, GENERATION_NAME_FORMAT):{GENERATION_NAME_FORMAT}}" == name
    except ValueError:
        return False


@contextmanager
def hold_workspace(
    workspace: str,
    command: str,
    minutes: float = 15,
    held: list[Lock] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    replace_lost_run: bool = False,
) -> Iterator[Lock]:
    """Hold the lock of a workspace for the duration of a `with` statement, so that no other command writes to the workspace.

    For the workspace of a generation, the parent workspace is locked as well: it holds the generation's tables, and a retraining
    in it may delete the generation.

    Args:
        workspace: folder or bucket prefix. A missing local folder is created.
        command: name of the command, such as "train_pipeline.py", for the message that other commands get.
        minutes: time without a sign of life after which another command may take the lock over.
        held: locks of the outer workspaces, which the caller already holds. The function appends the locks that it takes, and
            removes them when it releases them. If the list is not empty and another command holds the lock of this workspace,
            that command has probably lost the outer lock and will stop soon, so the function waits for up to `minutes`.
        should_stop: called while waiting. Once it returns True, this function waits no longer.
        replace_lost_run: what to do if another command holds the lock. False: raise Locked at once. True: wait. If the holder
            renews the lock, it is alive, and Locked is raised. If the lock expires, the holder is dead, and the lock is taken.

    Yields:
        The lock of this workspace.

    Raises:
        UserError: if the workspace can't be written to, or an S3 server does not support locks.
        Locked: if another command holds the lock.
        Interrupted: if an outer lock is lost, or this lock is lost before the `with` block ends. Another command may then have
            written to the workspace. Interrupted replaces any exception raised in the block, because the lost lock is its
            likely cause.
    """
    held = [] if held is None else held
    if not held and (parent := parent_workspace(workspace)) != workspace:
        with (
            hold_workspace(parent, command, minutes, held, should_stop, replace_lost_run),
            hold_workspace(workspace, command, minutes, held, should_stop) as lock,
        ):
            yield lock
        return
    storage.check_writable(workspace, locks=True)
    for each in held:
        each.check()
    uri = storage.join(workspace, LOCK)
    waiter = _Waiter(uri, minutes if held else None, should_stop, replace_lost_run)
    with hold_lock(uri, f"{command}{_of_user()}", 60 * minutes, waiter.wait) as lock:
        held.append(lock)
        try:
            yield lock
        except Exception:
            lock.check()
            raise
        finally:
            held.remove(lock)
        lock.check()


def _of_user() -> str:
    """Return the name of this process's user for messages, such as " of anne". "" if it has none, as in a container."""
    try:
        return f" of {getpass.getuser()}"
    except (OSError, KeyError):
        return ""


class _Waiter:
    """The policy for a workspace lock that another command holds: wait and try again, or give up."""

    def __init__(self, uri: str, minutes: float | None, should_stop: Callable[[], bool], replace_lost_run: bool) -> None:
        """Start the waiting time.

        Args:
            uri: the lock file.
            minutes: longest time to wait for a holder that should stop soon. None if it is not expected to stop.
            should_stop: once it returns True, there is no further wait.
            replace_lost_run: True to wait until the holder renews the lock or the lock expires.
        """
        self._uri, self._should_stop, self._replace_lost_run = uri, should_stop, replace_lost_run
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._first: LockRecord | None = None  # the content of the lock file at the first look

    def wait(self) -> bool:
        """Wait a moment, and return True to try again. If waiting is useless, return False."""
        if self._should_stop():
            return False
        if self._deadline is not None:
            if time.monotonic() > self._deadline:
                return False
            logger.info(f"  another run is still at work in {self._uri.removesuffix(f'/{LOCK}')}: waiting until it ends")
        elif not self._replace_lost_run or not self._may_be_lost():
            return False
        time.sleep(WAIT_SECONDS)
        return True

    def _may_be_lost(self) -> bool:
        """Return whether the holder has not renewed the lock since the first look, or there is no holder any more."""
        now = read_lock(self._uri)
        if self._first is None and now is not None:
            self._first = now
            logger.info(f"  {now.who} holds the lock {self._uri}: waiting until it renews the lock, or until the lock expires")
        return now is None or now == self._first or now.expires == 0


class Workspace:
    """A workspace: the folder or bucket prefix that holds the tables, models and report of a pipeline run.

    The workspace of a generation (a retraining run) has no tables of its own: it uses versions of the tables of the parent
    workspace. The records of its stages say which.

    Attributes:
        root: path or URI of the workspace.
        tables_root: URI of the workspace that holds the tables, which is another one for a generation.
    """

    def __init__(self, root: str) -> None:
        """Store the root of the workspace. Nothing is read or written.

        Args:
            root: local folder or bucket prefix.
        """
        self.root = root
        self.tables_root = parent_workspace(root)
        self._versions: dict[str, int] = {}  # those that this process has made or chosen since

    @property
    def images(self) -> str:
        """Return the URI of the workspace's version of the table `images`, which holds the images with their masks and splits."""
        return self.table("images")

    @property
    def proposals(self) -> str:
        """Return the URI of the workspace's version of the table `proposals`, which holds boxes that may contain objects."""
        return self.table("proposals")

    def table_folder(self, name: str) -> str:
        """Return the URI of the folder of a table with all its versions.

        Args:
            name: name of the table, one of `STAGE_OF_TABLE`.
        """
        return storage.join(self.tables_root, name)

    def version(self, name: str) -> int | None:
        """Return the number of the workspace's version of a table, or None if its stage has no record.

        Args:
            name: name of the table, one of `STAGE_OF_TABLE`.
        """
        if name in self._versions:
            return self._versions[name]
        record = read_record(self.root, STAGE_OF_TABLE[name])
        return record.tables[name][0] if record and name in record.tables else None

    def table(self, name: str) -> str:
        """Return the URI of the workspace's version of a table, for reading.

        If its stage has no record, this is the latest version of the table in the workspace's own folder, if there is one.

        Args:
            name: name of the table, one of `STAGE_OF_TABLE`.
        """
        version = self.version(name)
        return self.uri(name) if version is None else tables.at_version(self.table_folder(name), version)

    def versions(self) -> dict[str, str]:
        """Return the workspace's versions of the tables by the names of the tables, as texts such as "images@12"."""
        found = {name: self.version(name) for name in STAGE_OF_TABLE}
        return {name: tables.at_version(name, version) for name, version in found.items() if version is not None}

    def use_version(self, name: str, version: int) -> None:
        """Make this object use a version of a table that its stage has made or chosen but not yet recorded.

        Args:
            name: name of the table, one of `STAGE_OF_TABLE`.
            version: number of the version.
        """
        self._versions[name] = version

    def identity(self, create: bool = True) -> str:
        """Return the identity of the workspace, a random text in its file workspace.json. It does not change with the location.

        Args:
            create: True to choose and store an identity if the workspace has none yet.

        Returns:
            The identity. "" if the workspace has none and `create` is False.
        """
        file = self.uri("workspace.json")
        if create and not storage.exists(file):
            storage.compare_and_swap(file, None, f'{{"id": "{uuid.uuid4().hex}"}}\n'.encode())
        return str(storage.read_json(file)["id"]) if storage.exists(file) else ""

    def uri(self, *parts: str) -> str:
        """Return the URI of a file or folder of the workspace. The names `parts` are joined to its path in the workspace."""
        return storage.join(self.root, *parts)

    def examples(self, table: str) -> str:
        """Return the URI of the workspace's version of a table of training crops.

        Args:
            table: name of the table: "stage1", "stage1_dev", "stage2" or "stage2_dev". The number is the training stage of
                DeconvNet, and `_dev` marks the crops of the dev images.
        """
        return self.table(f"examples/{table}")

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
        commits = [tables.read_commit(self.table(name)) for name in STAGE_OF_TABLE]
        found = sorted({(r.image_id, r.path, r.stage, r.reason) for commit in commits if commit for r in commit.rejects})
        rows = [dict(zip(tables.REJECTS.names, row, strict=True)) for row in found]
        fingerprint = digest(rows)
        part = tables.write_part(self.uri("rejects"), fingerprint, 0, rows, tables.REJECTS)
        tables.commit(self.uri("rejects"), fingerprint, [part])

    def num_rejects(self) -> int:
        """Return the number of rejected inputs in the table `rejects`. It is 0 if there is no such table."""
        commit = tables.read_commit(self.uri("rejects"))
        return commit.rows if commit else 0
