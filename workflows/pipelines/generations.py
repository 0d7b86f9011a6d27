"""Generations: the workspaces that retraining makes below WORKSPACE/generations, one for each run, and which of them are kept.

`generation.json` is written first and holds what the generation was begun with; `finished` is set last. A folder without the file is
what an interrupted deletion left.
"""

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow.fs as pafs

from infra import storage
from infra.errors import UserError

FILE = "generation.json"
UNCHANGED = "seen.json"
CHECKPOINTS = ("train", "init")
"""Folders that a finished generation no longer needs: its networks are in models/."""


@dataclass(frozen=True)
class Generation:
    """One retraining.

    Attributes:
        name: of its folder.
        previous: the complete workspace that it is compared with, or None.
        version: the registered version to beat, or None.
        forced: whether it trains even if nothing is new.
        finished: whether it has run to its end.
        outcome: what it decided, once finished: "version", "champion", "promoted", "why".
    """

    name: str
    previous: str | None
    version: int | None
    forced: bool = False
    finished: bool = False
    outcome: dict[str, Any] | None = None


def folder(workspace: str, name: str = "") -> str:
    """Return the folder of a generation; without a name, that of all generations."""
    return storage.join(workspace, "generations", name).rstrip("/")


def new_name(now: datetime | None = None) -> str:
    """Make a generation's name of the time (None: the present), in UTC. Names sort by age."""
    return f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}"


def unchanged_fingerprint(workspace: str) -> str | None:
    """Read what `mark_unchanged` wrote last; None if nothing was written."""
    try:
        return str(storage.read_json(folder(workspace, UNCHANGED)))
    except FileNotFoundError:
        return None


def mark_unchanged(workspace: str, fingerprint: str) -> None:
    """Note the fingerprint of files that hold nothing new though their times differ, so that they need not be read again."""
    storage.write_json(folder(workspace, UNCHANGED), fingerprint)


def write(workspace: str, generation: Generation) -> None:
    """Write a generation's file."""
    storage.write_json(storage.join(folder(workspace, generation.name), FILE), asdict(generation))


def finish(workspace: str, generation: Generation, outcome: dict[str, Any]) -> Generation:
    """Mark a generation as finished, with its outcome; returns it."""
    done = replace(generation, finished=True, outcome=outcome)
    write(workspace, done)
    return done


def read_all(workspace: str) -> list[Generation]:
    """Read all generations, oldest first. Raises UserError if a file is not one of this version's."""
    found = []
    for name in _names(workspace):
        uri = storage.join(folder(workspace, name), FILE)
        if storage.exists(uri):
            try:
                found.append(Generation(**storage.read_json(uri)))
            except (ValueError, TypeError):
                raise UserError(f"{uri} was not written by this version: delete its folder, or what it lacks") from None
    return sorted(found, key=lambda generation: generation.name)


def _names(workspace: str) -> list[str]:
    """List the folders of generations, complete or not."""
    fs, path = storage.filesystem(folder(workspace))
    infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def kept(generations: list[Generation], champion: int | None, keep: int) -> set[str]:
    """Choose the generations to keep.

    Args:
        generations: all, oldest first.
        champion: registered version that is the champion, or None.
        keep: how many finished ones are kept.

    Returns:
        the names of unfinished ones, of the newest `keep` finished ones, and of the one that made the champion.
    """
    finished = [g for g in generations if g.finished]
    stay = [g for g in generations if not g.finished] + finished[-keep:]
    stay += [g for g in finished if champion is not None and (g.outcome or {}).get("version") == champion]
    return {g.name for g in stay}


def remove(workspace: str, name: str) -> None:
    """Delete a generation."""
    storage.remove(storage.join(folder(workspace, name), FILE))  # first, so that a partly deleted generation does not look complete
    storage.remove(folder(workspace, name))


def prune(workspace: str, champion: int | None, keep: int) -> list[str]:
    """Delete the generations that `kept` does not name, and the training checkpoints of finished ones; returns the names deleted."""
    generations = read_all(workspace)
    stay = kept(generations, champion, keep)
    gone = [name for name in _names(workspace) if name not in stay]
    for name in gone:
        remove(workspace, name)
    for generation in generations:
        if generation.finished and generation.name in stay:
            for part in CHECKPOINTS:
                storage.remove(storage.join(folder(workspace, generation.name), part))
    return gone
