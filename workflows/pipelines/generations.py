"""Keep the workspaces of retraining runs. Each run is called a generation and has a folder below WORKSPACE/generations.

A workspace and its generations share one set of tables. The records of their stages name the versions that they use, and a
registered model has a tag with the versions that it was made from. `prune_tables` deletes all other versions.

The folder of a generation has a file `generation.json`. This file is written first, and records from which model and data the
generation started. Its field `finished` is set last. A folder without this file is left over from an interrupted deletion.

In this module, an argument called `workspace` is the URI of the parent workspace, which holds all generations. The champion is
the registered model version in use.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow.fs as pafs

from deconvnet.tracking.promotion import champion_tags
from infra import storage
from infra.errors import UserError
from infra.runtime.stages import read_record
from infra.storage import tables
from infra.storage.lock import Lock, check_held
from workflows.pipelines.workspace import GENERATION_NAME_FORMAT, STAGE_OF_TABLE, TABLES_TAG, Workspace, is_generation

GENERATION_FILE = "generation.json"
"""Name of the file in a generation's folder that describes the generation."""
UNCHANGED_FILE = "seen.json"
"""File in generations/: digest of the data files that a retraining last found unchanged, and key of the table compared with."""
CHECKPOINTS = ("train", "init")
"""Folders in a generation's workspace that are deleted once it is finished, because its networks are in the folder models/."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generation:
    """A generation: one retraining run and its workspace.

    Attributes:
        name: name of its folder, such as "20260131-235959".
        previous: URI of the complete workspace to compare the images with. None if there is none.
        version: number of the registered model version that the new model has to beat. None if there is no such version.
        forced: True to train even if no image or mask is new.
        finished: True once the run has finished.
        outcome: the decision of the run, with the keys "version" (number of the new version), "champion" (number of the version
            in use afterwards), "promoted" (bool) and "why" (a sentence). None until the run is finished.
    """

    name: str
    previous: str | None
    version: int | None
    forced: bool = False
    finished: bool = False
    outcome: dict[str, Any] | None = None


def folder(workspace: str, name: str = "") -> str:
    """Return the URI of a generation's folder, or of the folder that contains all generations if no name is given.

    Args:
        workspace: URI of the parent workspace.
        name: name of the generation, or of another file in the folder of all generations. "" for this folder itself.
    """
    return storage.join(workspace, "generations", name).rstrip("/")


def new_name(every: Sequence[Generation], now: datetime | None = None) -> str:
    """Make the name of a new generation from a time. Sorting the names sorts the generations by age.

    Args:
        every: all generations, oldest first. The new name comes after theirs, even if the clock was set back since.
        now: the time in UTC. None for the current time.

    Returns:
        A name such as "20260131-235959".
    """
    time = (datetime.now(UTC) if now is None else now).replace(tzinfo=None, microsecond=0)
    earlier = [datetime.strptime(each.name, GENERATION_NAME_FORMAT) for each in every if is_generation(each.name)]
    return f"{max([time, *(each + timedelta(seconds=1) for each in earlier)]):{GENERATION_NAME_FORMAT}}"


def is_marked_unchanged(workspace: str, fingerprint: str, key: str) -> bool:
    """Return whether these data files are recorded as unchanged: `mark_unchanged` was last called with the same arguments."""
    try:
        return bool(storage.read_json(folder(workspace, UNCHANGED_FILE)) == [fingerprint, key])
    except FileNotFoundError:
        return False


def mark_unchanged(workspace: str, fingerprint: str, key: str) -> None:
    """Record that the data files have new modification times but the same content, so the next retraining needn't read them.

    Args:
        workspace: URI of the parent workspace.
        fingerprint: digest of the stage `prepare`: its code version, its settings, and the names, sizes and times of the files.
        key: content key of the table of images with which the files were compared.
    """
    storage.write_json(folder(workspace, UNCHANGED_FILE), [fingerprint, key])


def write(workspace: str, generation: Generation) -> None:
    """Write the file `generation.json` of a generation, in place of an earlier one.

    Args:
        workspace: URI of the parent workspace.
        generation: the generation.
    """
    storage.write_json(storage.join(folder(workspace, generation.name), GENERATION_FILE), asdict(generation))


def finish(workspace: str, generation: Generation, outcome: dict[str, Any]) -> Generation:
    """Mark a generation as finished, also in its file `generation.json`.

    Args:
        workspace: URI of the parent workspace.
        generation: the generation.
        outcome: decision of the run, with the keys "version", "champion", "promoted" and "why", as described in `Generation`.

    Returns:
        A copy of the generation that has the outcome and is finished.
    """
    done = replace(generation, finished=True, outcome=outcome)
    write(workspace, done)
    return done


def read_all(workspace: str) -> list[Generation]:
    """Read all generations of a workspace, finished or not.

    Args:
        workspace: URI of the parent workspace.

    Returns:
        The generations, oldest first.

    Raises:
        UserError: if a `generation.json` was not written by this version of the program.
    """
    found = []
    for name in _names(workspace):
        uri = storage.join(folder(workspace, name), GENERATION_FILE)
        if storage.exists(uri):
            try:
                found.append(Generation(**storage.read_json(uri)))
            except (ValueError, TypeError):
                raise UserError(
                    f"{uri} was not written by this version of the program: delete its folder, or correct the file"
                ) from None
    return sorted(found, key=lambda generation: generation.name)


def _names(workspace: str) -> list[str]:
    """Return the sorted names of all generations' folders, including folders that an interrupted deletion has left.

    Folders with names of another form, such as a user's copy of a generation, are left out.
    """
    fs, path = storage.filesystem(folder(workspace))
    infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory and is_generation(info.base_name))


def names_to_keep(generations: list[Generation], champion: int | None, keep: int) -> set[str]:
    """Choose the generations to keep. Nothing is deleted.

    Args:
        generations: all generations, oldest first.
        champion: number of the champion. None if there is none.
        keep: number of finished generations to keep.

    Returns:
        The names of all unfinished generations, of the newest `keep` finished ones, and of the one that trained the champion.
    """
    finished = [g for g in generations if g.finished]
    stay = [g for g in generations if not g.finished] + finished[-keep:]
    stay += [g for g in finished if champion is not None and (g.outcome or {}).get("version") == champion]
    return {g.name for g in stay}


def remove(workspace: str, name: str) -> None:
    """Delete a generation's folder with everything in it. The file `generation.json` is deleted first.

    Args:
        workspace: URI of the parent workspace.
        name: name of the generation.
    """
    storage.remove(storage.join(folder(workspace, name), GENERATION_FILE))  # first: a partial deletion must not look complete
    storage.remove(folder(workspace, name))


def prune(workspace: str, champion: int | None, keep: int) -> list[str]:
    """Delete old generations, and the training checkpoints of the finished generations that are kept.

    Folders whose names do not have the form of a generation's name, such as a user's copies, are left alone.

    Args:
        workspace: URI of the parent workspace.
        champion: number of the champion. The generation that trained it is kept. None if there is no champion.
        keep: number of finished generations to keep, the newest ones. Unfinished generations are kept, too.

    Returns:
        The names of the deleted generations.
    """
    generations = read_all(workspace)
    stay = names_to_keep(generations, champion, keep)
    gone = [name for name in _names(workspace) if name not in stay]
    for name in gone:
        remove(workspace, name)
    for generation in generations:
        if generation.finished and generation.name in stay:
            for part in CHECKPOINTS:
                storage.remove(storage.join(folder(workspace, generation.name), part))
    return gone


def used_versions(workspace: str) -> defaultdict[str, set[int]]:
    """Find the versions that the stages of a workspace and of its generations have made or chosen, by the names of the tables.

    Args:
        workspace: URI of the parent workspace.
    """
    found: defaultdict[str, set[int]] = defaultdict(set)
    every = [folder(workspace, each.name) for each in read_all(workspace)]
    for root in (workspace, *every):
        for stage in set(STAGE_OF_TABLE.values()):
            record = read_record(root, stage)
            for name, (version, _) in record.tables.items() if record else ():
                found[name].add(version)
    return found


def prune_tables(workspace: str, champion: Mapping[str, str], lock: Lock) -> None:
    """Delete those files of the tables that are not part of any version in use.

    Versions that the workspace, a generation or the champion uses are kept, and the latest ones.

    Args:
        workspace: URI of the parent workspace.
        champion: tags of the champion. {} if there is none.
        lock: lock of the workspace, which the caller holds.

    Raises:
        Interrupted: if another run has taken the lock.
    """
    used = used_versions(workspace)
    for text in champion.get(TABLES_TAG, "").split():
        name, _, version = text.rpartition("@")
        used[name].add(int(version))
    for name in STAGE_OF_TABLE:
        table = storage.join(workspace, name)
        check_held(lock)
        if deleted := tables.prune(table, used[name]):
            versions = ", ".join(map(str, tables.kept_versions(table)))
            logger.info(f"  {name}: {deleted:,} files of unused versions were deleted; kept: {versions}")


def prune_tables_after_run(workspace: str, store: str, model: str, lock: Lock) -> None:
    """Delete, at the end of a run, those files of the tables that are not part of any version in use.

    If it is not known which versions the champion uses, nothing is deleted, and the log says why: MLflow does not answer, or
    tracking is switched off in a workspace that has registered models.

    Args:
        workspace: URI of the parent workspace.
        store: URI of the MLflow store. "" if tracking is switched off.
        model: name of the registered model.
        lock: lock of the workspace, which the caller holds.

    Raises:
        Interrupted: if another run has taken the lock.
    """
    if not store and Workspace(workspace).identity(create=False):
        logger.info("  old versions of the tables are kept, as tracking.enabled is false and a registered model may use them")
        return
    try:
        champion = champion_tags(store, model) if store else {}
    except UserError as error:
        logger.warning(f"old versions of the tables were not deleted: {error}")
        return
    prune_tables(workspace, champion, lock)
