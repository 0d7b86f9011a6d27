"""promote.py: moving the champion by the command, taking it back, and the record of the moves."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from infra.errors import UserError
from infra.webhook import URL_VARIABLE
from tests.hook_server import hook_server
from workflows import promote


@pytest.fixture
def workspace(tmp_path: Path, make_store: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose MLflow has the model "net" with two versions, the first of which is the champion."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    client = MlflowClient(*[make_store(tmp_path / "w")] * 2)
    client.create_registered_model("net")
    for _ in range(2):
        client.create_model_version("net", "file:///model")
    client.set_registered_model_alias("net", "champion", "1")
    return tmp_path / "w"


def test_the_champion_is_moved_taken_back_and_listed(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*options: str) -> str:
        promote.main([*options, "--model", "net", "--workspace", str(workspace)])
        return capsys.readouterr().out.strip()

    assert run("--moves") == "no move of net's champion is recorded"
    assert run("--to", "2", "--why", "Anne's test") == "net: the champion is version 2 now (before: version 1)"
    assert run("--back") == "net: the champion is version 1 now (before: version 2)"
    first, second = run("--moves").splitlines()
    minute = r"\d{4}-\d\d-\d\dT\d\d:\d\d"
    assert re.fullmatch(rf"{minute}  version 1 → version 2  \S.*  Anne's test", first)
    assert re.fullmatch(rf"{minute}  version 2 → version 1 \(undoes a move\)  \S.*", second)
    store = f"sqlite:///{workspace}/mlflow/mlflow.db"
    MlflowClient(store, store).delete_registered_model_alias("net", "champion")
    assert run("--to", "2") == "net: the champion is version 2 now (before: none)"
    promote.main(["--moves", "--model", "net", "--tracking.uri", store])
    assert re.fullmatch(rf"{minute}  none → version 2  \S.*", capsys.readouterr().out.splitlines()[2])


def test_a_move_is_reported_to_the_webhook_of_the_environment(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hook_server() as server:
        monkeypatch.setenv(URL_VARIABLE, server.url)
        for options in (["--to", "2", "--why", "Anne's test"], ["--back"], ["--moves"]):
            promote.main([*options, "--model", "net", "--workspace", str(workspace)])
    moved, back = server.texts
    assert moved.startswith("net: the champion is version 2 now (before: version 1); moved by ") and moved.endswith(
        ": Anne's test"
    )
    assert back.startswith("net: the champion is version 1 now (before: version 2); undone by ")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "one of the arguments --to --back --moves is required"),
        (["--to", "2", "--back"], "argument --back: not allowed with argument --to"),
        (["--to"], "argument --to: expected one argument"),
    ],
)
def test_one_of_to_and_back_is_needed(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        promote.main(options)
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_a_model_without_versions_is_a_user_error(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"registry at .* can't be used for other"):
        promote.main(["--to", "2", "--model", "other", "--workspace", str(workspace)])
