"""A decision is carried out once, recorded, and never over the champion that another run has made meanwhile."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from deconvnet.tracking import promotion
from deconvnet.tracking.champion.moves import recorded_moves
from deconvnet.tracking.promotion import Decision, promote, set_champion
from deconvnet.tracking.registry import CHAMPION, aliases, update_model_description
from infra.errors import Interrupted, UserError
from infra.storage.lock import Lock, LockRecord


def test_a_promoted_challenger_gets_the_alias_and_the_reason(shop) -> None:
    client = shop.client
    client.set_registered_model_alias("net", "challenger", "1")
    assert shop.model.baseline_version() == 1
    client.set_registered_model_alias("net", CHAMPION, "1")
    client.set_registered_model_alias("net", "challenger", "2")
    assert shop.model.baseline_version() == 1
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


class Server:
    """The client of a server with a password, which returns one version a page."""

    tracking_uri = "http://anne:hush@host:5000"

    def __init__(self, client: MlflowClient) -> None:
        self._client, self._tokens = client, set[str | None]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def search_model_versions(self, condition: str, number: int, order: list[str], token: str | None) -> Any:
        assert token not in self._tokens, "the same page again"
        self._tokens.add(token)
        return self._client.search_model_versions(condition, 1, order, token)


def test_the_models_description_has_the_versions_of_all_pages_and_the_server_without_its_password(shop) -> None:
    update_model_description(Server(shop.client), "net")
    page = shop.client.get_registered_model("net").description
    assert "MLFLOW_TRACKING_URI=http://host:5000\n" in page and "hush" not in page and "anne" not in page
    assert [line[:5] for line in page.splitlines() if re.match(r"\| \d", line)] == ["| 2 |", "| 1 |"]


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


def test_a_registry_that_does_not_answer_is_a_user_error(monkeypatch, shop) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = replace(shop.model, store="http://someone:word@127.0.0.1:9")
    for ask in (lambda: aliases(away.store, "net"), lambda: set_champion(away, 1, shop.lock), away.check_owned):
        with pytest.raises(UserError, match=r"registry at http://127.0.0.1:9 can't be used for net") as caught:
            ask()
        assert "word" not in str(caught.value)


@pytest.mark.parametrize("promoted", [True, False])
def test_a_version_that_became_champion_meanwhile_stays_champion(shop, promoted) -> None:
    """The challenger was not compared with that version, which a user or another run promoted."""
    shop.client.set_registered_model_alias("net", CHAMPION, str(shop.add_version(workspace_id="ours")))
    assert shop.promote(2, 1, Decision(promoted, "measured against 1")) == 3
    assert aliases(shop.tracker.uri, "net") == {"champion": 3}
    version = shop.client.get_model_version("net", "2")
    assert version.tags["verdict"] == "not promoted" and "version 3 became champion meanwhile" in version.description


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


# A holder of the lock that was stopped for longer than the lock is valid.


def take_over(lock: Lock) -> LockRecord:
    """Let another run take the lock, as if it had expired. Its fencing token is one higher."""
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
    shop.client.set_registered_model_alias("net", CHAMPION, str(shop.add_version(workspace_id="ours")))
    with pytest.raises(Interrupted, match="anne"):
        shop.promote(2, 1, Decision(True, "x"))
    assert "verdict" not in shop.client.get_model_version("net", "2").tags, "the other run's decision, where nothing is moved"


def test_a_choice_is_written_down_before_the_alias_is_moved(shop, monkeypatch) -> None:
    """An earlier holder of the lock that wakes between the two finds it, and puts its own move back."""

    def killed(*given) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", killed)
    with pytest.raises(KeyboardInterrupt):
        shop.promote(2, None, Decision(True, "x"))
    assert shop.client.get_model_version("net", "2").tags[f"fence.{shop.lock.fence}"] == "2"


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
