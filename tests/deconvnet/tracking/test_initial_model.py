"""`init.from` finds a network in a workspace or a model folder."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deconvnet import DeconvNet, FCN8s
from deconvnet.models.checkpoint import save_model
from deconvnet.tracking import initial_model
from deconvnet.tracking.initial_model import InitialModel, find_initial_model, initial_model_folder
from deconvnet.tracking.registry import Version
from infra import storage
from infra.errors import UserError


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    save_model(DeconvNet(3, 0.02, 32), str(tmp_path / "models" / "stage2"), ["background", "a", "b"])
    save_model(FCN8s(3, 0.02), str(tmp_path / "models" / "fcn8s"), ["background", "a", "b"])
    return tmp_path


def test_a_workspace_has_both_networks(workspace: Path) -> None:
    start = find_initial_model(str(workspace), "")
    assert initial_model_folder(start, "deconvnet", "", "") == str(workspace / "models" / "stage2")
    assert initial_model_folder(start, "fcn8s", "", "") == str(workspace / "models" / "fcn8s")


def test_a_model_folder_has_only_its_own_architecture(workspace: Path) -> None:
    folder = str(workspace / "models" / "stage2")
    start = find_initial_model(folder, "")
    assert initial_model_folder(start, "deconvnet", "", "") == folder
    assert initial_model_folder(start, "fcn8s", "", "") is None


def test_a_folder_without_a_model_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"init\.from .* holds no model"):
        find_initial_model(str(tmp_path), "")


def test_a_network_that_is_replaced_or_removed_during_a_run_is_refused(workspace: Path) -> None:
    start = find_initial_model(str(workspace), "")
    save_model(FCN8s(3, 0.02), str(workspace / "models" / "fcn8s"), ["background", "a", "b"])
    assert find_initial_model(str(workspace), "").key != start.key
    assert initial_model_folder(start, "deconvnet", "", "") == str(workspace / "models" / "stage2"), "it is still the same"
    with pytest.raises(UserError, match=rf"init\.from {workspace} was changed while the run needed it"):
        initial_model_folder(start, "fcn8s", "", "")
    shutil.rmtree(workspace / "models" / "stage2")
    with pytest.raises(UserError, match="was changed"):
        initial_model_folder(start, "deconvnet", "", "")


def test_another_version_or_the_same_number_in_a_new_registry_starts_the_trainings_anew_and_another_alias_does_not() -> None:
    start = InitialModel("models:/net/1", Version("net", "1", "id", "file:///m"), {})
    for version in (Version("net", "1", "id 2", "file:///m"), Version("net", "2", "id", "file:///m")):
        assert replace(start, version=version).key != start.key
    assert replace(start, source="models:/net@champion").key == start.key


def test_a_registered_model_whose_copy_was_interrupted_is_fetched_again_and_a_complete_copy_is_used(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = InitialModel("models:/net/1", Version("net", "1", "id", "file:///m"), {})
    fetched: list[str] = []

    def fetch(version: Version, store: str, target: str) -> None:
        fetched.append(target)
        storage.copy_tree(str(workspace / "models/fcn8s"), f"{target}/fcn8s")
        if len(fetched) == 1:
            raise KeyboardInterrupt
        storage.copy_tree(str(workspace / "models/stage2"), f"{target}/deconvnet")

    monkeypatch.setattr(initial_model, "fetch", fetch)
    with pytest.raises(KeyboardInterrupt):
        initial_model_folder(start, "deconvnet", "", str(tmp_path / "init"))
    for _ in range(2):
        assert initial_model_folder(start, "deconvnet", "", str(tmp_path / "init")) == f"{fetched[0]}/deconvnet"
    assert len(fetched) == 2
