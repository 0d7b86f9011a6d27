"""What the check finds in folders that were spoilt on purpose, and what it leaves alone."""

import io

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.synthetic import generate
from deconvnet.datasets.validation.contact_sheet import contact_sheet
from deconvnet.datasets.validation.folder import check_folder
from deconvnet.datasets.validation.measure import Search, boxes_of, content_hash, overlapping, soft_ids
from proposals.image_codec import decode_image, encode_jpeg, encode_mask

CLASSES = ("background", "cat", "dog", "cow")
SEARCH = Search(100.0, 1024)


def line_of(report, start):
    found = [line for line in report.text.splitlines() if line.startswith(start)]
    assert found, f"no line {start} in\n{report.text}"
    return found[0]


def scene(seed, size=(80, 100)):
    return generate(seed, 5, *size)[0]


@pytest.fixture
def spoilt(layout):
    """The layout's a, b, c, d (train) and v, w (val), each with a fault of its own."""
    for number, image_id in enumerate("abcdvw"):
        layout.image(image_id, encode_jpeg(scene(number)))
    mask = np.zeros((80, 100), np.uint8)
    mask[10:40, 10:50] = 1
    layout.mask("b", mask)  # in order
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


def test_every_fault_is_found_and_nothing_else(spoilt):
    report, sheet = check_folder(str(spoilt.root), CLASSES, SEARCH, title="spoilt")
    assert {image_id: list(kinds) for image_id, kinds in report.marked.items()} == {
        "w": ["unusable"], "c": ["one class"], "a": ["empty"], "v": ["void"], "d": ["speckles"]
    }  # fmt: skip
    assert "the mask is 100×70, the photograph 100×80" in report.marked["w"]["unusable"]
    assert line_of(report, "* class **dog**") == "* class **dog** is in train alone (1 photograph): it can't be measured"
    assert line_of(report, "* class **cow**") == "* class **cow** is in val alone (1 photograph): it can't be learned"
    assert "2 objects under 10 px" in line_of(report, "* **speckles**")
    cells = [cell.strip() for cell in line_of(report, "| dog").split("|")[2:-1]]
    assert cells == ["1", "0", "2", "0", "<0.1 %", "100.0 %", "0.0 %", "0.0 %", "100.0 %"]
    cells = [cell.strip() for cell in line_of(report, "| cat").split("|")[2:-1]]
    assert cells[:4] == ["3", "1", "3", "1"] and cells[5:] == ["0.0 %", "0.0 %", "100.0 %", "0.0 %"]
    picture = Image.open(io.BytesIO(sheet))
    assert picture.width == 1200


def test_a_data_set_in_order_is_said_to_be(layout):
    for number, image_id in enumerate("abcdvw"):
        layout.image(image_id, encode_jpeg(scene(number, (40, 60))))
    layout.photograph("e")
    layout.split("train", ["a", "b", "c", "d", "e"])
    report, _ = check_folder(str(layout.root), CLASSES[:2], SEARCH, title="fine")
    assert "Nothing suspicious was found." in report.text and not report.marked


def test_a_twin_in_val_is_found_whatever_its_size_and_quality(layout):
    for number, image_id in enumerate("abcdvw"):
        layout.image(image_id, encode_jpeg(scene(number, (80, 120))))
        layout.mask(image_id, np.zeros((80, 120), np.uint8))
    twin = Image.fromarray(scene(3, (80, 120))).resize((60, 40), Image.Resampling.LANCZOS)
    layout.image("w", twin, quality=60)
    layout.mask("w")
    layout.image("b", encode_jpeg(scene(0, (80, 120))))
    report, _ = check_folder(str(layout.root), CLASSES, SEARCH, title="twins")
    assert report.marked["w"]["twin"].startswith("d in train") and "twin" not in report.marked.get("v", {})
    assert "the same file 2 times in train: a, b" in report.text


def test_hashes_tell_photographs_apart_and_know_a_turned_one():
    photographs = [encode_jpeg(scene(i)) for i in range(30)]
    hashes = [content_hash(p) for p in photographs]
    differ = [int(np.bitwise_count(a ^ b).sum()) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(differ) > 40
    exif = Image.Exif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    Image.fromarray(np.rot90(scene(0)).copy()).save(sink, "PNG", exif=exif)
    assert np.array_equal(decode_image(sink.getvalue()), scene(0))
    assert int(np.bitwise_count(content_hash(sink.getvalue()) ^ hashes[0]).sum()) < 12
    assert content_hash(encode_jpeg(np.full((40, 60, 3), 90, np.uint8))) is None


def test_soft_edges_are_told_from_classes():
    labels = np.concatenate([generate(i, 0, 120, 160)[1] for i in range(4)])
    assert soft_ids(labels) == []
    resized = Image.fromarray(np.where(labels == 255, 0, labels * 20)).resize((320, 960), Image.Resampling.BILINEAR)
    assert len(soft_ids(np.asarray(resized))) > 5
    rope = np.zeros((60, 60), np.uint8)
    rope[:, 30:] = 9
    rope[20] = 4  # a thin class: a rope across another one's edge
    assert soft_ids(rope) == []


def test_ids_beyond_the_classes_from_soft_edges_are_called_so(layout):
    labels = generate(1, 0, 120, 160)[1] % 255 * 30
    layout.image("a", encode_jpeg(scene(0, (180, 240))))
    layout.mask("a", np.asarray(Image.fromarray(labels).resize((240, 180), Image.Resampling.BILINEAR)))
    report, _ = check_folder(str(layout.root), CLASSES, SEARCH, title="soft")
    assert list(report.marked["a"]) == ["unusable", "soft edges"]


def test_boxes_and_what_overlaps():
    classes, ids = np.zeros((2, 40, 60), np.uint8)
    ids[5:20, 5:25], ids[6:19, 6:24], ids[30:, 50:] = 1, 2, 7
    classes[ids > 0] = 2
    classes[ids == 7] = 3
    found = boxes_of(classes, ids)
    assert found.tolist() == [[2, 300 - 234, 5, 5, 25, 20], [2, 234, 6, 6, 24, 19], [3, 100, 50, 30, 60, 40]]
    assert overlapping(found) == 2
    ids16 = ids.astype(np.uint16)
    ids16[0] = 65535
    assert np.array_equal(boxes_of(classes, ids16), found)


def test_the_sheet_shows_marks_and_names_that_look_like_formulas():
    cells = [
        {
            "image": scene(i),
            "mask": np.full((80, 100), 255 * (i == 1) or i, np.uint8),
            "title": f"$a_{i}",
            "mark": "x" * 90 if i else "",
        }
        for i in range(3)
    ]
    picture = np.asarray(Image.open(io.BytesIO(contact_sheet(cells, ("background", "$c", "b"), "a $title$"))).convert("RGB"))
    orange = (np.abs(picture.astype(int) - (0xD9, 0x48, 0x01)) < 3).all(axis=2)
    assert not orange[:, :300].any() and orange[:, 300:].sum() > 1000
    with pytest.raises(ValueError, match="no photographs"):
        contact_sheet([], CLASSES, "none")


def test_masks_are_not_needed_to_be_ours(layout):
    """A 16-bit mask is read too."""
    layout.mask("a", encode_mask(np.ones((40, 60), np.uint16)))
    report, sheet = check_folder(str(layout.root), CLASSES, SEARCH, title="16")
    assert "one class" in report.marked["a"] and sheet
