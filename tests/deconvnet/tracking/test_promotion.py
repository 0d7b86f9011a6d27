"""The decision who becomes champion, and its record in the registry."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import pytest
from mlflow import MlflowClient

from deconvnet.evaluation.comparison import RiseInterval, mean_iou_rise
from deconvnet.evaluation.metrics import ConfusionMatrix
from deconvnet.tracking import promotion
from deconvnet.tracking.champion.moves import Move, move_champion, recorded_moves, version_before
from deconvnet.tracking.champion.own_model import OwnModel
from deconvnet.tracking.mlflow_runs import MlflowTracker
from deconvnet.tracking.promotion import Decision, compare, promote, set_champion
from deconvnet.tracking.registry import CHAMPION, aliases
from infra.errors import Interrupted, UserError
from infra.storage.lock import Lock, LockRecord, hold_lock

CLASSES = ["background", "cat", "dog"]


def results(mean_iou: float | None, images: int = 9, **iou: float | None) -> dict:
    row = {"mean_iou": mean_iou, "pixel_accuracy": 0.9, "iou": {"background": 0.9, "cat": 0.5, "dog": 0.5} | iou}
    return {"classes": CLASSES, "images": images, "rows": {"edeconvnet_crf": row, "fcn8s": row | {"mean_iou": 0.99}}}


def rise(lower: float, by: float = 0.05) -> RiseInterval:
    return RiseInterval(by, lower, 2 * by - lower, 60)


@pytest.mark.parametrize(
    ("champion", "challenger", "lower", "promoted", "text"),
    [
        (results(0.5), results(0.55), 0.02, True, "55.0 % against the champion's 50.0 %, a rise of +5.0 points"),
        (
            results(0.5),
            results(0.55),
            0.011,
            True,
            "(90 % interval +1.1 to +8.9 points, 60 images), no class falls by more than 0.0 points",
        ),
        (results(0.5), results(0.55), 0.01, False, "the lower end must be above 1.0 points (retrain.margin)"),
        (results(0.5), results(0.55), -0.01, False, "90 % interval -1.0 to +11.0 points"),
        (results(0.5), results(0.4), -0.2, False, "retrain.margin"),
        (results(0.5), results(0.6, cat=0.4), 0.02, True, "no class falls by more than 10.0 points"),
        (results(0.5), results(0.6, cat=0.39), 0.02, False, "cat falls by 11.0 points"),
        (results(0.5, cat=None), results(0.6, cat=0.1), 0.02, True, ""),  # it has no IoU to fall from
        (results(None), results(0.1), 0.02, True, "against the champion's – %"),
    ],
)
def test_the_challenger_is_promoted_by_the_interval_and_class_drop(champion, challenger, lower, promoted, text) -> None:
    decision = compare(champion, challenger, rise(lower), margin=0.01, max_class_drop=0.1)
    assert decision.promoted is promoted and text in decision.reason


@pytest.mark.parametrize(("better", "promoted"), [(0, False), (2, False), (60, True)])
def test_a_rise_that_a_few_images_make_is_chance_and_one_that_all_make_is_not(better, promoted) -> None:
    """Sixty images: the challenger has a higher pixel accuracy on some of them, or an equal one on all."""
    before = {str(i): np.array([[50, 10], [10, 30]]) for i in range(60)}
    after = before | {str(i): np.array([[54, 6], [8, 32]]) for i in range(better)}
    found = mean_iou_rise(before, after)
    old, new = (results(ConfusionMatrix(2, sum(each.values())).mean_iou) for each in (before, after))
    assert compare(old, new, found, 0, 1).promoted is promoted and (found.rise > 0) is (better > 0)


def test_results_on_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError):
        compare(results(0.5), results(0.6, images=10), rise(0.1), 0, 1)


@dataclass
class Shop:
    """A workspace with a store of its own, its registered model "net" with two versions, and the lock of the workspace."""

    tracker: MlflowTracker
    model: OwnModel
    lock: Lock

    @property
    def client(self) -> MlflowClient:
        return self.tracker.client

    def add_version(self, **tags: str) -> int:
        """Register a version of another origin; `workspace_id` stands for the tag workspace.id."""
        named = {key.replace("_", "."): value for key, value in tags.items()}
        return int(self.client.create_model_version("net", "file:///model", tags=named).version)

    def promote(self, challenger: int, champion: int | None, decision: Decision) -> int | None:
        with self.tracker.pipeline("p", {}) as run:
            return promote(run, self.model, challenger, champion, decision, self.lock)[0]


@pytest.fixture
def shop(tmp_path, make_store) -> Iterator[Shop]:
    tracker = MlflowTracker(make_store(tmp_path / "w"), "e")
    tracker.client.create_registered_model("net")
    with hold_lock(str(tmp_path / "w/workspace.lock"), "retrain.py") as lock:
        made = Shop(tracker, OwnModel(tracker.uri, "net", str(tmp_path / "w"), "ours"), lock)
        for _ in range(2):
            made.add_version(workspace_id="ours")
        yield made


@pytest.fixture
def shared(shop, tmp_path) -> Shop:
    """The same for a store that lies outside the workspace, as a server does."""
    shutil.copy(tmp_path / "w/mlflow/mlflow.db", tmp_path / "shared.db")
    tracker = MlflowTracker(f"sqlite:///{tmp_path}/shared.db", "e")
    return replace(shop, tracker=tracker, model=replace(shop.model, store=tracker.uri))


def test_a_promoted_challenger_gets_the_alias_and_the_reason(shop) -> None:
    client = shop.client
    client.set_registered_model_alias("net", "challenger", "1")
    assert shop.model.version_to_beat() == 1
    client.set_registered_model_alias("net", CHAMPION, "1")
    client.set_registered_model_alias("net", "challenger", "2")
    assert shop.model.version_to_beat() == 1
    with shop.tracker.pipeline("p", {}) as run:
        for _ in range(2):  # doing it twice changes nothing
            better = Decision(True, "because it is better")
            assert promote(run, shop.model, 2, 1, better, shop.lock) == (2, better)
    assert aliases(shop.tracker.uri, "net") == {"champion": 2, "challenger": 2}
    version = client.get_model_version("net", "2")
    assert version.tags["verdict"] == "promoted" and version.tags["verdict.against"] == "version 1"
    assert version.tags[f"fence.{shop.lock.fence}"] == "2"
    assert version.description.count("because it is better") == 1
    assert client.get_run(run.run_id).data.tags["verdict.why"] == "because it is better"
    assert [(m.replaced, m.version) for m in recorded_moves(client, "net")] == [(1, 2)]


def test_the_models_description_shows_who_was_champion(shop) -> None:
    client = shop.client
    client.update_registered_model("net", "Ours since May.")
    shop.promote(1, None, Decision(True, "there was no champion"))
    first = client.get_model_version("net", "1").tags["verdict.on"]
    shop.promote(2, 1, Decision(False, "cat | falls"))
    page = client.get_registered_model("net").description
    assert page.startswith("Ours since May.\n\n### What this model is") and page.count("### What this model is") == 1
    rows = [line for line in page.splitlines() if line.startswith(("| 1 |", "| 2 |"))]
    assert f"| not promoted {first} against version 1: cat \\| falls |  |" in rows[0]
    assert f"| promoted {first}: there was no champion | champion |" in rows[1]
    assert "models:/net@champion" in page


def test_the_models_description_is_never_longer_than_a_database_takes(shop) -> None:
    """PostgreSQL has a column of 5,000 characters for it."""
    shop.client.update_registered_model("net", "ä" * 4900)
    shop.promote(1, None, Decision(True, "there was no champion"))
    page = shop.client.get_registered_model("net").description
    assert len(page) == 5000 and page.startswith("ä" * 4900 + "\n\n### What this model is") and page.endswith("…")


def test_a_repeated_decision_keeps_its_day(shop) -> None:
    shop.client.set_model_version_tag("net", "2", "verdict", "promoted")
    shop.client.set_model_version_tag("net", "2", "verdict.on", "2026-01-02")
    shop.promote(2, None, Decision(True, "x"))
    assert shop.client.get_model_version("net", "2").tags["verdict.on"] == "2026-01-02"
    shop.promote(2, None, Decision(False, "x"))
    assert shop.client.get_model_version("net", "2").tags["verdict.on"] != "2026-01-02"


def test_the_champion_stays_if_the_challenger_is_worse_and_without_one_the_challenger_is_promoted(shop) -> None:
    assert shop.promote(2, 1, Decision(False, "worse")) == 1
    assert aliases(shop.tracker.uri, "net") == {"champion": 1}
    assert shop.client.get_model_version("net", "2").tags["verdict"] == "not promoted"
    for tag in shop.client.get_registered_model("net").tags:
        shop.client.delete_registered_model_tag("net", tag)
    assert shop.promote(2, 1, Decision(False, "worse")) == 1
    assert recorded_moves(shop.client, "net") == [], "the champion was made by hand, and stays"
    shop.client.delete_registered_model_alias("net", CHAMPION)
    assert shop.promote(2, None, Decision(True, "there was no champion")) == 2


def test_a_version_is_made_champion_without_comparison_only_if_there_is_none(shop) -> None:
    assert set_champion(shop.model, 2, shop.lock) == 2
    rows = [line for line in shop.client.get_registered_model("net").description.splitlines() if line.startswith("| 2 |")]
    assert rows[0].endswith("| champion |")
    assert set_champion(shop.model, 1, shop.lock) == 2 and aliases(shop.tracker.uri, "net") == {"champion": 2}


def test_a_model_that_does_not_exist_has_no_aliases(shop) -> None:
    other = replace(shop.model, name="other")
    assert aliases(shop.tracker.uri, "other") == {} and other.version_to_beat() is None and other.foreign_version() is None


def test_a_registry_that_does_not_answer_is_a_user_error(monkeypatch, shop) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = replace(shop.model, store="http://someone:word@127.0.0.1:9")
    for ask in (lambda: aliases(away.store, "net"), lambda: set_champion(away, 1, shop.lock), away.check_owned):
        with pytest.raises(UserError, match=r"registry at http://127.0.0.1:9 can't be used for net") as caught:
            ask()
        assert "word" not in str(caught.value)


def test_an_equal_mean_iou_is_never_promoted() -> None:
    assert not compare(results(0.5), results(0.5), RiseInterval(0, 0, 0, 60), margin=0, max_class_drop=1).promoted
    assert compare(results(0.5), results(0.5001), RiseInterval(1e-4, 1e-5, 2e-4, 60), margin=0, max_class_drop=1).promoted


@pytest.mark.parametrize("promoted", [True, False])
def test_a_version_that_became_champion_meanwhile_stays_champion(shop, promoted) -> None:
    """The challenger was not compared with that version, which a user or another run promoted."""
    shop.client.set_registered_model_alias("net", CHAMPION, str(shop.add_version(workspace_id="ours")))
    assert shop.promote(2, 1, Decision(promoted, "measured against 1")) == 3
    assert aliases(shop.tracker.uri, "net") == {"champion": 3}
    version = shop.client.get_model_version("net", "2")
    assert version.tags["verdict"] == "not promoted" and "version 3 became champion meanwhile" in version.description


def test_a_rejected_challenger_is_not_the_version_to_beat(shop) -> None:
    shop.client.set_registered_model_alias("net", "challenger", "2")
    assert shop.model.version_to_beat() == 2
    shop.client.set_model_version_tag("net", "2", "verdict", "not promoted")
    assert shop.model.version_to_beat() is None


# Versions of other workspaces.


@pytest.mark.parametrize(
    ("tags", "alias"),
    [
        ({}, ""),
        ({}, "champion"),
        ({"workspace_id": ""}, "challenger"),
        ({"workspace_id": "theirs"}, "challenger"),
        ({"workspace_id": "theirs", "workspace": "/runs/theirs"}, "champion"),
    ],
)
def test_a_version_of_another_workspace_is_refused_on_a_shared_server(shared, tags, alias) -> None:
    foreign = shared.add_version(**tags)
    if alias:
        shared.client.set_registered_model_alias("net", alias, str(foreign))
    before = aliases(shared.tracker.uri, "net")
    with pytest.raises(UserError, match=r"another workspace|/runs/theirs") as refused:
        shared.model.check_owned()
    assert "version 3" in str(refused.value) and "--tracking.model_name" in str(refused.value)
    assert shared.promote(2, None, Decision(True, "it is better")) == before.get("champion")
    assert aliases(shared.tracker.uri, "net") == before
    version = shared.client.get_model_version("net", "2")
    assert version.tags["verdict"] == "not promoted" and "tracking.model_name" in version.tags["verdict.why"]


def test_versions_of_an_earlier_release_and_of_the_own_store_are_ours(shop, shared, tmp_path) -> None:
    shop.add_version()
    shop.model.check_owned()  # registered by hand in the store of the workspace, which nobody shares
    for workspace in ("w", "w/generations/20261101-000000"):
        with shared.tracker.pipeline("p", {}, {"workspace": str(tmp_path / workspace)}) as run:
            shared.client.create_model_version("net", "file:///model", run_id=run.run_id)
    shared.model.check_owned()
    with shared.tracker.pipeline("p", {}, {"workspace": str(tmp_path / "w2")}) as run:
        shared.client.create_model_version("net", "file:///model", run_id=run.run_id)
    assert shared.model.foreign_version().version == 5


def test_a_version_whose_run_was_deleted_is_not_ours_and_the_rest_of_the_registry_can_be_used(shared) -> None:
    """`mlflow gc` deletes a run for good. The version has no tag that names its workspace."""
    with shared.tracker.pipeline("p", {}) as run:
        shared.client.create_model_version("net", "file:///model", run_id="0" * 32)
    shared.client.delete_run(run.run_id)
    assert shared.model.foreign_version().version == 3
    with pytest.raises(UserError, match="version 3"):
        shared.model.check_owned()


def test_only_the_version_with_the_alias_is_looked_at_if_one_is_named(shared) -> None:
    """Version 3 is of another workspace, version 4 is ours; the challenger is in turn nobody, theirs and ours."""
    assert shared.model.foreign_version("challenger") is None
    theirs, ours = shared.add_version(workspace_id="theirs"), shared.add_version(workspace_id="ours")
    assert shared.model.foreign_version("challenger") is None and shared.model.foreign_version().version == theirs
    shared.client.set_registered_model_alias("net", "challenger", str(theirs))
    assert shared.model.foreign_version("challenger").version == theirs
    shared.client.set_registered_model_alias("net", "challenger", str(ours))
    assert shared.model.foreign_version("challenger") is None


def test_only_versions_of_the_same_generation_and_workspace_are_its_own(shared) -> None:
    for workspace, generation in (("ours", "1"), ("ours", "2"), ("theirs", "1")):
        shared.add_version(workspace_id=workspace, generation=generation)
    assert shared.model.versions_of("1") == {3} and shared.model.versions_of("9") == set()


# A holder of the lock that was stopped for longer than the lock is valid.


def take_over(lock: Lock) -> LockRecord:
    """Let another run take the lock, as if it had expired. Its fencing number is one higher."""
    mine = LockRecord(**json.loads(Path(lock.uri).read_text()))
    theirs = replace(mine, token="theirs", holder="retrain.py of anne", fence=mine.fence + 1)
    Path(lock.uri).write_bytes(theirs.to_bytes())
    return theirs


def test_a_run_that_lost_the_lock_changes_nothing(shop) -> None:
    take_over(shop.lock)
    with pytest.raises(Interrupted, match="anne"):
        shop.promote(2, None, Decision(True, "x"))
    with pytest.raises(Interrupted, match="anne"):
        set_champion(shop.model, 2, shop.lock)
    assert aliases(shop.tracker.uri, "net") == {} and "verdict" not in shop.client.get_model_version("net", "2").tags


@pytest.mark.parametrize("decided", [1, 2, 3])
def test_a_run_that_was_stopped_just_before_it_moved_the_alias_puts_it_back(shop, monkeypatch, decided) -> None:
    """It wakes after another run took the lock and chose the champion: version `decided`."""
    client = shop.client
    client.set_registered_model_alias("net", CHAMPION, "1")
    shop.add_version(workspace_id="ours")
    real = MlflowClient.set_registered_model_alias

    def stopped(self, name, alias, version):
        monkeypatch.setattr(MlflowClient, "set_registered_model_alias", real)
        theirs = take_over(shop.lock)
        client.set_model_version_tag("net", "3", f"fence.{theirs.fence}", str(decided))
        real(client, "net", CHAMPION, str(decided))
        real(self, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", stopped)
    with pytest.raises(Interrupted, match="anne"):
        shop.promote(2, 1, Decision(True, "it is better"))
    assert aliases(shop.tracker.uri, "net") == {"champion": decided}
    assert "verdict" not in client.get_model_version("net", "2").tags


def test_the_champion_of_a_run_that_found_nothing_new_is_put_back_too(shop, monkeypatch) -> None:
    """A run is stopped just before it moves the alias; another one, for which no image is new, makes version 1 the champion."""
    real = MlflowClient.set_registered_model_alias

    def stopped(self, name, alias, version):
        monkeypatch.setattr(MlflowClient, "set_registered_model_alias", real)
        other = SimpleNamespace(fence=take_over(shop.lock).fence, still_held=lambda: True, check=lambda: None)
        assert set_champion(shop.model, 1, other) == 1
        real(self, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", stopped)
    with pytest.raises(Interrupted, match="anne"):
        shop.promote(2, None, Decision(True, "there was no champion"))
    assert aliases(shop.tracker.uri, "net") == {"champion": 1}


def test_an_alias_that_is_moved_in_the_same_moment_is_left_alone_and_the_decision_says_so(shop, monkeypatch) -> None:
    real = promotion.aliases
    shop.client.set_registered_model_alias("net", CHAMPION, "1")
    three = shop.add_version(workspace_id="ours")

    def moved(store, name):
        monkeypatch.setattr(promotion, "aliases", real)
        found = real(store, name)
        shop.client.set_registered_model_alias("net", CHAMPION, str(three))
        return found

    monkeypatch.setattr(promotion, "aliases", moved)
    assert shop.promote(2, 1, Decision(True, "it is better")) == three
    assert shop.client.get_model_version("net", "2").tags["verdict"] == "not promoted"


# Moves of the alias that a user makes, and their record.


def move(before: int | None, after: int, back: bool = False) -> Move:
    return Move("2026-11-26T17:55:00.000000Z", "anne", before, after, "", back)


@pytest.mark.parametrize(
    ("moves", "champion", "before"),
    [
        ([], 1, None),
        ([move(None, 1)], 1, None),
        ([move(1, 2), move(2, 3)], 3, 2),
        ([move(1, 2), move(2, 3), move(3, 2, back=True)], 2, 1),  # undone, and once more
        ([move(1, 2), move(2, 3), move(3, 2, back=True), move(2, 1, back=True)], 1, None),
        ([move(1, 2), move(2, 1, back=True), move(1, 3)], 3, 1),
        ([move(1, 2), move(2, 1)], 1, 2),  # named by --to, so it undoes nothing
        ([move(1, 2), move(2, 3)], 9, None),  # moved in MLflow's pages
        ([move(1, 2), move(2, 3), move(9, 10), move(10, 9, back=True)], 9, None),
    ],
)
def test_the_version_before_is_that_of_the_latest_move_that_is_not_undone(moves, champion, before) -> None:
    assert version_before(moves, champion) == before


def test_a_user_moves_the_champion_and_takes_it_back_twice_and_every_move_is_recorded(shop) -> None:
    three = shop.add_version(workspace_id="ours")
    shop.promote(1, None, Decision(True, "there was no champion"))
    shop.promote(2, 1, Decision(True, "it is better"))
    shop.client.set_registered_model_alias("net", "challenger", str(three))
    there = move_champion(shop.model.store, "net", "challenger", "ünder test")
    assert (there.replaced, there.version, there.why, there.back) == (2, 3, "ünder test", False) and there.who
    assert move_champion(shop.model.store, "net", None, "bicycles are missed").version == 2
    assert move_champion(shop.model.store, "net", None, "").version == 1
    assert aliases(shop.tracker.uri, "net") == {"champion": 1, "challenger": 3}
    found = [(m.replaced, m.version, m.why, m.back) for m in recorded_moves(shop.client, "net")]
    assert found == [
        (None, 1, "there was no champion", False),
        (1, 2, "it is better", False),
        (2, 3, "ünder test", False),
        (3, 2, "bicycles are missed", True),
        (2, 1, "", True),
    ]
    rows = [line for line in shop.client.get_registered_model("net").description.splitlines() if line.startswith("| 1 |")]
    assert rows[0].endswith("| champion |")
    with pytest.raises(UserError, match="not recorded which version of net was the champion before"):
        move_champion(shop.model.store, "net", None, "")


@pytest.mark.parametrize("before", [None, 1])
def test_a_promotion_that_was_killed_before_its_record_is_recorded_when_it_is_resumed(shop, monkeypatch, before) -> None:
    """The champion before it was made by hand, or there was none; an earlier promotion of version 2 was undone long before."""
    shop.promote(2, None, Decision(True, "there was no champion"))
    shop.add_version(workspace_id="ours")
    move_champion(shop.model.store, "net", "3", "")
    move_champion(shop.model.store, "net", "1", "")
    if before is None:
        shop.client.delete_registered_model_alias("net", CHAMPION)

    def killed(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(promotion, "record_move", killed)
        shop.promote(2, before, Decision(True, "it is better"))
    assert aliases(shop.tracker.uri, "net") == {"champion": 2} and recorded_moves(shop.client, "net")[-1].version == 1
    for _ in range(2):
        assert shop.promote(2, before, Decision(True, "it is better")) == 2
    found = [(m.replaced, m.version, m.why) for m in recorded_moves(shop.client, "net")]
    assert found == [(None, 2, "there was no champion"), (2, 3, ""), (3, 1, ""), (before, 2, "it is better")]
    if before:
        assert move_champion(shop.model.store, "net", None, "").version == 1


@pytest.mark.parametrize("to", [None, "1"])
def test_a_champion_that_a_user_has_taken_back_is_not_made_champion_again_by_the_run_that_is_resumed(shop, to) -> None:
    """The run was killed after it had moved the alias, and before its stage was complete."""
    shop.promote(1, None, Decision(True, "there was no champion"))
    assert shop.promote(2, 1, Decision(True, "it is better")) == 2
    who = move_champion(shop.model.store, "net", to, "bicycles are missed").who
    moves = recorded_moves(shop.client, "net")
    with shop.tracker.pipeline("p", {}) as run:
        champion, decision = promote(run, shop.model, 2, 1, Decision(True, "it is better"), shop.lock)
    assert champion == 1 and aliases(shop.tracker.uri, "net") == {"champion": 1}
    assert not decision.promoted and decision.reason == f"it is better; but it was champion already, and {who} has replaced it"
    assert recorded_moves(shop.client, "net") == moves
    assert shop.client.get_model_version("net", "2").tags["verdict"] == "not promoted"


def test_a_tag_of_the_user_s_own_is_not_taken_for_a_move(shop) -> None:
    shop.client.set_registered_model_tag("net", "champion.owner", "Anne")
    shop.client.set_registered_model_tag("net", "champion.2026", "a good year")
    shop.promote(1, None, Decision(True, "there was no champion"))
    assert [m.version for m in recorded_moves(shop.client, "net")] == [1]


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("2", "net version 2 is the champion already"),
        ("9", r"^--to 9: net has no such version or alias; it has the aliases challenger \(version 1\), champion \(version 2\)$"),
        ("newest", "^--to newest: net has no such version or alias; it has the aliases challenger"),
    ],
)
def test_a_champion_that_can_not_be_made_is_a_user_error_and_nothing_is_recorded(shop, to, message) -> None:
    shop.client.set_registered_model_alias("net", CHAMPION, "2")
    shop.client.set_registered_model_alias("net", "challenger", "1")
    with pytest.raises(UserError, match=message):
        move_champion(shop.model.store, "net", to, "")
    assert aliases(shop.tracker.uri, "net") == {"champion": 2, "challenger": 1} and recorded_moves(shop.client, "net") == []


def test_a_move_that_another_process_overrides_at_once_is_reported_and_not_recorded(shop, monkeypatch) -> None:
    real = MlflowClient.set_registered_model_alias

    def overridden(self, name, alias, version):
        real(self, name, alias, version)
        real(self, name, alias, "1")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", overridden)
    with pytest.raises(UserError, match="another process moved net's champion to version 1"):
        move_champion(shop.model.store, "net", "2", "")
    assert recorded_moves(shop.client, "net") == []
