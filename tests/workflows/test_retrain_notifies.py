"""retrain.py: messages to a webhook and metrics after failures, and reports of stale data."""

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from infra.errors import Interrupted, UserError
from infra.storage.lock import Locked
from tests.hook_server import SECRET, hook_server
from tests.workflows.retrainings import Retrainings, samples_of
from workflows.operations import data_age

pytestmark = pytest.mark.xdist_group("retrain")


def test_failures_are_reported_and_what_is_no_failure_is_not(retrained: Retrainings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user error, a bug, and a run that an interruption or another run ends; also one that a signal turned into an error."""

    metrics = retrained.workspace / "deconvnet.prom"

    def ended_by(error: Callable[[], NoReturn]) -> list[str]:
        metrics.unlink(missing_ok=True)
        monkeypatch.setattr("workflows.operations.retraining.retraining.next_generation", lambda *_: error())
        with hook_server() as server, suppress(RuntimeError, ImportError):
            retrained("--notify.url", server.url, "--notify.metrics_to", str(metrics))
        return server.texts

    def fails(error: BaseException, context: BaseException | None = None) -> Callable[[], NoReturn]:
        def fail() -> NoReturn:
            try:
                if context:
                    raise context
            finally:
                raise error

        return fail

    assert ended_by(fails(UserError("the data are gone"))) == [f"retraining of {retrained.workspace} failed: the data are gone"]
    (bug,) = ended_by(fails(RuntimeError("hush")))
    assert "a bug (RuntimeError)" in bug and "hush" not in bug
    assert ended_by(fails(Locked("busy"))) == [] and not metrics.exists()
    for error in (Interrupted("stopped"), KeyboardInterrupt()):
        assert ended_by(fails(error)) == []
        assert samples_of(metrics)["deconvnet_retrain_outcome", "interrupted"] == 1
    assert ended_by(fails(ImportError("torch"), KeyboardInterrupt())) == []


def test_a_failure_changes_what_a_run_knows_of_itself_and_leaves_the_other_metrics(
    retrained: Retrainings, tmp_path: Path
) -> None:
    file = tmp_path / "deconvnet.prom"
    assert retrained("--notify.metrics_to", str(file)).returncode == 0
    before = samples_of(file)
    assert before["deconvnet_retrain_outcome", "unchanged"] == 1 and before["deconvnet_champion_version",] == 1
    assert retrained("--notify.metrics_to", str(file), "--data.root", str(retrained.data / "gone")).returncode == 2
    after = samples_of(file)
    assert after["deconvnet_retrain_outcome", "failed"] == 1 and after["deconvnet_retrain_outcome", "unchanged"] == 0
    changed = {name[0] for name in before if before[name] != after[name]}
    assert before.keys() == after.keys()
    assert changed == {"deconvnet_retrain_outcome", "deconvnet_retrain_last_run_timestamp_seconds"}


def test_a_webhook_that_fails_does_not_change_how_a_run_ends(retrained: Retrainings) -> None:
    with hook_server() as server:
        server.status = 500
        done = retrained("--notify.url", server.url, "--data.root", str(retrained.data / "gone"))
    assert done.returncode == 2 and "there is no data folder" in done.stderr
    assert "not delivered to the webhook at 127.0.0.1: HTTP status 500" in done.stdout and SECRET not in done.stdout + done.stderr
    assert len(server.texts) == 1


def test_stale_data_are_reported_once_in_a_while(retrained: Retrainings, tmp_path: Path) -> None:
    """Seven days are set. The runs are 0, 6, 12, 14 and 22 days after the last change, whose time is also a metric."""
    metrics = tmp_path / "deconvnet.prom"
    told: list[list[str]] = []
    for age in (0, 6, 6, 2, 8):
        file = retrained.workspace / "generations" / data_age.FILE
        found = data_age.DataAge(**json.loads(file.read_text()))
        moved = {
            key: value and str(datetime.fromisoformat(value) - timedelta(days=age))
            for key, value in vars(found).items()
            if key != "key"
        }
        file.write_text(json.dumps({"key": found.key, **moved}))
        with hook_server() as server:
            done = retrained("--notify.url", server.url, "--notify.stale_days", "7", "--notify.metrics_to", str(metrics))
        assert done.returncode == 0 and "Nothing new" in done.stdout
        told.append(server.texts)
        since = datetime.fromisoformat(json.loads(file.read_text())["since"]).timestamp()
        assert samples_of(metrics)["deconvnet_data_since_timestamp_seconds",] == pytest.approx(since, abs=1)
    assert [len(texts) for texts in told] == [0, 0, 1, 0, 1]
    assert told[2][0].startswith(f"stale data in {retrained.data}: no image or mask is new or changed for 12 days, since ")
    assert told[4][0].startswith(f"stale data in {retrained.data}: no image or mask is new or changed for 22 days, since ")
    with hook_server() as server:
        file.write_text(json.dumps(vars(data_age.DataAge("other images", "2020-01-01T00:00:00+00:00"))))
        retrained("--notify.url", server.url)
    assert server.texts == [], "the data have changed since"
