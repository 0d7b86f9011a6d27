"""Models and training states are loaded as they were saved; damaged files are user errors."""

import json
from unittest.mock import Mock

import pytest
import safetensors.torch
import torch
from torch import nn

from deconvnet import DeconvNet, FCN8s
from deconvnet.models.checkpoint import load_model, newest_state, save_model, save_state
from infra import storage
from infra.errors import UserError

CLASSES = ("background", "cat", "dog")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return DeconvNet(3, width=0.125, input_size=32, convention="torchvision")


@pytest.fixture
def saved(net, tmp_path):
    save_model(net, str(tmp_path / "model"), CLASSES, {"mean_iou": 0.5})
    return tmp_path / "model"


@pytest.mark.parametrize("last", [False, True])
def test_a_loaded_model_equals_the_saved_one(net, tmp_path, last):
    net(torch.randn(4, 3, 32, 32))  # changes the batch-norm statistics
    if last:
        net = net.to(memory_format=torch.channels_last)
    save_model(net, str(tmp_path), CLASSES, {"mean_iou": 0.5})
    again, meta = load_model(str(tmp_path))
    assert not again.training
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(images), net.eval()(images), rtol=1e-4, atol=1e-6)
    assert again.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(again.state_dict()[k], v) for k, v in net.state_dict().items())
    assert (meta["architecture"], meta["classes"], meta["convention"], meta["extra"]) == (
        "deconvnet",
        list(CLASSES),
        "torchvision",
        {"mean_iou": 0.5},
    )
    assert again.config() == net.config()
    assert all(p.requires_grad for p in again.parameters())  # it can be trained further


def test_a_loaded_fcn8s_equals_the_saved_one(tmp_path):
    net = FCN8s(3, width=0.125, batch_norm=True).eval()
    nn.init.normal_(net.score.weight)
    save_model(net, str(tmp_path), CLASSES)
    again, _ = load_model(str(tmp_path))
    images = torch.randn(1, 3, 40, 33)
    torch.testing.assert_close(again(images), net(images))


def test_class_names_must_match_the_network(net, tmp_path):
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        save_model(net, str(tmp_path), CLASSES[:2])
    assert not list(tmp_path.iterdir())


def _edit(folder, **changes):
    meta = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(meta | changes))


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _other_tensors(folder):
    import hashlib

    data = safetensors.torch.save({"x": torch.zeros(1)})
    (folder / "model.safetensors").write_bytes(data)
    _edit(folder, sha256=hashlib.sha256(data).hexdigest())


def _not_safetensors(folder):
    import hashlib

    (folder / "model.safetensors").write_bytes(b"hello")
    _edit(folder, sha256=hashlib.sha256(b"hello").hexdigest())


DAMAGE = {
    "no json": lambda f: (f / "model.json").unlink(),
    "no tensors": lambda f: (f / "model.safetensors").unlink(),
    "truncated json": lambda f: (f / "model.json").write_text('{"format": 1,'),
    "binary json": lambda f: (f / "model.json").write_bytes(b"\xff\xfe\x00"),
    "a list": lambda f: (f / "model.json").write_text("[1]"),
    "truncated tensors": lambda f: _truncate(f / "model.safetensors"),
    "empty tensors": lambda f: (f / "model.safetensors").write_bytes(b""),
    "one bit": lambda f: _flip(f / "model.safetensors"),
    "later format": lambda f: _edit(f, format=99),
    "unknown architecture": lambda f: _edit(f, architecture="unet"),
    "unknown argument": lambda f: _edit(f, config={"depth": 3}),
    "other width": lambda f: _edit(f, config={"num_classes": 3, "width": 0.25, "input_size": 32}),
    "other classes": lambda f: _edit(f, classes=["background"]),
    "other convention": lambda f: _edit(f, convention="caffe"),
    "other tensors": _other_tensors,
    "not safetensors": _not_safetensors,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_models_are_user_errors(saved, damage):
    damage(saved)
    with pytest.raises(UserError) as error:
        load_model(str(saved))
    assert str(saved) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_newest_undamaged_state_is_that_of_the_most_steps(tmp_path):
    """Whatever the names of the folders, and by number: 100 steps are more than 20."""
    assert newest_state(str(tmp_path)) is None
    for folder, step in (("b", 9), ("a", 100), ("c", 20)):
        save_state(str(tmp_path / folder), {"w": torch.tensor(step)}, {"step": step})
    for folder, step in (("a", 100), ("c", 20), ("b", 9)):
        tensors, values = newest_state(str(tmp_path))
        assert tensors["w"] == values["step"] == step
        _truncate(tmp_path / folder / "state.safetensors")
    assert newest_state(str(tmp_path)) is None


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.write_text("a file"), lambda p: p.mkdir()])
def test_folders_that_are_no_checkpoints_are_user_errors(tmp_path, make):
    make(tmp_path / "x")
    with pytest.raises(UserError, match="is not a model folder"):
        load_model(str(tmp_path / "x"))


def test_a_save_that_fails_midway_leaves_no_description_of_tensors_that_are_not_there(net, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "write_json", Mock(side_effect=OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        save_model(net, str(tmp_path), CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"], "so that the folder is seen to be incomplete"
