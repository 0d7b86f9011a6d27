"""Generations: the workspaces that retraining leaves in `WORKSPACE/generations`, one a run, and which of them are kept.

`generation.json` is written first and says what the generation was begun with; `finished` is added to it last. A folder without
it is rubbish that an interrupted pruning left.
"""

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow.fs as pafs

from infra import storage
from infra.errors import UserError

FILE = "generation.json"
SEEN = "seen.json"
CHECKPOINTS = ("train", "init")  # of a finished generation: its networks lie in models/


@dataclass(frozen=True)
class Generation:
    """One retraining. `previous` is the finished workspace it compares itself with, `version` the registered one it was to beat."""

    name: str
    previous: str | None
    version: int | None
    forced: bool = False  # trains even if nothing is new
    finished: bool = False
    outcome: dict[str, Any] | None = None  # of a finished one


def folder(workspace: str, name: str = "") -> str:
    """Where the generation lies."""
    return storage.join(workspace, "generations", name).rstrip("/")


def new_name(now: datetime | None = None) -> str:
    """A generation's name: the time it is begun, UTC; names sort by age."""
    return f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}"


def seen(workspace: str) -> str | None:
    """The fingerprint of the data's files (`mark_seen`) that were last found to hold nothing new."""
    try:
        return str(storage.read_json(folder(workspace, SEEN)))
    except FileNotFoundError:
        return None


def mark_seen(workspace: str, fingerprint: str) -> None:
    """Keep the fingerprint of files that hold nothing new, though their times differ: they need not be read again."""
    storage.write_json(folder(workspace, SEEN), fingerprint)


def write(workspace: str, generation: Generation) -> None:
    """Keep what is known of a generation."""
    storage.write_json(storage.join(folder(workspace, generation.name), FILE), asdict(generation))


def finish(workspace: str, generation: Generation, outcome: dict[str, Any]) -> Generation:
    """Mark it as finished, with what came of it."""
    done = replace(generation, finished=True, outcome=outcome)
    write(workspace, done)
    return done


def read_all(workspace: str) -> list[Generation]:
    """All generations, oldest first."""
    found = []
    for name in _names(workspace):
        place = storage.join(folder(workspace, name), FILE)
        if storage.exists(place):
            try:
                found.append(Generation(**storage.read_json(place)))
            except (ValueError, TypeError):
                raise UserError(f"{place} is not one of this version's: delete its folder, or what it lacks") from None
    return sorted(found, key=lambda generation: generation.name)


def _names(workspace: str) -> list[str]:
    """Folders of generations, whole or not."""
    fs, path = storage.filesystem(folder(workspace))
    infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)


def kept(generations: list[Generation], champion: int | None, keep: int) -> set[str]:
    """Names of those that stay: unfinished ones, the newest `keep` finished ones, and the one that made the champion."""
    finished = [g for g in generations if g.finished]
    stay = [g for g in generations if not g.finished] + finished[-keep:]
    stay += [g for g in finished if champion is not None and (g.outcome or {}).get("version") == champion]
    return {g.name for g in stay}


def remove(workspace: str, name: str) -> None:
    """Delete a generation."""
    storage.remove(storage.join(folder(workspace, name), FILE))  # first: what is half deleted must not look whole
    storage.remove(folder(workspace, name))


def prune(workspace: str, champion: int | None, keep: int) -> list[str]:
    """Delete what `kept` doesn't name, and the training checkpoints of finished generations; returns the names deleted."""
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
