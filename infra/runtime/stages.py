"""Stages: a job with a name, inputs, outputs and a fingerprint, so that a pipeline run twice does nothing twice.

A stage's fingerprint is made from its name, its code's version, the settings that matter to it and its inputs' content keys.
Its record is written last; it stands if the record carries the same fingerprint and its outputs are still there.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from infra import storage


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """What a finished stage left: `key` names its content (the fingerprint, unless the stage knows better).

    `recipe` is what the fingerprint is made of without the inputs: records of two workspaces with one recipe differ by their data.
    """

    fingerprint: str
    recipe: str
    inputs: list[str]
    key: str
    seconds: float
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """`run(fingerprint)` makes `outputs` and returns a JSON-able summary; a "key" in it becomes the content key."""

    name: str
    title: str
    version: int  # raise it when the stage's code makes something else of the same inputs
    settings: Mapping[str, Any]
    inputs: Sequence[str]
    outputs: Sequence[str]
    run: Callable[[str], dict[str, Any]]

    @property
    def recipe(self) -> str:
        """What it does, whatever its inputs hold."""
        return digest([self.name, self.version, dict(self.settings)])


@dataclass(frozen=True)
class Planned:
    """A stage as it stands: `fingerprint` is None while an input has yet to be made."""

    stage: Stage
    fingerprint: str | None
    record: Record | None

    @property
    def done(self) -> bool:
        return self.record is not None


def record_uri(workspace: str, stage: str) -> str:
    """Where the record of the stage of this name lies."""
    return storage.join(workspace, "stages", f"{stage}.json")


def recorded(workspace: str, stage: str) -> Record | None:
    """What the stage of this name left in the workspace when it was last finished; None where it wasn't."""
    try:
        return Record(**storage.read_json(record_uri(workspace, stage)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def standing(workspace: str, stage: str) -> Record | None:
    """The record of the stage of this name, if what it was made from is what its inputs hold: None where one was made anew since."""
    record = recorded(workspace, stage)
    if record is None:
        return None
    inputs = [standing(workspace, name) for name in record.inputs]
    keys = [each.key for each in inputs if each]
    return record if len(keys) == len(inputs) and record.fingerprint == _fingerprint(record.recipe, keys) else None


def _fingerprint(recipe: str, keys: Sequence[str]) -> str:
    return digest([recipe, list(keys)])


class Stages:
    """The stages of a workspace, in the order they run."""

    def __init__(self, workspace: str, stages: Sequence[Stage]) -> None:
        self.workspace = workspace
        self.stages = list(stages)

    def _record(self, stage: Stage, fingerprint: str) -> Record | None:
        record = recorded(self.workspace, stage.name)
        stands = record and record.fingerprint == fingerprint and all(storage.exists(uri) for uri in stage.outputs)
        return record if stands else None

    def _fingerprint(self, stage: Stage, keys: Mapping[str, str]) -> str | None:
        if any(name not in keys for name in stage.inputs):
            return None
        return _fingerprint(stage.recipe, [keys[name] for name in stage.inputs])

    def plan(self) -> list[Planned]:
        """How every stage stands; nothing is run."""
        keys: dict[str, str] = {}
        planned = []
        for stage in self.stages:
            fingerprint = self._fingerprint(stage, keys)
            record = self._record(stage, fingerprint) if fingerprint else None
            if record:
                keys[stage.name] = record.key
            planned.append(Planned(stage, fingerprint, record))
        return planned

    def run(
        self,
        around: Callable[[Stage, str, Callable[[], dict[str, Any]]], dict[str, Any]],
        skipped: Callable[[Stage, Record], None],
        go_on: Callable[[Stage], bool] = lambda stage: True,
    ) -> dict[str, Record]:
        """Run what doesn't stand, in order. `around(stage, fingerprint, run)` calls `run` (to log it, say); returns the records by name.

        `go_on(stage)`, asked after each, ends it by False.
        """
        keys: dict[str, str] = {}
        records: dict[str, Record] = {}
        for stage in self.stages:
            fingerprint = self._fingerprint(stage, keys)
            assert fingerprint is not None, f"{stage.name} stands before its inputs"
            record = self._record(stage, fingerprint)
            if record:
                skipped(stage, record)
            else:
                record = self._make(stage, fingerprint, around)
            keys[stage.name] = record.key
            records[stage.name] = record
            if not go_on(stage):
                break
        return records

    def _make(self, stage: Stage, fingerprint: str, around: Callable[..., dict[str, Any]]) -> Record:
        # From here on the outputs may be those of neither: an old record must not vouch for them.
        storage.remove(record_uri(self.workspace, stage.name))
        started = time.monotonic()
        summary = dict(around(stage, fingerprint, lambda: stage.run(fingerprint)))
        key = str(summary.pop("key", fingerprint))
        record = Record(fingerprint, stage.recipe, list(stage.inputs), key, round(time.monotonic() - started, 1), summary)
        storage.write_json(record_uri(self.workspace, stage.name), asdict(record))
        return record
