"""Run commands in forked processes, so that each need not import everything, and read what they have registered in MLflow.

Nothing here starts a thread or opens MLflow before it forks.
"""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from workflows import cli


def fork(command: Callable[[], None], log: Path) -> int:
    """Run a command in a child process, the leader of a new session whose output goes to a file, and return its process id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os._exit(cli.run(command))


class Registry(NamedTuple):
    """What the database of MLflow's registry holds.

    Attributes:
        versions: version, run id, source and status of each registered model.
        tags: tags by version.
        champion: the version with the alias champion; None if there is none.
        seeds: value of the parameter `seed` by run id.
    """

    versions: list[tuple[int, str, str, str]]
    tags: dict[int, dict[str, str]]
    champion: int | None
    seeds: dict[str, str]


def read_registry(store: Path) -> Registry:
    """Read the database of MLflow's registry, which may not exist or lack tables, because its process was killed."""
    empty = Registry([], {}, None, {})
    if not store.exists():
        return empty
    with closing(sqlite3.connect(store)) as database:
        if not database.execute("select 1 from sqlite_master where name = 'registered_model_aliases'").fetchone():
            return empty
        versions = database.execute("select version, run_id, source, status from model_versions").fetchall()
        tags: dict[int, dict[str, str]] = {version: {} for version, *_ in versions}
        for version, key, value in database.execute("select version, key, value from model_version_tags"):
            tags.setdefault(version, {})[key] = value
        champion = database.execute("select version from registered_model_aliases where alias = 'champion'").fetchone()
        seeds = dict(database.execute("select run_uuid, value from params where key = 'seed'").fetchall())
    return Registry(versions, tags, champion and champion[0], seeds)
