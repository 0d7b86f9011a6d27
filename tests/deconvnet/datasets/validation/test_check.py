"""The check of a data set: which faults it finds, and that it reports no others."""

import io

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.palette import class_palette
from deconvnet.datasets.synthetic import generate
from deconvnet.datasets.validation import check
from deconvnet.datasets.validation.check import check_dataset
from deconvnet.datasets.validation.contact_sheet import SheetCell, draw_contact_sheet, select_images
from deconvnet.datasets.validation.image_statistics import count_overlapping, object_boxes
from deconvnet.datasets.validation.perceptual_hash import perceptual_hash
from infra.storage import write_json
from proposals.edgebox import EdgeBoxOptions
from proposals.image_codec import decode_image, encode_jpeg, encode_mask

CLASSES = ("background", "cat", "dog", "cow")
LIMITS = EdgeBoxOptions(min_box_area=100.0)


def line_of(report, start):
    """The first line of a report that starts so."""
    found = [line for line in report.text.splitlines() if line.startswith(start)]
    assert found, f"no line starts with {start} in\n{report.text}"
    return found[0]


def scene(seed, size=(80, 100)):
    return generate(seed, 5, *size)[0]


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
    assert "2 objects under 10 px" in line_of(report, "* **speckles**")
    cells = [cell.strip() for cell in line_of(report, "| dog").split("|")[2:-1]]
    assert cells == ["1", "0", "2", "0", "<0.1 %", "100.0 %", "0.0 %", "0.0 %", "100.0 %"]
    cells = [cell.strip() for cell in line_of(report, "| cat").split("|")[2:-1]]
    assert cells[:4] == ["3", "1", "3", "1"] and cells[5:] == ["0.0 %", "0.0 %", "100.0 %", "0.0 %"]
    picture = Image.open(io.BytesIO(sheet))
    assert picture.width == 1200


def test_a_data_set_without_faults_has_no_suspicion(layout):
    for number, image_id in enumerate("abcdvw"):
        layout.image(image_id, encode_jpeg(scene(number, (40, 60))))
    layout.annotated_image("e")
    layout.split("train", ["a", "b", "c", "d", "e"])
    report, _ = check_dataset(str(layout.root), CLASSES[:2], LIMITS, title="fine")
    assert "Nothing suspicious was found." in report.text and not report.suspicious


def test_a_near_duplicate_in_val_is_found_at_any_size_and_quality(layout):
    for number, image_id in enumerate("abcdvw"):
        layout.image(image_id, encode_jpeg(scene(number, (80, 120))))
        layout.mask(image_id, np.zeros((80, 120), np.uint8))
    copy = Image.fromarray(scene(3, (80, 120))).resize((60, 40), Image.Resampling.LANCZOS)
    layout.image("w", copy, quality=60)
    layout.mask("w")
    layout.image("b", encode_jpeg(scene(0, (80, 120))))
    report, _ = check_dataset(str(layout.root), CLASSES, LIMITS, title="copies")
    assert report.suspicious["w"]["near duplicate"].startswith("d in train") and "near duplicate" not in report.suspicious.get(
        "v", {}
    )
    assert "the same file 2 times in train: a, b" in report.text


def test_hashes_differ_between_images_and_not_by_exif_orientation():
    hashes = [perceptual_hash(encode_jpeg(scene(i))) for i in range(30)]
    differ = [int(np.bitwise_count(a ^ b).sum()) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(differ) > 40
    exif = Image.Exif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    Image.fromarray(np.rot90(scene(0)).copy()).save(sink, "PNG", exif=exif)
    assert np.array_equal(decode_image(sink.getvalue()), scene(0))
    assert int(np.bitwise_count(perceptual_hash(sink.getvalue()) ^ hashes[0]).sum()) < 12
    assert perceptual_hash(encode_jpeg(np.full((40, 60, 3), 90, np.uint8))) is None


def test_unknown_ids_that_come_from_blended_edges_are_reported_as_such(layout):
    masks = generate(1, 0, 120, 160)[1] % 255 * 30
    layout.image("a", encode_jpeg(scene(0, (180, 240))))
    layout.mask("a", np.asarray(Image.fromarray(masks).resize((240, 180), Image.Resampling.BILINEAR)))
    report, _ = check_dataset(str(layout.root), CLASSES, LIMITS, title="soft")
    assert list(report.suspicious["a"]) == ["unusable", "blended edges"]


def test_boxes_of_objects_and_how_many_overlap():
    classes, ids = np.zeros((2, 40, 60), np.uint8)
    ids[5:20, 5:25], ids[6:19, 6:24], ids[30:, 50:] = 1, 2, 7
    classes[ids > 0] = 2
    classes[ids == 7] = 3
    found = object_boxes(classes, ids)
    assert found.tolist() == [[2, 300 - 234, 5, 5, 25, 20], [2, 234, 6, 6, 24, 19], [3, 100, 50, 30, 60, 40]]
    assert count_overlapping(found) == 2
    ids16 = ids.astype(np.uint16)
    ids16[0] = 65535
    assert np.array_equal(object_boxes(classes, ids16), found)


def test_the_contact_sheet_marks_suspicious_images_and_takes_names_that_look_like_formulas():
    masks = [np.full((80, 100), class_id, np.uint8) for class_id in (0, 255, 2)]
    cells = [SheetCell(scene(i), mask, f"$a_{i}", "x" * 90 if i else "") for i, mask in enumerate(masks)]
    picture = np.asarray(Image.open(io.BytesIO(draw_contact_sheet(cells, ("background", "$c", "b"), "a $title$"))).convert("RGB"))
    orange = (np.abs(picture.astype(int) - (0xD9, 0x48, 0x01)) < 3).all(axis=2)
    assert not orange[:, :300].any() and orange[:, 300:].sum() > 1000
    with pytest.raises(ValueError, match="no images"):
        draw_contact_sheet([], CLASSES, "none")


def test_a_contact_sheet_outlines_regions_and_has_notes_beside_warnings():
    region = np.zeros((80, 100), bool)
    region[20:60, 30:70] = True
    mask = np.zeros((80, 100), np.uint8)

    def drawn(**fields):
        sheet = draw_contact_sheet([SheetCell(scene(0), mask, "a", **fields)], ("background",), "title")
        return np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB"))

    outline = (drawn(doubtful=region) == (230, 0, 230)).all(axis=2)
    assert not (drawn() == (230, 0, 230)).all(axis=2).any()
    height, width = (int(np.ptp(places)) for places in np.nonzero(outline))
    assert height == pytest.approx(width, abs=4) and outline.sum() == pytest.approx(2 * (height + width), rel=0.2)
    assert (drawn(note="sure") != drawn()).any() and (drawn(warning="w", note="sure") == drawn(warning="w")).all()


def test_a_contact_sheet_of_data_without_a_background_paints_and_lists_all_classes_in_the_colours_of_masks():
    """Classes 0 and 2 of three; void lies beside them."""
    mask = np.zeros((80, 100), np.uint8)
    mask[:, 40:80], mask[:, 80:] = 2, 255

    def shown(background):
        sheet = draw_contact_sheet([SheetCell(np.full((80, 100, 3), 90, np.uint8), mask, "a")], "xyz", "title", background)
        drawn = np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB")).astype(int)
        half = [[(90 + part) // 2 for part in colour] for colour in class_palette(background)[[0, 2, 255]].tolist()]
        painted = [(np.abs(drawn - colour).max(axis=2) <= 1).sum() > 1000 for colour in half]
        listed = [(drawn[-60:] == colour).all(axis=2).sum() > 50 for colour in class_palette(background)[[0, 1, 2, 255]]]
        return painted, listed

    assert shown(False) == ([True, True, True], [True, False, True, True])
    assert shown(True) == ([False, True, True], [False, False, True, True])


@pytest.mark.parametrize("key", ["images", "photographs"])
def test_the_report_of_an_imported_data_set_has_what_the_import_counted(layout, key):
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


def test_16_bit_masks_are_checked_too(layout):
    layout.mask("a", encode_mask(np.ones((40, 60), np.uint16)))
    report, sheet = check_dataset(str(layout.root), CLASSES, LIMITS, title="16")
    assert "one class" in report.suspicious["a"] and sheet


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
def test_a_class_that_may_be_the_background_is_told(layout, pixels, words):
    mask = np.repeat(np.array([*pixels], np.uint8), [3 * count for count in pixels.values()]).reshape(-1, 100)
    for number, image_id in enumerate("abcdvw"):
        layout.image(image_id, encode_jpeg(scene(number, mask.shape)))
        layout.mask(image_id, mask)
    report, _ = check_dataset(str(layout.root), CLASSES, LIMITS, title="t")
    found = [line for line in report.text.splitlines() if "(--background)" in line]
    assert len(found) == len(words) and all(word in line for word, line in zip(words, found, strict=True))
