"""SGD's parameter groups, and the learning rate over a training."""

import json
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from deconvnet import DeconvNet, FCN8s
from deconvnet.models.fused.cpu.sgd import FusedSGD
from deconvnet.settings import StageSettings
from deconvnet.training.optimizer import Schedule, make_sgd, parameter_groups, set_rate
from tests.deconvnet.training_tables import Small


def by_name(model: nn.Module, **options) -> dict[str, dict]:
    return {name: group for group in parameter_groups(model, 0.0005, **options) for name in group["names"]}


def test_biases_are_treated_as_in_the_paper_or_the_released_solver():
    paper, released = by_name(Small()), by_name(Small(), bias_lr_factor=2.0)
    assert set(paper) == {n for n, _ in Small().named_parameters()}
    for groups in (paper, released):
        assert groups["layers.0.weight"]["weight_decay"] == 0.0005
        assert groups["layers.1.weight"]["weight_decay"] == groups["layers.1.bias"]["weight_decay"] == 0.0  # batch norm
        assert groups["layers.1.bias"]["lr_factor"] == 1.0
    assert (paper["layers.0.bias"]["weight_decay"], paper["layers.0.bias"]["lr_factor"]) == (0.0005, 1.0)
    assert (released["layers.0.bias"]["weight_decay"], released["layers.0.bias"]["lr_factor"]) == (0.0, 2.0)


@pytest.mark.parametrize(
    "make", [lambda: DeconvNet(3, 0.05, 32), lambda: FCN8s(3, 0.05, batch_norm=True)], ids=["deconvnet", "fcn8s"]
)
def test_the_encoders_parameters_of_every_kind_have_a_factor_of_their_own(make: Callable[[], nn.Module]):
    network = make()
    plain, groups = (by_name(network, bias_lr_factor=2.0, encoder_lr_factor=factor) for factor in (1.0, 0.25))
    assert set(plain) == set(groups) == {n for n, _ in network.named_parameters()}
    assert {group["lr_factor"] for group in parameter_groups(network, 0.1)} == {1.0}
    faster = by_name(network, encoder_lr_factor=2.0)
    assert {faster[name]["lr_factor"] for name in groups if re.match(r"conv[1-5]\.", name)} == {2.0}
    for name in groups:
        expected = 0.25 if re.match(r"conv[1-5]\.", name) else 1.0
        assert groups[name]["lr_factor"] == expected * plain[name]["lr_factor"], name
        assert groups[name]["weight_decay"] == plain[name]["weight_decay"], name
    assert sorted(group["lr_factor"] for group in parameter_groups(network, 0.1, 2.0, 0.25)) == [0.25, 0.25, 0.5, 1.0, 1.0, 2.0]


def test_frozen_parameters_are_left_out():
    model = Small()
    model.layers[0].requires_grad_(False)
    assert "layers.0.weight" not in by_name(model)


def test_the_rate_of_a_group_is_multiplied_by_its_factor():
    optimiser = make_sgd(Small(), StageSettings(bias_lr_factor=2.0))
    set_rate(optimiser, 0.5)
    assert {n: g["lr"] for g in optimiser.param_groups for n in g["names"]}["layers.0.bias"] == 1.0
    assert {g["lr"] for g in optimiser.param_groups} == {0.5, 1.0}
    assert isinstance(optimiser, torch.optim.SGD)


@pytest.mark.parametrize(
    ("on_gpu", "dtype", "kind"),
    [
        (False, torch.float32, FusedSGD),
        (False, torch.float64, torch.optim.SGD),  # FusedSGD computes in float32 alone
        (True, torch.float32, torch.optim.SGD),  # in the CPU's memory here, but they say that they are on a GPU
    ],
)
def test_the_sgd_of_each_device_and_dtype_has_the_settings_rate_momentum_and_weight_decay(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool, dtype: torch.dtype, kind: type
):
    model = Small().to(dtype)
    monkeypatch.setattr(torch.Tensor, "is_cuda", on_gpu)
    optimiser = make_sgd(model, StageSettings(lr=0.3, momentum=0.7, weight_decay=0.1))
    assert type(optimiser) is kind and bool(optimiser.defaults.get("fused")) is on_gpu
    found = {
        name: tuple(group[key] for key in ("lr", "momentum", "weight_decay"))
        for group in optimiser.param_groups
        for name in group["names"]
    }
    assert found == {name: (0.3, 0.7, 0.0 if name.startswith("layers.1") else 0.1) for name, _ in model.named_parameters()}


def plateau(**changes) -> Schedule:
    return Schedule(StageSettings(**{"lr": 0.01, "patience": 2, "min_lr": 1e-4, **changes}), 100)


def test_plateau_reduces_the_rate_when_the_score_stops_rising():
    schedule = plateau()
    rates = []
    for score in (0.1, 0.2, 0.2, 0.15, 0.3, 0.3, 0.3, 0.1):
        rates.append(schedule.rate(0))
        schedule.observe(score)
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.01, 0.001, 0.001, 0.001, 0.0001])
    assert schedule.best == 0.3
    assert not schedule.finished
    schedule.observe(0.3)
    assert schedule.finished  # below min_lr


def test_plateau_knows_the_best_score_and_ignores_epochs_without_one():
    schedule = plateau()
    assert schedule.observe(0.1)
    assert not schedule.observe(0.1)
    assert not schedule.observe(None)
    assert not schedule.observe(float("nan"))
    assert schedule.rate(0) == 0.01
    assert schedule.observe(0.2)


def test_an_initial_rate_below_min_lr_is_trained_with():
    schedule = plateau(lr=1e-5, min_lr=1e-4)
    assert not schedule.finished
    schedule.observe(0.1)
    schedule.observe(0.1)
    assert not schedule.finished
    schedule.observe(0.1)
    assert schedule.finished


def test_early_stopping_works_with_any_schedule():
    assert not plateau(early_stopping_patience=1).finished  # before the first epoch
    schedule = plateau(schedule="constant", early_stopping_patience=3)
    for score in (0.2, 0.1, 0.1):
        schedule.observe(score)
        assert not schedule.finished
    schedule.observe(0.2)
    assert schedule.finished
    assert schedule.rate(99) == 0.01


def test_step_and_poly_follow_their_formulas():
    step = plateau(schedule="step", step_every=10, gamma=0.1)
    assert [step.rate(s) for s in (0, 9, 10, 25)] == pytest.approx([0.01, 0.01, 0.001, 0.0001])
    poly = plateau(schedule="poly")
    assert [poly.rate(s) for s in (0, 50, 100, 150)] == pytest.approx([0.01, 0.01 * 0.5**0.9, 0.0, 0.0])


def test_a_schedule_continues_from_its_state():
    one, other = plateau(), plateau()
    scores = [0.1, 0.2, 0.1, 0.1, 0.1, 0.3]
    for score in scores[:3]:
        one.observe(score)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for score in scores[3:]:
        one.observe(score)
        other.observe(score)
    assert one == other
