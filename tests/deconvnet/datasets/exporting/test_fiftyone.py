"""Data sets of FiftyOne, read back by a strict reader."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.exporting.export_writer import ExportSummary, write_samples
from deconvnet.datasets.exporting.fiftyone import PREDICTION, TRUTH, DatasetInfo, Sample, field_names_of
from deconvnet.datasets.palette import class_palette
from infra.errors import UserError
from infra.storage.tables import Reject
from proposals.image_codec import encode_jpeg, encode_png
from tests.deconvnet.datasets.exporting.fiftyone_reader import read_dataset
from tests.deconvnet.datasets.exporting.scenes import CLASSES, HEIGHT, WIDTH, scene_mask

RULES = DatasetInfo(
    "mine", "predictions by models:/a/1", CLASSES, (PREDICTION, TRUTH), ("entropy", "boundary_f"), {"iou": CLASSES}, has_maps=True
)
MAP = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)


def sample(name: str, seed: int = 0, **changes: object) -> Sample:
    """A sample of random pixels. Its prediction is a scene, its truth another with a void strip."""
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    truth = scene_mask(seed + 1)
    truth[:, 20:30] = 255
    measures = {"entropy": 0.25 + seed / 8, "boundary_f": None}
    groups = {"iou": {"ball": 0.5, "ring": None, "background": 1.0}}
    given = {"image": encode_jpeg(pixels), "masks": {PREDICTION: scene_mask(seed), TRUTH: truth}, "confidence_map": MAP}
    given |= {"measures": measures, "groups": groups, "tags": ("val",)}
    return Sample(name, f"/photos/{name}", **{**given, **changes})  # type: ignore[arg-type]


def write(folder: Path, *samples: Sample | Reject, rules: DatasetInfo = RULES) -> ExportSummary:
    """Write samples, which two functions load."""
    folder.mkdir()
    return write_samples([lambda: samples[:1], lambda: samples[1:]], [], rules, folder, 2)


def test_images_masks_maps_and_measures_come_back(tmp_path: Path) -> None:
    tiff = tmp_path / "b.tif"
    Image.fromarray(np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)).save(tiff)
    first, second = sample("site 2/a.jpg"), sample("b.tif", 1, image=tiff.read_bytes(), confidence_map=None, tags=())
    summary = write(tmp_path / "to", first, second)
    assert summary.images == 2 and not summary.rejects
    metadata, samples = read_dataset(tmp_path / "to")
    assert list(samples) == ["site 2/a.jpg", "b.png"] and metadata["description"] == "predictions by models:/a/1"
    assert (tmp_path / "to/data/site 2/a.jpg").read_bytes() == first.image
    np.testing.assert_array_equal(Image.open(tmp_path / "to/data/b.png"), Image.open(tiff))  # no browser shows TIFF
    for given, found in zip((first, second), samples.values(), strict=True):
        for name in (PREDICTION, TRUTH):
            np.testing.assert_array_equal(found[name], given.masks[name])
        assert found["entropy"] == given.measures["entropy"] and found["boundary_f"] is None
        iou = {"background": 1.0, "ring": None, "crate": None, "ball": 0.5}
        assert found["iou"] == {"_cls": "DynamicEmbeddedDocument", **iou} and found["tags"] == list(given.tags)
    np.testing.assert_array_equal(samples["site 2/a.jpg"]["confidence_map"], MAP)
    assert "confidence_map" not in samples["b.png"]


def test_void_has_a_name_in_the_truth_alone_and_every_value_its_classs_colour(tmp_path: Path) -> None:
    write(tmp_path / "to", sample("a.jpg"))
    metadata, samples = read_dataset(tmp_path / "to")
    names = {str(number): name for number, name in enumerate(CLASSES)}
    assert metadata["mask_targets"] == {PREDICTION: names, TRUTH: {**names, "255": "void"}}
    assert (samples["a.jpg"][TRUTH][:, 20:30] == 255).all() and metadata["info"]["classes"] == list(CLASSES)
    colours = {each["intTarget"]: each["color"] for each in metadata["app_config"]["color_scheme"]["default_mask_targets_colors"]}
    palette = class_palette()
    assert colours == {number: "#{:02x}{:02x}{:02x}".format(*palette[number]) for number in (1, 2, 3, 255)}


def test_without_background_no_class_has_the_value_0_that_fiftyone_hides(tmp_path: Path) -> None:
    classes = ("sky", "road", "car", "sign")
    rules = DatasetInfo("mine", "", classes, (PREDICTION, TRUTH), background=False)
    given = sample("a.jpg", confidence_map=None)
    write(tmp_path / "to", given, rules=rules)
    metadata, samples = read_dataset(tmp_path / "to")
    truth = given.masks[TRUTH]
    np.testing.assert_array_equal(samples["a.jpg"][PREDICTION], given.masks[PREDICTION] + 1)
    np.testing.assert_array_equal(samples["a.jpg"][TRUTH], np.where(truth == 255, 255, truth.astype(int) + 1))
    assert metadata["mask_targets"][PREDICTION] == {"1": "sky", "2": "road", "3": "car", "4": "sign"}
    colours = {each["intTarget"]: each["color"] for each in metadata["app_config"]["color_scheme"]["default_mask_targets_colors"]}
    assert colours[1] == "#{:02x}{:02x}{:02x}".format(*class_palette(background=False)[0]) and set(colours) == {1, 2, 3, 4, 255}
    with pytest.raises(UserError, match="255 classes are too many: FiftyOne's masks have room for 254"):
        DatasetInfo("mine", "", tuple(map(str, range(255))), (PREDICTION,), background=False)


def test_a_size_that_differs_and_an_id_without_class_are_rejected_and_nothing_of_the_image_is_written(tmp_path: Path) -> None:
    small, strange = scene_mask()[:50], np.where(scene_mask() == 3, 4, 0).astype(np.uint8)
    bad = [sample("size.jpg", masks={PREDICTION: small}), sample("id.jpg", masks={PREDICTION: scene_mask(), TRUTH: strange})]
    bad += [sample("text.png", image=b"no image")]
    summary = write(tmp_path / "to", sample("good.jpg"), *bad, Reject("gone.jpg", "/photos/gone.jpg", "export", "it is gone"))
    reasons = {reject.image_id: reject.reason for reject in summary.rejects}
    assert summary.images == 1 and list(read_dataset(tmp_path / "to")[1]) == ["good.jpg"]
    assert reasons.pop("size.jpg") == "its prediction is 170×50 px, and the image 170×120 px"
    assert reasons.pop("id.jpg") == "its ground_truth has the id 4, and there are 4 classes"
    assert set(reasons) == {"text.png", "gone.jpg"}
    assert 'id.jpg,/photos/id.jpg,"its ground_truth has' in (tmp_path / "to/rejects.csv").read_text()


def test_the_mask_of_a_turned_image_is_as_the_image_is_displayed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "turned.jpg", exif=exif)
    turned = sample("turned.jpg", image=(tmp_path / "turned.jpg").read_bytes())
    assert not write(tmp_path / "to", turned).rejects
    assert read_dataset(tmp_path / "to")[1]["turned.jpg"][PREDICTION].shape == (HEIGHT, WIDTH)


def test_names_that_fiftyone_cannot_have_are_replaced_by_others_which_all_differ() -> None:
    names = ("copy", "a.b", "a_b", "_x", "road sign", "$", "é-1", "..", "id")
    keys = field_names_of(names)
    assert len(set(keys.values())) == len(names) and list(keys) == list(names)
    assert all(keys[each] == each for each in ("a_b", "road sign", "é-1"))
    assert not {"copy", "id"} & set(keys.values()) and not any(
        key.startswith("_") or set(key) & set(".$") for key in keys.values()
    )


def test_the_same_samples_make_the_same_files(tmp_path: Path) -> None:
    png = sample("b.png", 2, image=encode_png(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
    contents = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        write(folder, sample("a.jpg"), png)
        contents.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")})
    assert contents[0] == contents[1] and len(contents[0]) == 10
