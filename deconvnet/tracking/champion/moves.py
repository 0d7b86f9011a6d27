"""Move the alias `champion` of a registered model at a user's request, and read the record of its moves.

Every move is recorded in a tag of the registered model.
"""

import getpass
import json
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from deconvnet.tracking.registry import CHAMPION, aliases, registry_client, update_model_description
from infra.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MOVE = re.compile(r"champion\.\d{4}-\d\d-\d\dT")
"""Prefix of the tags `champion.TIME`, each of which records a `Move` as JSON. A user may have other tags "champion.…"."""
_MAX_REASON = 2000  # characters; a tag of MLflow has room for 5,000


@dataclass(frozen=True)
class Move:
    """A move of the alias `champion` (the version in use) from one version to another.

    Attributes:
        when: time in UTC, such as "2026-11-26T17:55:00.123456Z".
        who: user and host name of the process that moved the alias.
        replaced: number of the version that had the alias. None if no version had it.
        version: number of the version that got it.
        why: the reason, as text for users.
        back: True if the move undid an earlier one.
    """

    when: str
    who: str
    replaced: int | None
    version: int
    why: str
    back: bool = False


def move_champion(store: str, name: str, to: str | None, why: str) -> Move:
    """Move the alias `champion` at a user's request: to a version, or back to the version that had it before.

    The versions are not compared. The workspace is not locked, so a bad model can be replaced at once, even during a retraining.

    Args:
        store: URI of the MLflow store.
        name: name of the registered model.
        to: version number or alias, such as "7" or "challenger". None to undo the latest move that has not been undone.
        why: the reason, for the record.

    Returns:
        The move.

    Raises:
        UserError: if there is no such version, it is the champion already, nothing is left to undo, or the registry fails.
    """
    with registry_client(store, name) as client:
        current = aliases(store, name).get(CHAMPION)
        earlier = version_before(recorded_moves(client, name), current)
        if to is None and earlier is None:
            raise UserError(f"it is not recorded which version of {name} was the champion before: name one by --to")
        version = _find_version(client, name, str(earlier) if to is None else to, "--back" if to is None else "--to")
        if version == current:
            raise UserError(f"{name} version {version} is the champion already")
        client.set_registered_model_alias(name, CHAMPION, str(version))
        if (now := aliases(store, name).get(CHAMPION)) != version:
            raise UserError(f"another process moved {name}'s champion to version {now} at the same time, and this move was kept")
        move = record_move(client, name, current, version, why, back=to is None)
        update_model_description(client, name)
    return move


def _find_version(client: "MlflowClient", name: str, wanted: str, option: str) -> int:
    """Return the number of a version of a registered model, given its number or alias.

    Args:
        client: client of the MLflow store.
        name: name of the registered model.
        wanted: version number or alias.
        option: the command-line option that wants this version, for the error message.

    Raises:
        UserError: if there is no such version. The message says which aliases there are.
        MlflowException: if the registry does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_model_version(name, wanted) if wanted.isdecimal() else client.get_model_version_by_alias(name, wanted)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        known = sorted(client.get_registered_model(name).aliases.items())
        listed = ", ".join(f"{alias} (version {number})" for alias, number in known)
        has = f"it has the aliases {listed}" if listed else "it has no alias, so name a version by its number"
        raise UserError(f"{option} {wanted}: {name} has no such version or alias; {has}") from None
    return int(found.version)


def version_before(moves: Sequence[Move], champion: int | None) -> int | None:
    """Find the version that was champion before the version `champion`. A move that was undone counts as if it never happened.

    `moves` are the recorded moves, oldest first. Return None if there was no such version, or if the last move was not recorded.
    """
    done: list[Move] = []
    for move in moves:
        done = done[:-1] if move.back else [*done, move]
    return done[-1].replaced if done and done[-1].version == champion else None


def recorded_moves(client: "MlflowClient", name: str) -> list[Move]:
    """Read the recorded moves of the champion of a registered model, oldest first. Raise MlflowException if that fails."""
    tags = client.get_registered_model(name).tags
    return [Move(**json.loads(tags[key])) for key in sorted(tags) if _MOVE.match(key)]


def record_move(client: "MlflowClient", name: str, replaced: int | None, version: int, why: str, back: bool = False) -> Move:
    """Record a move of the alias `champion` in a tag of the registered model, and return it. See `Move` for the arguments."""
    who = socket.gethostname()
    with suppress(OSError, KeyError):  # the user of a container may have no name
        who = f"{getpass.getuser()} on {who}"
    move = Move(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}", who, replaced, version, why[:_MAX_REASON], back)
    client.set_registered_model_tag(name, f"champion.{move.when}", json.dumps(asdict(move), ensure_ascii=False))
    return move
