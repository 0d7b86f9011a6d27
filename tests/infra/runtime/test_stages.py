"""Stages run once, and again when a setting or the content of an input has changed."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from infra import storage
from infra.errors import UserError
from infra.runtime.stages import Record, Stage, Stages, outdated, read_record, record_uri, up_to_date_record
from infra.storage import tables


def run(workspace: Path, log: list[str], *, a: int = 1, b: int = 1, key: str | None = None, version: int = 1) -> list[str]:
    """Run two stages, b after a, and return the names of those that ran."""
    out = {name: storage.join(str(workspace), f"{name}.txt") for name in "ab"}

    def make(name: str):
        def work(fingerprint: str) -> dict:
            log.append(name)
            storage.write_bytes(out[name], fingerprint.encode())
            return {"key": key} if name == "a" and key else {}

        return work

    stages = [
        Stage("a", "A", version, {"x": a}, (), (out["a"],), make("a")),
        Stage("b", "B", 1, {"x": b}, ("a",), (out["b"],), make("b")),
    ]
    before = len(log)
    Stages(str(workspace), stages).run(lambda stage, fingerprint, work: work(), lambda stage, record: None)
    return log[before:]


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    log: list[str] = []
    assert run(tmp_path, log) == ["a", "b"]
    assert run(tmp_path, log) == []


def two_stages(workspace: Path, ran: list[str], a: int = 1) -> Stages:
    """A stage, of which only the record is kept, and one that needs it."""
    first = Stage("a", "A", 1, {"x": a}, (), (), lambda fingerprint: ran.append("a") or {})
    return Stages(str(workspace), [first, Stage("b", "B", 1, {}, ("a",), (), lambda fingerprint: ran.append("b") or {})])


def test_a_stage_that_is_complete_is_skipped_with_its_record_and_the_plan_says_so(tmp_path: Path) -> None:
    stages = two_stages(tmp_path, [])
    records = go(stages)
    assert [(status.complete, status.record) for status in stages.plan()] == [(True, records["a"]), (True, records["b"])]
    skipped: list[tuple[Stage, Record]] = []
    stages.run(lambda stage, fingerprint, work: work(), lambda stage, record: skipped.append((stage, record)))
    assert skipped == [(stage, records[stage.name]) for stage in stages.stages]


def test_a_record_has_the_seconds_that_its_stage_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr("infra.runtime.stages.time", clock)

    def work(fingerprint: str) -> dict:
        clock.now += 2.34
        return {}

    assert go(Stages(str(tmp_path), [Stage("a", "A", 1, {}, (), (), work)]))["a"].seconds == 2.3


def test_a_stage_is_not_begun_if_another_run_has_changed_its_inputs(tmp_path: Path) -> None:
    ran: list[str] = []
    with pytest.raises(UserError, match="outputs of a were changed by another run while b needed them"):
        two_stages(tmp_path, ran).run(
            lambda stage, fingerprint, work: work(),
            lambda stage, record: None,
            lambda stage: bool(go(two_stages(tmp_path, [], a=2))),
        )
    assert ran == ["a"]


def test_a_changed_setting_reruns_the_stage_and_what_follows(tmp_path: Path) -> None:
    log: list[str] = []
    run(tmp_path, log)
    assert run(tmp_path, log, b=2) == ["b"]
    assert run(tmp_path, log, a=2, b=2) == ["a", "b"]
    assert run(tmp_path, log, a=2, b=2, version=2) == ["a", "b"]


def test_a_stage_is_repeated_if_what_it_made_elsewhere_is_gone(tmp_path: Path) -> None:
    """It is asked for last, as that may take a request to a server."""
    asked: list[Record] = []
    there = True

    def exists(record: Record) -> bool:
        asked.append(record)
        return there

    def stages(x: int) -> Stages:
        return Stages(str(tmp_path), [Stage("a", "A", 1, {"x": x}, (), (), lambda fingerprint: {"version": x}, exists=exists)])

    first = go(stages(1))["a"]
    assert asked == [] and stages(2).plan()[0].complete is False and asked == []
    assert stages(1).plan()[0].complete and asked == [first] and first.summary == {"version": 1}
    there = False
    assert not stages(1).plan()[0].complete
    storage.remove(record_uri(str(tmp_path), "a"))
    there, asked[:] = True, []
    assert not stages(1).plan()[0].complete and asked == []


@pytest.mark.parametrize("changed", ["a", "b", "c"])
def test_the_content_of_every_input_counts(tmp_path: Path, changed: str) -> None:
    def made(contents: dict[str, str]) -> list[str]:
        ran: list[str] = []
        inputs = [Stage(n, n, 1, {"x": c}, (), (), lambda fingerprint, c=c: {"key": c}) for n, c in contents.items()]
        stages = [*inputs, Stage("d", "D", 1, {}, tuple(contents), (), lambda fingerprint: ran.append("d") or {})]
        Stages(str(tmp_path), stages).run(lambda stage, fingerprint, work: work(), lambda stage, record: None)
        return ran

    before = dict.fromkeys("abc", "old")
    assert (made(before), made(before), made({**before, changed: "new"})) == (["d"], [], ["d"])


def test_equal_content_of_an_input_does_not_rerun_what_follows(tmp_path: Path) -> None:
    log: list[str] = []
    run(tmp_path, log, key="same")
    assert run(tmp_path, log, a=2, key="same") == ["a"]


def test_a_lost_output_is_made_again(tmp_path: Path) -> None:
    log: list[str] = []
    run(tmp_path, log)
    (tmp_path / "a.txt").unlink()
    assert run(tmp_path, log) == ["a"]


def test_the_plan_runs_nothing(tmp_path: Path) -> None:
    stage = Stage("a", "A", 1, {}, (), (), lambda fingerprint: {})
    after = Stage("b", "B", 1, {}, ("a",), (), lambda fingerprint: {})
    plan = Stages(str(tmp_path), [stage, after]).plan()
    assert [p.complete for p in plan] == [False, False]
    assert plan[0].fingerprint and plan[1].fingerprint is None
    assert not list(tmp_path.iterdir())


def test_a_stage_that_was_interrupted_leaves_no_old_record(tmp_path: Path) -> None:
    """Its outputs may be half another's: going back to the old settings must make them again."""
    made: list[str] = []

    def stages(value: int, fails: bool) -> Stages:
        def work(fingerprint: str) -> dict:
            made.append(f"{value}")
            if fails:
                raise KeyboardInterrupt
            return {}

        return Stages(str(tmp_path), [Stage("a", "A", 1, {"x": value}, (), (), work)])

    def run(made: Stages) -> None:
        made.run(lambda stage, fingerprint, work: work(), lambda stage, record: None)

    run(stages(1, fails=False))
    with pytest.raises(KeyboardInterrupt):
        run(stages(2, fails=True))
    run(stages(1, fails=False))
    assert made == ["1", "2", "1"]


def test_a_record_is_out_of_date_once_an_input_was_made_anew(tmp_path: Path) -> None:
    """A run with another setting that was killed after its first stage leaves the second's old record and output."""
    run(tmp_path, log := [], a=1)
    stages = [up_to_date_record(str(tmp_path), name) for name in "ab"]
    assert all(stages) and log == ["a", "b"]
    out = storage.join(str(tmp_path), "a.txt")
    first = Stage("a", "A", 1, {"x": 2}, (), (out,), lambda fingerprint: {})
    Stages(str(tmp_path), [first]).run(lambda stage, fingerprint, work: work(), lambda stage, record: None)
    assert up_to_date_record(str(tmp_path), "a") and up_to_date_record(str(tmp_path), "b") is None
    assert up_to_date_record(str(tmp_path), "c") is None


def test_a_run_can_be_ended_after_a_stage(tmp_path: Path) -> None:
    made: list[str] = []

    def stage(name: str, *inputs: str) -> Stage:
        return Stage(name, name, 1, {}, inputs, (), lambda fingerprint: made.append(name) or {})

    stages = Stages(str(tmp_path), [stage("a"), stage("b", "a"), stage("c", "b")])
    records = stages.run(lambda stage, fingerprint, work: work(), lambda stage, record: None, lambda stage: stage.name != "b")
    assert made == ["a", "b"] == list(records)


def pipeline(workspace: Path, seed: int, meanwhile: dict[str, Callable[[], None]], order: list[str]) -> Stages:
    """Stages that pass a table, a model and a number on; `meanwhile` is done while the stage of that name runs."""
    root = str(workspace)
    table, model, total = (storage.join(root, name) for name in ("data.json", "model.json", "total.json"))

    def data(fingerprint: str) -> dict:
        storage.write_json(table, {"fingerprint": fingerprint, "rows": seed})
        return {}

    def train(fingerprint: str) -> dict:
        rows = storage.read_json(table)["rows"]
        meanwhile.get("train", lambda: None)()
        storage.write_json(model, {"fingerprint": fingerprint, "weights": 10 * rows})
        return {}

    def measure(fingerprint: str) -> dict:
        rows = storage.read_json(table)["rows"]
        meanwhile.get("measure", lambda: None)()
        weights = storage.read_json(model)["weights"]
        order.append(f"{rows} {weights}")
        storage.write_json(total, weights + rows)
        return {}

    return Stages(
        root,
        [
            Stage("data", "data", 1, {"seed": seed}, (), (table,), data),
            Stage("train", "train", 1, {}, ("data",), (model,), train),
            Stage("measure", "measure", 1, {}, ("data", "train"), (total,), measure),
        ],
    )


def test_a_stage_is_complete_only_if_the_version_of_its_table_is_there(tmp_path: Path) -> None:
    table = str(tmp_path / "images")
    schema = pa.schema([pa.field("image_id", pa.string())])

    def make(fingerprint: str, keep_earlier: bool = False) -> dict:
        part = tables.write_part(table, fingerprint, 0, [{"image_id": fingerprint}], schema)
        return {"tables": {"images": tables.commit(table, fingerprint, [part], keep_earlier=keep_earlier).version}}

    def remake() -> None:
        storage.remove(table)
        make("o" * 64)

    stages = Stages(str(tmp_path), [Stage("prepare", "", 1, {}, (), (), make, {"images": table})])
    assert not stages.plan()[0].complete
    removals = (lambda: storage.remove(storage.join(table, tables.LOG)), lambda: storage.remove(table), remake)
    for spoil in (lambda: make("o" * 64), *removals):
        record = go(stages)["prepare"]
        assert stages.plan()[0].complete and record == read_record(str(tmp_path), "prepare")
        assert record.tables["images"][1] == record.fingerprint and record.summary == {}
        spoil()
        assert not stages.plan()[0].complete
    go(stages)
    make("n" * 64, keep_earlier=True)
    assert stages.plan()[0].complete, "a later version does not matter"
    found = go(stages)["prepare"].tables["images"][0]
    assert next(tables.iter_rows(tables.at_version(table, found)))["image_id"] == stages.plan()[0].fingerprint
    other = Stages(str(tmp_path), [Stage("prepare", "", 1, {}, (), (), make, {"images": table, "more": table})])
    assert not other.plan()[0].complete, "the stage makes another table by now"


def go(stages: Stages) -> dict[str, Record]:
    return stages.run(lambda stage, fingerprint, work: work(), lambda stage, record: None)


@pytest.mark.parametrize("when", ["train", "measure"])
@pytest.mark.parametrize("what", ["all", "one stage", "half a stage", "a model, and no record"])
def test_a_stage_fails_if_another_run_changes_its_inputs_meanwhile(tmp_path: Path, when: str, what: str) -> None:
    """Without a lock, as if it had failed: the run that was first must not mix what both made."""

    def other() -> None:
        stages = pipeline(tmp_path, 2, {}, [])
        if what == "half a stage":
            storage.remove(record_uri(str(tmp_path), "data"))
        elif what == "a model, and no record":  # the last write of a run that had lost its lock
            name = "data.json" if when == "train" else "model.json"
            storage.write_json(str(tmp_path / name), {"fingerprint": "other", "rows": 2, "weights": 20})
        else:
            stages.stages = stages.stages[:1] if what == "one stage" else stages.stages
            go(stages)

    measured: list[str] = []
    with pytest.raises(UserError, match=r"(data|train) were changed by another run while (train|measure) needed them"):
        go(pipeline(tmp_path, 1, {when: other}, measured))
    assert read_record(str(tmp_path), when) is None or what == "all", "the stage counts as complete"
    again: list[str] = []
    go(pipeline(tmp_path, 1, {}, again))
    assert again == ["1 10"] and storage.read_json(str(tmp_path / "total.json")) == 11


def test_an_output_that_disappears_under_a_stage_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="outputs of data were changed by another run while train needed them"):
        go(pipeline(tmp_path, 1, {"train": lambda: storage.remove(str(tmp_path / "data.json")) or 1 / 0}, []))


@pytest.mark.parametrize("content", ['{"fingerprint": "other"}', "[", None])
def test_an_output_of_another_fingerprint_is_made_again(tmp_path: Path, content: str | None) -> None:
    go(pipeline(tmp_path, 1, {}, []))
    model = tmp_path / "model.json"
    model.unlink() if content is None else model.write_text(content)
    assert [status.complete for status in pipeline(tmp_path, 1, {}, []).plan()] == [True, False, False]
    go(pipeline(tmp_path, 1, {}, measured := []))
    assert measured == [] and storage.read_json(str(model))["weights"] == 10, "equal inputs: measured already"


def test_outputs_of_an_unfinished_run_are_outdated(tmp_path: Path) -> None:
    names = ("data", "train", "measure")
    assert outdated(str(tmp_path), names) == [], "a folder with copied models has no records"
    go(pipeline(tmp_path, 1, {}, []))
    assert outdated(str(tmp_path), names) == []
    with pytest.raises(ZeroDivisionError):
        go(pipeline(tmp_path, 2, {"train": lambda: 1 / 0}, []))
    assert outdated(str(tmp_path), names) == ["train", "measure"]
