"""retrain.py on a schedule: the lock that it takes, its exit codes, and train_pipeline.py, where it is alike."""

from typing import NoReturn

import pytest

from infra.errors import Interrupted, UserError
from infra.storage.lock import hold_lock
from workflows import cli, retrain, train_pipeline
from workflows.operations import retraining as operation
from workflows.pipelines import base


@pytest.mark.parametrize("main", [retrain.main, train_pipeline.main])
def test_the_option_to_replace_a_lost_run_and_the_minutes_of_the_settings_reach_the_lock(main, tmp_path, monkeypatch) -> None:
    given: list[object] = []

    def hold(workspace: str, command: str, minutes: float, *more: object, **named: object) -> NoReturn:
        given.append((minutes, named["replace_lost_run"] if named else more[-1]))
        raise UserError("held")

    for module in (operation, base):
        monkeypatch.setattr(module, "hold_workspace", hold)
    for options in ([], ["--replace-lost-run"]):
        with pytest.raises(UserError, match="held"):
            main(["--workspace", str(tmp_path), "--executor", "local", "--retrain.lock_minutes", "7", *options])
    assert given == [(7, False), (7, True)]


@pytest.mark.parametrize(("options", "code"), [([], 3), (["--exit-zero-if-locked"], 0)])
def test_a_workspace_at_work_is_no_error_on_a_schedule(
    options: list[str], code: int, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    with hold_lock(str(tmp_path / "workspace.lock"), "train_pipeline.py"):
        assert cli.run(lambda: retrain.main(["--workspace", str(tmp_path), *options])) == code
    out, err = capsys.readouterr()
    assert ("nothing done, because the workspace is locked: " in out) is (code == 0) and "train_pipeline.py" in out + err
    assert [path.name for path in tmp_path.iterdir()] == ["workspace.lock"]


@pytest.mark.parametrize(("error", "code"), [(UserError("no such folder"), 2), (Interrupted("stopped"), 75)])
def test_other_errors_keep_their_exit_codes_on_a_schedule(error: Exception, code: int, tmp_path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(operation, "retrain", fail)
    assert cli.run(lambda: retrain.main(["--workspace", str(tmp_path), "--exit-zero-if-locked"])) == code
