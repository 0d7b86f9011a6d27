"""The check of a data set: which faults it finds, and that it reports no others."""

import io

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.synthetic import generate
from deconvnet.datasets.validation import check
from deconvnet.datasets.validation.check import check_dataset
from deconvnet.datasets.validation.contact_sheet import select_images
from deconvnet.datasets.validation.image_statistics import ImageStatistics
from deconvnet.datasets.validation.report import make_report
from infra.storage import write_json
from proposals.edgebox import EdgeBoxOptions
from proposals.image_codec import encode_jpeg, encode_mask

CLASSES = ("background", "cat", "dog", "cow")
LIMITS = EdgeBoxOptions(min_box_area=100.0)


def line_of(report, start):
    """The first line of a report that starts so."""
    found = [line for line in report.text.splitlines() if line.startswith(start)]
    assert found, f"no line starts with {start} in\n{report.text}"
    return found[0]


def scene(seed, size=(80, 100)):
    return generate(seed, 5, *size)[0]


def measured(image_id, split, pixels):
    """An image, 10 px wide, with these numbers of pixels by class."""
    return ImageStatistics(image_id, split, 10, sum(pixels.values()) // 10, pixels)


@pytest.fixture
def no_sheet(monkeypatch):
    """The images of the contact sheet are read, but not drawn, which takes longer than all the rest."""
    monkeypatch.setattr(check, "draw_contact_sheet", lambda cells, *_: b"")


@pytest.fixture
def faulty(layout):
    """The layout's a, b, c, d (train) and v, w (val), each with a fault of its own."""
    for number, image_id in enumerate("abcdvw"):
        layout.image(image_id, encode_jpeg(scene(number)))
    mask = np.zeros((80, 100), np.uint8)
    mask[10:40, 10:50] = 1
    layout.mask("b", mask)  # without fault
    layout.mask("a", np.zeros_like(mask))  # empty
    layout.mask("c", np.full_like(mask, 1))  # one class
    speckled = mask.copy()
    speckled[60, 60:63], speckled[70:72, 70] = 2, 2
    layout.mask("d", speckled)
    void = np.full_like(mask, 255)
    void[:50] = mask[:50]
    void[:5, :50] = 3
    layout.mask("v", void)
    layout.mask("w", mask[:70])  # of another size
    return layout


def test_every_fault_is_found_and_nothing_else(faulty):
    report, sheet = check_dataset(str(faulty.root), CLASSES, LIMITS, title="faulty")
    found = {image_id: list(kinds) for image_id, kinds in report.suspicious.items()}
    assert found == {"w": ["unusable"], "c": ["one class"], "a": ["empty"], "v": ["void"], "d": ["speckles"]}
    assert "the mask is 100×70, the image 100×80" in report.suspicious["w"]["unusable"]
    assert line_of(report, "* class **dog**") == "* class **dog** is only in train (1 image): it can't be evaluated"
    assert line_of(report, "* class **cow**") == "* class **cow** is only in val (1 image): it can't be learned"
    assert line_of(report, "* class **cat**") == "* class **cat** is in 3 images of train: few to learn from"
    assert "2 objects under 10 px" in line_of(report, "* **speckles**")
    cells = [cell.strip() for cell in line_of(report, "| dog").split("|")[2:-1]]
    assert cells == ["1", "0", "2", "0", "<0.1 %", "100.0 %", "0.0 %", "0.0 %", "100.0 %"]
    cells = [cell.strip() for cell in line_of(report, "| cat").split("|")[2:-1]]
    assert cells[:4] == ["3", "1", "3", "1"] and cells[5:] == ["0.0 %", "0.0 %", "100.0 %", "0.0 %"]
    picture = Image.open(io.BytesIO(sheet))
    assert picture.width == 1200


def test_a_data_set_without_faults_has_no_suspicion(layout, no_sheet):
    for number, image_id in enumerate("abcdvw"):
        layout.image(image_id, encode_jpeg(scene(number, (40, 60))))
    layout.annotated_image("e")
    layout.split("train", ["a", "b", "c", "d", "e"])
    report, _ = check_dataset(str(layout.root), CLASSES[:2], LIMITS, title="fine")
    assert "Nothing suspicious was found." in report.text and not report.suspicious


def test_a_near_duplicate_in_val_is_found_at_any_size_and_quality(layout, no_sheet):
    for number, image_id in enumerate("abcdvw"):
        layout.image(image_id, encode_jpeg(scene(number, (80, 120))))
        layout.mask(image_id, np.zeros((80, 120), np.uint8))
    copy = Image.fromarray(scene(3, (80, 120))).resize((60, 40), Image.Resampling.LANCZOS)
    layout.image("w", copy, quality=60)
    layout.mask("w")
    layout.image("b", encode_jpeg(scene(0, (80, 120))))
    report, _ = check_dataset(str(layout.root), CLASSES, LIMITS, title="copies")
    assert report.suspicious["w"]["near duplicate"].startswith("d in train")
    assert "near duplicate" not in report.suspicious.get("v", {})
    assert "the same file 2 times in train: a, b" in report.text


def test_unknown_ids_that_come_from_blended_edges_are_reported_as_such(layout, no_sheet):
    masks = generate(1, 0, 120, 160)[1] % 255 * 30
    layout.image("a", encode_jpeg(scene(0, (180, 240))))
    layout.mask("a", np.asarray(Image.fromarray(masks).resize((240, 180), Image.Resampling.BILINEAR)))
    report, _ = check_dataset(str(layout.root), CLASSES, LIMITS, title="soft")
    assert list(report.suspicious["a"]) == ["unusable", "blended edges"]


@pytest.mark.parametrize("key", ["images", "photographs"])
def test_the_report_of_an_imported_data_set_has_what_the_import_counted(layout, no_sheet, key):
    """Earlier versions wrote the key "photographs"."""
    losses = [{"class": "cat", "reason": "covers no pixel", "annotations": 3}]
    content = {"notes": ["a note"], "overlaps": {key: 3, "share_of_pixels": 0.25, "hidden_objects": 2}}
    content |= {"annotations": 60, "losses": losses}
    write_json(str(layout.root / "import.json"), content)
    report, _ = check_dataset(str(layout.root), CLASSES, LIMITS, title="imported")
    assert "\n* a note\n" in report.text
    assert "\nWhen the folder was imported, 3 of 60 annotations (5.0 %) did not become objects. rejects.csv" in report.text
    assert [cell.strip() for cell in line_of(report, "| cat   | ").split("|")[1:-1]] == ["cat", "3", "covers no pixel"]
    assert "objects overlapped in 3 images (25.0 % of all pixels); 2 objects lay wholly under others" in report.text


def test_16_bit_masks_are_checked_too(layout, no_sheet):
    layout.mask("a", encode_mask(np.ones((40, 60), np.uint16)))
    report, _ = check_dataset(str(layout.root), CLASSES, LIMITS, title="16")
    assert "one class" in report.suspicious["a"]


def test_the_splits_that_are_named_are_checked_with_the_limit_of_pixels_that_is_given(layout, no_sheet):
    layout.split("more", ["a", "b", "c"])
    layout.split("held", ["w"])
    layout.image("c", np.zeros((40, 20, 3), np.uint8))
    layout.mask("c", np.zeros((40, 20), np.uint8))
    report, _ = check_dataset(str(layout.root), CLASSES, LIMITS, title="named", splits=("more", "held"), max_pixels=2000)
    unusable = {image_id for image_id, kinds in report.suspicious.items() if "unusable" in kinds}
    assert unusable == {"a", "b", "w"} and "60×40 is larger than 2,000 pixels" in report.suspicious["a"]["unusable"]


def test_the_table_of_splits_has_the_smallest_the_median_and_the_largest_image():
    sizes = {"a": (30, 90), "b": (20, 20), "c": (60, 50), "v": (25, 40)}
    images = [ImageStatistics(each, "val" if each == "v" else "train", *size, {0: 1}) for each, size in sizes.items()]
    images.append(ImageStatistics("d", "train", suspicions={"unusable": "the file is empty"}))
    lines = make_report(images, CLASSES, LIMITS, "t").text.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith(("| train", "| val"))]
    assert rows[0] == ["train", "3", "1", "0", "20×20", "30×90", "60×50"]
    assert rows[1] == ["val", "1", "0", "0", "25×40", "25×40", "25×40"]


@pytest.mark.parametrize(
    ("pixels", "kinds"),
    [
        ({0: 4, 1: 396}, []),
        ({0: 3, 1: 397}, ["one class"]),
        ({0: 30, 1: 250, 255: 120}, []),
        ({0: 30, 1: 249, 255: 121}, ["void"]),
    ],
)
def test_over_99_percent_of_one_class_and_over_30_percent_of_void_are_suspicious(layout, no_sheet, pixels, kinds):
    layout.image("a", np.zeros((20, 20, 3), np.uint8))
    layout.mask("a", np.repeat(list(pixels), list(pixels.values())).astype(np.uint8).reshape(20, 20))
    report, _ = check_dataset(str(layout.root), CLASSES, LIMITS, title="shares")
    assert list(report.suspicious.get("a", {})) == kinds


@pytest.mark.parametrize("mask", [np.full((40, 60), 77, np.uint8), np.ones((40, 61), np.uint8), None])
def test_an_image_whose_mask_changes_during_the_check_is_not_drawn(layout, monkeypatch, mask):
    def change_then_select(*args):
        if mask is None:
            (layout.root / "SegmentationClass/a.png").unlink()
        else:
            layout.mask("a", mask)
        return select_images(*args)

    monkeypatch.setattr(check, "select_images", change_then_select)
    drawn = []
    monkeypatch.setattr(check, "draw_contact_sheet", lambda cells, *_: drawn.extend(cell.title for cell in cells))
    check.check_dataset(str(layout.root), CLASSES, LIMITS, title="changed")
    assert drawn and "a" not in drawn


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        ({1: 900, 2: 100}, ["the background, **background**, has no pixels", "class **cat** covers 90.0 % of the pixels"]),
        ({0: 300, 2: 700}, ["class **dog** covers 70.0 % of the pixels: is it the background (--background)?"]),
        ({0: 600, 1: 400, 255: 9000}, []),
        ({0: 200, 1: 400, 2: 400, 3: 300}, []),
    ],
)
def test_a_class_that_may_be_the_background_is_told(pixels, words):
    images = [measured(each, "train" if each in "abcd" else "val", pixels) for each in "abcdvw"]
    text = make_report(images, CLASSES, LIMITS, "t").text
    found = [line for line in text.splitlines() if "(--background)" in line]
    assert len(found) == len(words) and all(word in line for word, line in zip(words, found, strict=True))


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        (0, 0, "is in no image: is it in the list by mistake?"),
        (0, 2, "is only in val (2 images): it can't be learned"),
        (7, 0, "is only in train (7 images): it can't be evaluated"),
        (4, 1, "is in 4 images of train: few to learn from"),
        (5, 1, None),
    ],
)
def test_a_class_of_few_images_is_told(train, val, words):
    images = [measured(f"t{i}", "train", {0: 90, 1: 10} if i < train else {0: 100}) for i in range(8)]
    images += [measured(f"v{i}", "val", {0: 90, 1: 10} if i < val else {0: 100}) for i in range(3)]
    text = make_report(images, CLASSES[:2], LIMITS, "t").text
    assert [line for line in text.splitlines() if "**cat**" in line] == ([f"* class **cat** {words}"] if words else [])
