"""Prediction in 8-bit integers: layers compute exactly, networks predict what those in floats do, ranges belong to weights."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deconvnet.evaluation.evaluator import evaluate
from deconvnet.evaluation.inputs import EvaluationInputs
from deconvnet.inference.int8 import conversion, ranges_job
from deconvnet.inference.int8.conversion import computes_int8, to_int8
from deconvnet.inference.int8.layers import Int8Conv2d, Int8PixelDeconv2d
from deconvnet.inference.int8.ranges import Ranges, has_ranges, load_ranges, merged, recording, save_ranges
from deconvnet.inference.int8.ranges_job import RangeInputs, record_missing_ranges
from deconvnet.inference.predictor import Predictor, PredictorOptions
from deconvnet.models.checkpoint import load_model, save_model
from deconvnet.models.fused.layers import FusedMaxPool2d, FusedUnpool
from deconvnet.models.fusion import for_inference
from deconvnet.models.layers import units
from infra import storage
from infra.errors import UserError
from infra.runtime.local_executor import LocalExecutor
from infra.storage.tables import iter_rows
from proposals.image_codec import decode_image
from tests.deconvnet.ensembles import CLASSES, random_image, random_networks, save_networks
from tests.image_tables import boxes_row, image_row, write_images_and_proposals

needs_int8 = pytest.mark.skipif(not computes_int8("cpu"), reason="this CPU has no VNNI or AMX")


def integers(shape: tuple[int, ...], low: int, high: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


@needs_int8
@pytest.mark.parametrize(("kernel", "padding", "size"), [(3, 1, (7, 5)), (1, 0, (4, 6)), (7, 3, (3, 9)), (2, 0, (2, 2))])
def test_a_convolution_is_exact_if_its_numbers_are_8_bit_integers(kernel: int, padding: int, size: tuple[int, int]) -> None:
    """Where the result does not fit in 8 bits, it is the largest number."""
    inputs, outputs = 5, 19
    weight, x = integers((outputs, inputs, kernel, kernel), -3, 3), integers((2, inputs, *size), 0, 20, 1)
    weight[:, 0, 0, 0] = 127 * (-1.0) ** torch.arange(outputs)  # the largest of each channel
    bias = integers((outputs,), -9, 9, 2)
    own = 2.0 ** (torch.arange(outputs) % 3 - 1)  # scales of the weights, which are exact in binary
    real = weight / 2 * own.view(-1, 1, 1, 1) * 4
    layer = Int8Conv2d(real, bias * own * 4, padding, 2.0, 4.0)
    found = layer(x.to(torch.uint8))
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=padding) * own.double().view(1, -1, 1, 1)
    assert found.dtype == torch.uint8 and (expected > 255).any() and (expected < 0).any()
    assert torch.equal(found.double(), expected.round().clamp(0, 255))
    scores = Int8Conv2d(real, bias * own * 4, padding, 2.0, None)(x.to(torch.uint8))
    assert scores.dtype == torch.float32
    assert torch.allclose(scores.double(), expected * 4, rtol=1e-6)


@needs_int8
def test_the_first_layer_rounds_its_input_and_zero_stays_zero_at_the_border() -> None:
    weight = integers((8, 3, 3, 3), -127, 127)
    weight[:, 0, 0, 0] = 127
    layer = Int8Conv2d(weight, torch.zeros(8), 1, 0.0, None, (-100.0, 155.0))
    x = integers((1, 3, 6, 4), -100, 155)
    expected = F.conv2d(x, weight, padding=1)
    assert torch.allclose(layer(x), expected, rtol=1e-6)
    rounded = layer(x + 0.3 * (-1.0) ** integers(x.shape, 0, 1, 1))
    assert torch.allclose(rounded, expected, rtol=1e-6)
    beyond = torch.full((1, 3, 1, 1), 300.0)
    assert torch.equal(layer(beyond), layer(torch.full_like(beyond, 155.0)))


@needs_int8
def test_a_deconvolution_of_a_pixel_is_exact_if_its_numbers_are_8_bit_integers() -> None:
    weight, x = integers((6, 8, 2, 3), -9, 9), integers((3, 6, 1, 1), 0, 9, 1)
    weight[0] = 127
    found = Int8PixelDeconv2d(weight * 4, torch.full((8,), 4.0), 1.0, 4.0)(x.to(torch.uint8))
    expected = F.conv_transpose2d(x, weight) + 1
    assert found.shape == (3, 8, 2, 3) and torch.equal(found.float(), expected.clamp(0, 255))


@needs_int8
def test_pooling_and_unpooling_are_those_of_floats() -> None:
    x = torch.randperm(256, generator=torch.Generator().manual_seed(0)).view(1, 4, 8, 8)
    maxima, positions = FusedMaxPool2d(2, return_indices=True)(x.to(torch.uint8))
    expected, indices = F.max_pool2d(x.float(), 2, return_indices=True)
    assert torch.equal(maxima.float(), expected) and torch.equal(FusedMaxPool2d(2)(x.to(torch.uint8)), maxima)
    assert torch.equal(FusedUnpool()(maxima, positions).float(), F.max_unpool2d(expected, indices, 2))


@pytest.fixture(scope="module")
def images() -> Tensor:
    crops = np.stack([random_image(seed, 32, 32) for seed in range(12)])
    return torch.from_numpy(crops).permute(0, 3, 1, 2)


def ranges_of(network: torch.nn.Module, images: Tensor) -> Ranges:
    with torch.inference_mode(), recording(converted := for_inference(network, bf16=False)) as ranges:
        converted(converted.prepare(images))
    return ranges


def scores(network: torch.nn.Module, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(network.prepare(images)).float()


@needs_int8
@pytest.mark.parametrize("which", [0, 1])
def test_a_network_has_about_the_same_scores_whatever_the_batch_and_the_number_of_threads(which: int, images: Tensor) -> None:
    """Both input conventions, batch norm with statistics that differ between channels, and images that were not recorded."""
    network = random_networks(4, width=0.25)[which]
    for number, unit in enumerate(units(network).values()):
        unit.norm.running_var.copy_(0.5 + (torch.arange(len(unit.norm.running_var)) + number) % 7)
        unit.norm.running_mean.copy_(0.1 * ((torch.arange(len(unit.norm.running_mean)) + number) % 5 - 2))
    ranges = ranges_of(network, images[:8])
    converted = to_int8(network, ranges)
    expected, found = scores(network, images), scores(converted, images)
    assert (found - expected).abs().mean() < 0.06 * expected.std()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(scores(converted, images[3:5]), found[3:5])
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(ValueError, match="not those of this network"):
        to_int8(random_networks(4, width=0.25)[1 - which], ranges)


@needs_int8
def test_channels_without_weights_or_activations_do_no_harm(images: Tensor) -> None:
    network = random_networks(width=0.25)[1]
    unit = network.get_submodule("conv2.1")
    with torch.no_grad():
        unit.conv.weight[3] = 0
        unit.norm.weight[4] = 0
        unit.norm.bias[4] = -1
    for dead in (False, True):
        if dead:
            with torch.no_grad():
                unit.norm.weight.zero_()
                unit.norm.bias.fill_(-1)
        converted = to_int8(network, ranges_of(network, images))
        layers = [module for module in converted.modules() if isinstance(module, Int8Conv2d)]
        assert all(layer._scales.min() > 0 and layer._new_scale != 0 for layer in layers), "something is divided by 0"
        expected, found = scores(network, images), scores(converted, images)
        assert (found - expected).abs().mean() <= 0.1 * expected.abs().mean(), dead


def test_ranges_are_the_largest_activations_of_all_predictions(images: Tensor) -> None:
    network = random_networks()[1]
    whole, parts = ranges_of(network, images), [ranges_of(network, images[start : start + 4]) for start in (0, 4, 8)]
    joint = merged(merged(merged({}, parts[0]), parts[1]), parts[2])
    assert list(whole) == list(units(network)) and not any(module._forward_hooks for module in network.modules())
    assert joint == pytest.approx(whole, rel=1e-4)
    assert any(parts[0][name] < value * 0.99 for name, value in whole.items())
    with torch.inference_mode():
        expected = network.conv1(network.prepare(images)).amax()
    assert whole["conv1.2"] == pytest.approx(float(expected), rel=1e-4)


def test_ranges_belong_to_the_weights_that_they_were_recorded_with(tmp_path: Path) -> None:
    folder = str(tmp_path / "model")
    with pytest.raises(UserError, match="not a model"):
        load_ranges(folder)
    for seed in (1, 2):
        save_model(random_networks(seed=seed)[0], folder, CLASSES)
        assert load_ranges(folder) is None
        for inputs_digest in ("a" * 64, "b" * 64):
            save_ranges(folder, {"conv1.1": 1.5, "a": float(seed)}, inputs_digest)
            assert load_ranges(folder) == {"conv1.1": 1.5, "a": seed}
            assert len([name for name in storage.list_files(folder) if name.startswith("activation_ranges-")]) == 1
            assert [has_ranges(folder, each) for each in ("a" * 64, "b" * 64)] == [
                inputs_digest[0] == "a",
                inputs_digest[0] == "b",
            ]
    (file,) = tmp_path.glob("model/activation_ranges-*")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match="is damaged: delete it"):
        load_ranges(folder)


@pytest.fixture
def inputs(tmp_path: Path) -> RangeInputs:
    """Nine images, of which 00, 04 and 08 are not for training, in parts and row groups that cut the training images anyhow."""
    save_networks(tmp_path)
    rows = [image_row(f"{i:02}", random_image(i, 40, 56), None, None, "train" if i % 4 else "val") for i in range(9)]
    boxes = [boxes_row(row, [[2, 2, 30 + i, 38], [10, 5, 50, 39 - i]]) for i, row in enumerate(rows) if i != 3]
    tables = write_images_and_proposals(tmp_path, rows, boxes, parts=2, rows_per_group=3)
    return RangeInputs(f"{tmp_path}/deconvnet", f"{tmp_path}/fcn8s", *tables, PredictorOptions(proposals=2, int8=True))


@pytest.mark.parametrize("chosen", [(1, 3, 6), (1, 2, 3, 5, 6, 7)])
def test_ranges_are_recorded_once_on_training_images_at_even_distances(
    inputs: RangeInputs, chosen: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Image 03 has no boxes. They are recorded in floats."""
    monkeypatch.setattr(ranges_job, "IMAGES", 3 if len(chosen) == 3 else 16)
    folders = inputs.deconvnet_uri, inputs.fcn8s_uri
    predictor = Predictor.load(*folders, options=replace(inputs.options, int8=False))
    with recording(predictor.deconvnet) as deconvnet, recording(predictor.fcn8s) as fcn8s:
        for row in iter_rows(inputs.images_uri):
            if int(row["image_id"]) in chosen:
                i = int(row["image_id"])
                boxes = np.array([[2, 2, 30 + i, 38], [10, 5, 50, 39 - i]][: 0 if i == 3 else 2], np.float32).reshape(-1, 4)
                predictor.probabilities(decode_image(row["image"]), boxes)
    with LocalExecutor(1) as executor:
        record_missing_ranges(inputs, executor)
    for folder, expected in zip(folders, (deconvnet, fcn8s), strict=True):
        found = load_ranges(folder)
        assert found == expected and len(expected) > 10
    before = sorted((file, file.stat().st_mtime_ns) for file in Path(inputs.deconvnet_uri).parent.rglob("*.*"))
    record_missing_ranges(inputs, LocalExecutor(1))
    assert before == sorted((file, file.stat().st_mtime_ns) for file in Path(inputs.deconvnet_uri).parent.rglob("*.*"))


@pytest.mark.parametrize("early_exit", [None, 0.005])
def test_ranges_belong_to_the_options_that_say_what_the_networks_see(early_exit: float | None) -> None:
    """What their scores are used for has no effect, but for the scores that decide which boxes are left out."""
    options = PredictorOptions(early_exit=early_exit)
    others = {each.name: replace(options, **{each.name: "other"}) for each in fields(options)}
    changed = {name for name, other in others.items() if ranges_job._digest(other, []) != ranges_job._digest(options, [])}
    of_scores = {"ensemble", "fcn_weight", "batch", "int8", "crf", "background"} | (
        {"aggregation"} if early_exit is None else set()
    )
    assert changed == others.keys() - of_scores


def test_ranges_are_recorded_anew_with_other_options_that_change_them(inputs: RangeInputs) -> None:
    files = []
    for options in ({}, {"context": 2.0}, {"context": 2.0, "aggregation": "mean", "crf": {"iterations": 1}, "batch": 1}):
        record_missing_ranges(replace(inputs, options=replace(inputs.options, **options)), LocalExecutor(1))
        files.append(sorted(Path(inputs.deconvnet_uri).glob("activation_ranges-*")))
    assert len(files[0]) == 1 and files[0] != files[1] == files[2]
    record_missing_ranges(inputs, LocalExecutor(1), registered=True)
    assert files[1] == sorted(Path(inputs.deconvnet_uri).glob("activation_ranges-*")), "a registered model keeps its own"


@pytest.mark.parametrize(("split", "min_side"), [("val", 0), ("train", 100)])
def test_without_boxes_in_training_images_there_are_no_ranges(
    inputs: RangeInputs, tmp_path: Path, split: str, min_side: int
) -> None:
    rows = [image_row("0", random_image(0, 40, 56), None, None, split)]
    images, proposals = write_images_and_proposals(tmp_path / "other", rows, [boxes_row(rows[0], [[2, 2, 30, 38]])])
    options = replace(inputs.options, min_side=min_side)
    with pytest.raises(UserError, match=r"segment\.int8 needs training images with boxes, and \d were tried: set it to false"):
        record_missing_ranges(replace(inputs, images_uri=images, proposals_uri=proposals, options=options), LocalExecutor(1))
    assert not list(Path(inputs.deconvnet_uri).glob("activation_ranges-*"))


@needs_int8
def test_a_predictor_computes_in_integers_if_it_is_asked_to_and_needs_the_ranges_of_both_networks(inputs: RangeInputs) -> None:
    folders = inputs.deconvnet_uri, inputs.fcn8s_uri
    image, boxes = random_image(20, 40, 56), np.array([[2, 2, 30, 38]], np.float32)
    with pytest.raises(UserError, match=rf"{folders[0]} and {folders[1]}, which .* run workflows/evaluate.py"):
        Predictor.load(*folders, options=inputs.options)
    save_ranges(
        folders[0], ranges_of(load_model(folders[0])[0], torch.from_numpy(image[:32, :32]).permute(2, 0, 1)[None]), "a" * 64
    )
    with pytest.raises(UserError, match=rf"of the activations of {folders[1]}, which"):
        Predictor.load(*folders, options=inputs.options)
    with LocalExecutor(1) as executor:
        record_missing_ranges(inputs, executor)
    floats = Predictor.load(*folders, options=replace(inputs.options, int8=False)).probabilities(image, boxes)
    integers = Predictor.load(*folders, options=inputs.options).probabilities(image, boxes)
    for name in ("fcn8s", "deconvnet"):
        assert 0 < np.abs(floats[name] - integers[name]).mean() < 0.1, name


def test_where_integers_are_not_fast_floats_are_used_and_ranges_are_not_needed(
    inputs: RangeInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_vnni": False})
    assert not computes_int8("cpu") and not computes_int8("cuda")
    image, boxes = random_image(20, 40, 56), np.array([[2, 2, 30, 38]], np.float32)
    found = [
        Predictor.load(inputs.deconvnet_uri, inputs.fcn8s_uri, options=replace(inputs.options, int8=int8)).masks(image, boxes)
        for int8 in (False, True)
    ]
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])
    for name in ("avx512_vnni", "avx_vnni", "amx_int8"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True})
        assert computes_int8("cpu") and not computes_int8("cuda")
    monkeypatch.setattr(conversion, "use_fused", lambda device: False)
    assert not computes_int8("cpu")


def test_an_evaluation_says_how_many_images_were_predicted_in_floats(
    inputs: RangeInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    masks = np.arange(40 * 56).reshape(40, 56).astype(np.uint8) % 3
    rows = [image_row(f"{i}", random_image(i, 40, 56), masks, None, "val" if i else "train") for i in range(4)]
    tables = write_images_and_proposals(tmp_path / "annotated", rows, [boxes_row(row, [[2, 2, 30, 38]]) for row in rows])
    folders = inputs.deconvnet_uri, inputs.fcn8s_uri
    record_missing_ranges(RangeInputs(*folders, *tables, inputs.options), LocalExecutor(1))
    if computes_int8("cpu"):
        evaluate(EvaluationInputs(*folders, *tables, "val", CLASSES, inputs.options), "d", LocalExecutor(1))
        assert "floats" not in caplog.text
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    for int8 in (False, True):
        assert "floats" not in caplog.text
        options = replace(inputs.options, int8=int8)
        evaluate(EvaluationInputs(*folders, *tables, "val", CLASSES, options), "d", LocalExecutor(1))
    assert "segment.int8: 3 of 3 images were predicted in floats" in caplog.text
