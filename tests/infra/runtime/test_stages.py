"""Stages run once, and again when a setting or the content of an input has changed."""

from pathlib import Path

import pytest

from infra import storage
from infra.runtime.stages import Stage, Stages, up_to_date_record


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


def test_a_changed_setting_reruns_the_stage_and_what_follows(tmp_path: Path) -> None:
    log: list[str] = []
    run(tmp_path, log)
    assert run(tmp_path, log, b=2) == ["b"]
    assert run(tmp_path, log, a=2, b=2) == ["a", "b"]
    assert run(tmp_path, log, a=2, b=2, version=2) == ["a", "b"]


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
