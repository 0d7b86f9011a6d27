"""Stages: named pieces of a pipeline, each with inputs, outputs and a fingerprint, so that nothing complete is done twice.

A stage's fingerprint is a digest of its recipe (its name, its code's version and the settings that matter to it) and of the content
keys of its inputs. When a stage has run, a record with the fingerprint is written last. The stage is complete if the record has the
present fingerprint and all outputs still exist.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from infra import storage


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON-like value as hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """What is kept of a stage that has run.

    Attributes:
        fingerprint: that the stage had.
        recipe: digest of the stage without its inputs. Records of two workspaces with equal recipes differ by their data only.
        inputs: names of the stages it was made from.
        key: identifies the content of its outputs; the fingerprint, unless the stage returned a "key".
        seconds: how long it ran.
        summary: what its `run` returned.
    """

    fingerprint: str
    recipe: str
    inputs: list[str]
    key: str
    seconds: float
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A piece of a pipeline.

    Attributes:
        name: identifies it in the workspace.
        title: what it does, as it is shown.
        version: to be raised when the code comes to make something else of the same inputs.
        settings: JSON-like settings that its outputs depend on.
        inputs: names of the stages whose outputs it reads.
        outputs: URIs of files that exist once it has run.
        run: makes the outputs; called with the fingerprint. Returns a JSON-like summary, whose "key", if any, identifies the content.
    """

    name: str
    title: str
    version: int
    settings: Mapping[str, Any]
    inputs: Sequence[str]
    outputs: Sequence[str]
    run: Callable[[str], dict[str, Any]]

    @property
    def recipe(self) -> str:
        """Digest of everything the outputs depend on, besides the inputs' content."""
        return digest([self.name, self.version, dict(self.settings)])


@dataclass(frozen=True)
class StageStatus:
    """Whether a stage is complete.

    Attributes:
        stage: the stage.
        fingerprint: its present fingerprint; None while an input is not complete.
        record: its record if it is complete, else None.
    """

    stage: Stage
    fingerprint: str | None
    record: Record | None

    @property
    def complete(self) -> bool:
        """Whether the stage would be skipped."""
        return self.record is not None


def record_uri(workspace: str, stage: str) -> str:
    """Return the URI of a stage's record."""
    return storage.join(workspace, "stages", f"{stage}.json")


def read_record(workspace: str, stage: str) -> Record | None:
    """Read the record of the last complete run of a stage, which may be out of date; None if there is none."""
    try:
        return Record(**storage.read_json(record_uri(workspace, stage)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def up_to_date_record(workspace: str, stage: str) -> Record | None:
    """Read the record of a stage if it was made from the present content of its inputs; None if an input has changed since."""
    record = read_record(workspace, stage)
    if record is None:
        return None
    inputs = [up_to_date_record(workspace, name) for name in record.inputs]
    keys = [each.key for each in inputs if each]
    return record if len(keys) == len(inputs) and record.fingerprint == _fingerprint(record.recipe, keys) else None


def _fingerprint(recipe: str, keys: Sequence[str]) -> str:
    """Combine a stage's recipe with the content keys of its inputs."""
    return digest([recipe, list(keys)])


class Stages:
    """The stages of a workspace, in the order in which they run."""

    def __init__(self, workspace: str, stages: Sequence[Stage]) -> None:
        """
        Args:
            workspace: folder (local or s3://) with the records.
            stages: each after the stages that it reads from.
        """
        self.workspace = workspace
        self.stages = list(stages)

    def plan(self) -> list[StageStatus]:
        """Find out which stages are complete, without running any."""
        keys: dict[str, str] = {}
        found = []
        for stage in self.stages:
            ready = all(name in keys for name in stage.inputs)
            fingerprint = self._fingerprint(stage, keys) if ready else None
            record = self._complete_record(stage, fingerprint) if fingerprint else None
            if record:
                keys[stage.name] = record.key
            found.append(StageStatus(stage, fingerprint, record))
        return found

    def run(
        self,
        run_stage: Callable[[Stage, str, Callable[[], dict[str, Any]]], dict[str, Any]],
        on_skip: Callable[[Stage, Record], None],
        keep_going: Callable[[Stage], bool] = lambda stage: True,
    ) -> dict[str, Record]:
        """Run the stages that are not complete, in order.

        Args:
            run_stage: called as `run_stage(stage, fingerprint, run)`; calls `run()`, with logging around it, for instance, and returns its
                summary.
            on_skip: called with each complete stage and its record.
            keep_going: called after each stage; False ends the run.

        Returns:
            the records by stage name.
        """
        keys: dict[str, str] = {}
        records: dict[str, Record] = {}
        for stage in self.stages:
            fingerprint = self._fingerprint(stage, keys)
            record = self._complete_record(stage, fingerprint)
            if record:
                on_skip(stage, record)
            else:
                record = self._run(stage, fingerprint, run_stage)
            keys[stage.name] = record.key
            records[stage.name] = record
            if not keep_going(stage):
                break
        return records

    def _fingerprint(self, stage: Stage, keys: Mapping[str, str]) -> str:
        """Return a stage's fingerprint, given the content keys of the stages before it."""
        return _fingerprint(stage.recipe, [keys[name] for name in stage.inputs])

    def _complete_record(self, stage: Stage, fingerprint: str) -> Record | None:
        """Return the stage's record if it is complete, else None."""
        record = read_record(self.workspace, stage.name)
        complete = record and record.fingerprint == fingerprint and all(storage.exists(uri) for uri in stage.outputs)
        return record if complete else None

    def _run(self, stage: Stage, fingerprint: str, run_stage: Callable[..., dict[str, Any]]) -> Record:
        """Run one stage and write its record."""
        # If the run is killed, the outputs may be partly overwritten: so the old record must be gone.
        storage.remove(record_uri(self.workspace, stage.name))
        started = time.monotonic()
        summary = dict(run_stage(stage, fingerprint, lambda: stage.run(fingerprint)))
        key = str(summary.pop("key", fingerprint))
        record = Record(fingerprint, stage.recipe, list(stage.inputs), key, round(time.monotonic() - started, 1), summary)
        storage.write_json(record_uri(self.workspace, stage.name), asdict(record))
        return record
