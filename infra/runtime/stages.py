"""The stages of a pipeline. A stage is skipped if its outputs are complete and nothing that influences them has changed.

A stage reads the outputs of earlier stages, its inputs, and writes outputs of its own. Three digests describe it:

* The *recipe* is a digest of the stage's name, the version of its code, and its settings.
* The *content key* identifies the content of the stage's outputs.
* The *fingerprint* is a digest of the stage's recipe and the content keys of its inputs.

After a stage has run, a record with its fingerprint is written to the workspace, the folder of the pipeline. A stage is complete
if its record has the current fingerprint and all its outputs exist.

A lock file normally keeps two runs from writing to one workspace. If another run nevertheless replaces outputs while a stage
reads them, then the stage fails, so that its own outputs never mix old and new inputs.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from infra import storage
from infra.errors import UserError
from infra.storage import tables


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value as hexadecimal digits.

    Args:
        value: any JSON value. The order of keys in dictionaries doesn't matter.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """The record of a pipeline stage's last finished run, which is stored in the workspace.

    Attributes:
        fingerprint: digest of the stage's recipe and the content keys of its inputs when it ran.
        recipe: digest of the stage's name, code version and settings. If two workspaces have the same recipe, the outputs can
            differ only because of the data.
        inputs: names of the stages whose outputs the stage read.
        key: content key, a text that identifies the content of the outputs. It equals the fingerprint unless the function `run`
            of the stage returned another key.
        seconds: time that the run took, in seconds.
        summary: JSON values by name that the function `run` of the stage returned, without "key" and "tables".
        tables: numbers and fingerprints of the versions of the tables that the stage made or chose, by the names of the tables.
    """

    fingerprint: str
    recipe: str
    inputs: list[str]
    key: str
    seconds: float
    summary: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, tuple[int, str | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A step of a pipeline, which reads the outputs of earlier stages and writes its own.

    Attributes:
        name: name of the stage, unique in the workspace.
        title: short description that is shown to the user.
        version: version of the stage's code. It must be increased when the code makes other outputs from the same inputs.
        settings: the settings that influence the outputs, as JSON values.
        inputs: names of the stages whose outputs this stage reads.
        outputs: URIs of files that exist after the stage has run. A JSON file may have a key "fingerprint", as those of models
            do. Its value must then be the stage's fingerprint.
        run: function that makes the outputs. It is called with the stage's fingerprint and returns a summary, which is a dict of
            JSON values. Its optional value "key" is a text that identifies the content of the outputs. If the stage has tables,
            its value "tables" is a dict from their names to the numbers of their versions.
        tables: URIs of the folders of the tables that the stage makes or chooses, by their names.
        exists: function of the stage's record: whether outputs outside the workspace, such as a registered model, still exist.
            It is called last, after the cheaper checks.
    """

    name: str
    title: str
    version: int
    settings: Mapping[str, Any]
    inputs: Sequence[str]
    outputs: Sequence[str]
    run: Callable[[str], dict[str, Any]]
    tables: Mapping[str, str] = field(default_factory=dict)
    exists: Callable[[Record], bool] = lambda record: True

    @property
    def recipe(self) -> str:
        """Return a digest of the stage's name, code version and settings."""
        return digest([self.name, self.version, dict(self.settings)])


@dataclass(frozen=True)
class StageStatus:
    """A pipeline stage and whether it is complete.

    Attributes:
        stage: the stage.
        fingerprint: fingerprint of the stage; None if one of its inputs is not complete.
        record: record of the stage's last run if the stage is complete, else None.
    """

    stage: Stage
    fingerprint: str | None
    record: Record | None

    @property
    def complete(self) -> bool:
        """Return whether the stage is complete, so that it does not need to run."""
        return self.record is not None


def record_uri(workspace: str, stage: str) -> str:
    """Return the URI of the JSON file that holds the record of a stage.

    Args:
        workspace: URI of the folder of the pipeline (local or in a bucket), where records are stored.
        stage: name of the stage.
    """
    return storage.join(workspace, "stages", f"{stage}.json")


def read_record(workspace: str, stage: str) -> Record | None:
    """Read the record of a stage's last finished run, whether or not the stage is still complete.

    Args:
        workspace: URI of the folder of the pipeline (local or in a bucket), where records are stored.
        stage: name of the stage.

    Returns:
        The record, or None if there is none that can be read.
    """
    try:
        found = Record(**storage.read_json(record_uri(workspace, stage)))
        return replace(found, tables={name: (number, made) for name, (number, made) in found.tables.items()})  # JSON has lists
    except (FileNotFoundError, ValueError, TypeError):
        return None


def up_to_date_record(workspace: str, stage: str) -> Record | None:
    """Read the record of a stage if the stage ran with the current outputs of the stages from which it reads.

    Only records are compared. Changed settings and missing output files are not noticed.

    Args:
        workspace: URI of the folder of the pipeline (local or in a bucket), where records are stored.
        stage: name of the stage.

    Returns:
        The record, or None if there is none or the stage's inputs have changed since.
    """
    record = read_record(workspace, stage)
    if record is None:
        return None
    inputs = {name: up_to_date_record(workspace, name) for name in record.inputs}
    keys = {name: each.key for name, each in inputs.items() if each}
    return record if len(keys) == len(inputs) and record.fingerprint == _fingerprint(record, keys) else None


def outdated(workspace: str, names: Iterable[str]) -> list[str]:
    """Find the stages whose outputs may be incomplete or may not fit together.

    A stage is outdated if its last run did not finish, if an output that it reads has changed since, or if one of the stages
    from which it reads is outdated.

    Args:
        workspace: URI of the folder of the pipeline (local or in a bucket), where records are stored.
        names: names of the stages to look at.

    Returns:
        The names of the outdated stages; [] if the folder contains no records at all, because models were only copied to it.
    """
    if not storage.list_files(storage.join(workspace, "stages")):
        return []
    return [name for name in names if up_to_date_record(workspace, name) is None]


def _has_fingerprint(uri: str, fingerprint: str) -> bool:
    """Return whether an output of a stage exists and, if it is a JSON file with a key "fingerprint", has the given one there.

    Args:
        uri: URI of the output.
        fingerprint: the fingerprint with which the output should have been made.
    """
    if not uri.endswith(".json"):
        return storage.exists(uri)
    try:
        value = storage.read_json(uri)
    except (FileNotFoundError, ValueError):
        return False
    return not isinstance(value, dict) or value.get("fingerprint", fingerprint) == fingerprint


def _fingerprint(stage: Stage | Record, keys: Mapping[str, str]) -> str:
    """Return the fingerprint of a stage, a digest of its recipe (name, code version, settings) and its inputs' content keys.

    Args:
        stage: the stage, or its record.
        keys: content keys by stage name. They must contain those of all inputs of the stage, and may contain others.
    """
    return digest([stage.recipe, [keys[name] for name in stage.inputs]])


class Stages:
    """The stages of a pipeline, in the order in which they run. Their records are stored in a folder, the workspace."""

    def __init__(self, workspace: str, stages: Sequence[Stage]) -> None:
        """Make the list of stages of a workspace. None is run yet.

        Args:
            workspace: URI of the folder of the pipeline (local or in a bucket), where records are stored.
            stages: the stages. Each one must come after the stages that it reads from.
        """
        self.workspace = workspace
        self.stages = list(stages)

    def plan(self) -> list[StageStatus]:
        """Find out which stages are complete, without running any.

        Returns:
            The status of each stage, in order.
        """
        keys: dict[str, str] = {}
        found = []
        for stage in self.stages:
            ready = all(name in keys for name in stage.inputs)
            fingerprint = _fingerprint(stage, keys) if ready else None
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
        """Run all stages that are not complete, in order, and write their records to the workspace.

        Args:
            run_stage: function that is called as `run_stage(stage, fingerprint, run)` for each stage to run. It must call
                `run()` and return its result. It may do more around the call, such as logging.
            on_skip: function that is called as `on_skip(stage, record)` for each stage that is already complete.
            keep_going: function that is called with each stage after it was run or skipped. If it returns False, the remaining
                stages are not run.

        Returns:
            The records of all stages that were run or skipped, by stage name.

        Raises:
            UserError: if another run changes the inputs of a stage while it runs.
        """
        keys: dict[str, str] = {}
        records: dict[str, Record] = {}
        for stage in self.stages:
            fingerprint = _fingerprint(stage, keys)
            record = self._complete_record(stage, fingerprint)
            if record:
                on_skip(stage, record)
            else:
                record = self._run(stage, fingerprint, run_stage, records)
            keys[stage.name] = record.key
            records[stage.name] = record
            if not keep_going(stage):
                break
        return records

    def _complete_record(self, stage: Stage, fingerprint: str) -> Record | None:
        """Return the record of a stage if the stage is complete, else None.

        It is complete if its record has the current fingerprint, its output files exist and don't have another fingerprint, the
        versions of its tables exist, and `Stage.exists` confirms its outputs elsewhere.

        Args:
            stage: the stage.
            fingerprint: its current fingerprint, a digest of its recipe (name, code version, settings) and its inputs.
        """
        record = read_record(self.workspace, stage.name)
        if record is None or record.fingerprint != fingerprint or record.tables.keys() != stage.tables.keys():
            return None
        complete = all(
            made is not None and made == tables.fingerprint_of(tables.at_version(stage.tables[name], version))
            for name, (version, made) in record.tables.items()
        )
        complete = complete and all(_has_fingerprint(uri, fingerprint) for uri in stage.outputs)
        return record if complete and stage.exists(record) else None

    def _check_inputs(self, stage: Stage, records: Mapping[str, Record]) -> None:
        """Check that no other run has changed the outputs that a stage reads since this run made or found them.

        Args:
            stage: the stage that reads the outputs.
            records: this run's records of the stages before it, by name.

        Raises:
            UserError: if another run has changed one of the outputs.
        """
        for other in self.stages:
            if other.name in stage.inputs:
                found = self._complete_record(other, records[other.name].fingerprint)
                if found is None or found.key != records[other.name].key:
                    raise UserError(
                        f"{self.workspace}: the outputs of {other.name} were changed by another run while {stage.name} needed "
                        f"them, so {stage.name} was not completed: let one run at a time write there, and run this one again"
                    )

    def _run(
        self, stage: Stage, fingerprint: str, run_stage: Callable[..., dict[str, Any]], records: Mapping[str, Record]
    ) -> Record:
        """Run one stage and write its record to the workspace.

        The old record is deleted before the stage runs, so that the stage is not complete if the run is killed.

        Args:
            stage: the stage.
            fingerprint: its current fingerprint, a digest of its recipe (name, code version, settings) and its inputs.
            run_stage: function that calls the stage's `run` and returns its summary (see `Stages.run`).
            records: records of the stages before it, by name.

        Returns:
            The new record.

        Raises:
            UserError: if another run has changed the inputs of the stage.
        """
        self._check_inputs(stage, records)
        storage.remove(record_uri(self.workspace, stage.name))
        started = time.monotonic()
        try:
            summary = dict(run_stage(stage, fingerprint, lambda: stage.run(fingerprint)))
        except Exception:
            self._check_inputs(stage, records)  # changed inputs may be the reason
            raise
        self._check_inputs(stage, records)
        key, made = str(summary.pop("key", fingerprint)), summary.pop("tables", {})
        versions = {
            name: (number, tables.fingerprint_of(tables.at_version(stage.tables[name], number))) for name, number in made.items()
        }
        seconds = round(time.monotonic() - started, 1)
        record = Record(fingerprint, stage.recipe, list(stage.inputs), key, seconds, summary, versions)
        storage.write_json(record_uri(self.workspace, stage.name), asdict(record))
        return record
