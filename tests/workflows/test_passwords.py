"""No text that quotes a store or a setting has the password in its URI: what is printed, logged, and kept as tags."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from deconvnet.tracking import registry
from deconvnet.tracking.champion.workspace_model import WorkspaceModel, origin_tags
from deconvnet.tracking.mlflow_runs import MlflowTracker
from deconvnet.tracking.store import check_store
from infra.errors import UserError
from workflows import cli
from workflows.settings import Settings

SECRET, KNOWN = "https://carla:hush@host/x?sig=hush", "https://host/x"


class Away:
    """An MLflow client whose server refuses everything."""

    def __init__(self, **_: str) -> None: ...

    def __getattr__(self, name: str) -> NoReturn:
        raise MlflowException("away")


def error_of(function: Callable[..., object], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


def fail_in_a_run(uri: str) -> None:
    with MlflowTracker.user_errors(SimpleNamespace(uri=uri)):  # type: ignore[arg-type]
        raise OSError("the disk is full")


@pytest.mark.parametrize(
    "quote",
    [
        cli.mlflow_hint,
        lambda uri: cli.settings_text(Settings(tracking={"uri": uri})),
        lambda uri: cli.settings_text(Settings(data={"root": uri, "classes": ["a", "b"]})),
        lambda uri: WorkspaceModel(uri, "net", "/w", "ours").refusal(ModelVersion("net", "1", 0)),
        lambda uri: str(origin_tags(uri, "ours", ["a"])),
        lambda uri: error_of(check_store, uri),
        lambda uri: error_of(registry.aliases, uri, "net"),
        lambda uri: error_of(registry.find, "models:/net/1", uri, "model"),
        lambda uri: error_of(fail_in_a_run, uri),
    ],
)
def test_a_text_that_quotes_a_store_or_a_setting_leaves_out_its_password(
    quote: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow.MlflowClient", Away)
    text = quote(SECRET)
    assert KNOWN in text and "carla" not in text and "hush" not in text
