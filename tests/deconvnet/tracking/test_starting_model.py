"""`init.from` finds a network in a workspace or a model folder."""

from pathlib import Path

import pytest

from deconvnet import DeconvNet, FCN8s
from deconvnet.models.checkpoint import save_model
from deconvnet.tracking.starting_model import starting_model
from infra.errors import UserError


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    save_model(DeconvNet(3, 0.02, 32), str(tmp_path / "models" / "stage2"), ["background", "a", "b"])
    save_model(FCN8s(3, 0.02), str(tmp_path / "models" / "fcn8s"), ["background", "a", "b"])
    return tmp_path


def test_a_workspace_has_both_networks(workspace: Path) -> None:
    assert starting_model(str(workspace), "deconvnet", "", "") == str(workspace / "models" / "stage2")
    assert starting_model(str(workspace), "fcn8s", "", "") == str(workspace / "models" / "fcn8s")


def test_a_model_folder_has_only_its_own_architecture(workspace: Path) -> None:
    folder = str(workspace / "models" / "stage2")
    assert starting_model(folder, "deconvnet", "", "") == folder
    assert starting_model(folder, "fcn8s", "", "") is None


def test_a_folder_without_a_model_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"init\.from .* holds no model"):
        starting_model(str(tmp_path), "deconvnet", "", "")
