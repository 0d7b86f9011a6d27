"""Moves of the alias `champion` that a user makes, and the record of all moves."""

from typing import NoReturn

import pytest
from mlflow import MlflowClient

from deconvnet.tracking import promotion
from deconvnet.tracking.champion.moves import Move, move_champion, recorded_moves, version_before
from deconvnet.tracking.promotion import Decision, promote
from deconvnet.tracking.registry import CHAMPION, aliases
from infra.errors import UserError


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
