"""Two runs of predict.py into one folder: one waits, is refused, or gives way."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from deconvnet.inference.predictions_table import OutputState, Plan, commit_predictions
from infra import storage
from infra.errors import Interrupted
from infra.storage import tables
from infra.storage.guarded import LockGuard
from infra.storage.lock import Lock, Locked, hold_lock
from infra.storage.tables import delta_log
from tests.workflows.commands import LOCAL
from tests.workflows.predict.predicting import Run, arguments, rows, written
from workflows.cli import load
from workflows.operations import prediction
from workflows.operations.prediction import PredictionRun
from workflows.settings import CONFIGS, PredictSettings

pytestmark = pytest.mark.xdist_group("predict")


def test_runs_exclude_each_other_and_the_lock_of_a_dead_run_expires(run: Run, tmp_path, monkeypatch) -> None:
    given, open_executor = [], prediction.open_executor
    monkeypatch.setattr(prediction, "open_executor", lambda *options: given.append(options) or open_executor(*options))
    lock = f"{tmp_path}/out/_lock"
    with hold_lock(lock, "the other"), pytest.raises(Locked, match=r"the other \(process .*\) has held the lock"):
        run()
    assert not (tmp_path / "out" / "predict.json").exists()
    (tmp_path / "out" / "_lock").write_text(
        json.dumps({"holder": "dead", "host": "h", "pid": 1, "since": 0.0, "expires": time.time() - 1, "token": "t"})
    )
    assert "8 to predict" in run()
    assert json.loads(Path(lock).read_text())["expires"] == 0, "the lock was not released"
    ((_, _, should_stop),) = given
    for lost in (False, True):
        monkeypatch.setattr(Lock, "lost", lost)
        assert should_stop() == lost, "the work stops as soon as the lock is lost"


def test_a_run_that_has_waited_for_another_one_keeps_its_predictions(run: Run, workspace, image_folder, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    settings = load(str(CONFIGS / "predict.yaml"), PredictSettings, arguments(workspace, image_folder, out, *LOCAL))
    late = PredictionRun(settings)  # which has planned to predict everything
    run()
    before = written(out / "masks"), written(out / "predictions")
    late.run()
    assert (written(out / "masks"), written(out / "predictions")) == before
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("frozen_before", ["masks/a.png", "predictions", "rejects"])
def test_a_run_that_was_frozen_until_another_took_over_changes_nothing(run: Run, tmp_path, monkeypatch, frozen_before) -> None:
    """One run with version 1 stops before it writes a file, and a run with version 2 works from start to end meanwhile."""
    frozen: list[str] = []
    finished: dict[str, int] = {}

    def late(write: Callable[..., bool]) -> Callable[..., bool]:
        def call(uri: str, *given: object) -> bool:
            if uri.endswith(frozen_before) and not frozen:
                frozen.append(uri)
                lock = json.loads((tmp_path / "out/_lock").read_text())
                (tmp_path / "out/_lock").write_text(json.dumps({**lock, "expires": 0}))
                run("--model", "models:/edeconvnet/2", "--overlays", "true")
                finished.update(written(tmp_path / "out"))
            return write(uri, *given)

        return call

    monkeypatch.setattr(storage, "compare_and_swap", late(storage.compare_and_swap))
    monkeypatch.setattr(delta_log, "add_version", late(delta_log.add_version))
    with pytest.raises(Interrupted, match=r"predict\.py .* took the lock .*: only the results of that run are kept"):
        run("--overlays", "true")
    left = {name: changed for name, changed in written(tmp_path / "out").items() if name in finished}
    assert frozen and left == finished and {row["model_version"] for row in rows(tmp_path / "out").values()} == {"2"}
    for row in rows(tmp_path / "out").values():
        comment = Image.open(tmp_path / "out" / row["mask"]).info["Comment"]
        assert comment == f"models:/edeconvnet/2, {row['generation']}"
    assert "nothing to do" in run("--model", "models:/edeconvnet/2", "--overlays", "true")


def test_a_run_that_loses_its_lock_as_it_deletes_old_files_deletes_no_more(tmp_path, monkeypatch) -> None:
    """What is left belongs to the run that took over."""
    lock = {"holder": "x", "host": "h", "pid": 1, "since": 0.0, "expires": 9e9, "token": "mine"}
    names = ["masks/a.png", "masks/b.png"]
    for name, data in {**dict.fromkeys(names, b"old"), "_lock": json.dumps(lock).encode()}.items():
        storage.write_bytes(f"{tmp_path}/{name}", data)

    def remove(uri: str) -> None:
        Path(uri).unlink()
        (tmp_path / "_lock").write_text(json.dumps(lock | {"token": "another's"}))

    monkeypatch.setattr(storage, "remove", remove)
    plan = Plan(OutputState("in", "m", "1", "id", "g"), "key", [], frozenset(names), [], is_complete=False)
    with pytest.raises(Interrupted, match="took the lock"):
        commit_predictions(plan, str(tmp_path), [], LockGuard(f"{tmp_path}/_lock", "mine"))
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["b.png"]
    assert tables.read_commit(f"{tmp_path}/predictions") is None, "else no later run would delete what is left"
