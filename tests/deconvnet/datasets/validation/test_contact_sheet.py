"""Contact sheets: what is drawn, and which images are chosen."""

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from deconvnet.datasets.palette import class_palette
from deconvnet.datasets.synthetic import generate
from deconvnet.datasets.validation import contact_sheet
from deconvnet.datasets.validation.contact_sheet import SheetCell, draw_contact_sheet, select_images
from deconvnet.datasets.validation.image_statistics import ImageStatistics


def scene(seed):
    return generate(seed, 5, 80, 100)[0]


def test_the_contact_sheet_marks_suspicious_images_and_takes_names_that_look_like_formulas():
    masks = [np.full((80, 100), class_id, np.uint8) for class_id in (0, 255, 2)]
    cells = [SheetCell(scene(i), mask, f"$a_{i}", "x" * 90 if i else "") for i, mask in enumerate(masks)]
    picture = np.asarray(Image.open(io.BytesIO(draw_contact_sheet(cells, ("background", "$c", "b"), "a $title$"))).convert("RGB"))
    orange = (np.abs(picture.astype(int) - (0xD9, 0x48, 0x01)) < 3).all(axis=2)
    assert not orange[:, :300].any() and orange[:, 300:].sum() > 1000
    with pytest.raises(ValueError, match="no images"):
        draw_contact_sheet([], ("background",), "none")


def test_a_contact_sheet_outlines_regions_and_has_notes_beside_warnings(monkeypatch):
    captions, real = [], Axes.set_xlabel
    monkeypatch.setattr(Axes, "set_xlabel", lambda axes, text, **more: captions.append(text) or real(axes, text, **more))
    region = np.zeros((80, 100), bool)
    region[20:60, 30:70] = True
    fields = {"a": {"doubtful": region}, "b": {"note": "sure"}, "c": {"warning": "w", "note": "sure"}}
    cells = [SheetCell(scene(0), np.zeros((80, 100), np.uint8), title, **more) for title, more in fields.items()]
    sheet = Image.open(io.BytesIO(draw_contact_sheet(cells, ("background",), "title"))).convert("RGB")
    assert captions == ["a\n", "b\nsure", "c\nw"]
    outline = (np.asarray(sheet) == (230, 0, 230)).all(axis=2)
    assert not outline[:, 300:].any()
    height, width = (int(np.ptp(places)) for places in np.nonzero(outline))
    assert height == pytest.approx(width, abs=4) and outline.sum() == pytest.approx(2 * (height + width), rel=0.2)


@pytest.mark.parametrize(("cells", "height"), [(1, 370), (4, 370), (5, 640)])
def test_a_sheet_has_four_images_in_a_row_of_270_px(cells, height):
    cell = SheetCell(np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8), "a")
    sheet = Image.open(io.BytesIO(draw_contact_sheet([cell] * cells, ("background",), "title")))
    assert sheet.size == (1200, height)


@pytest.mark.parametrize(("shape", "drawn"), [((1, 900), (1, 288)), ((900, 1), (225, 1)), ((450, 288), (225, 144))])
def test_an_image_is_drawn_at_the_size_that_just_fits_its_cell_and_one_pixel_wide_at_least(monkeypatch, shape, drawn):
    sizes, real = [], Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda axes, image, **more: sizes.append(image.shape[:2]) or real(axes, image, **more))
    draw_contact_sheet([SheetCell(np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8), "thin")], "xyz", "title")
    assert sizes == [drawn]


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


def test_a_sheet_shows_suspicious_images_of_each_kind_then_rare_classes_then_others_from_all_over_the_data():
    """Class 2 is in two images. The first, which is larger, has more of its pixels, and the second a larger share of them."""
    pixels = [{0: 90, 1: 10} | {30: {2: 40}, 31: {2: 30}}.get(i, {}) for i in range(60)]
    images = [ImageStatistics(f"{i:02d}", "train", 20 if i == 30 else 10, 10, each) for i, each in enumerate(pixels)]
    suspicious = {f"{i:02d}": {"void" if i < 6 else "speckles": "reason"} for i in range(12)}
    found = select_images(images, suspicious, 16)
    assert found[:10] == ["00", "06", "01", "07", "02", "08", "03", "09", "04", "31"]
    assert found[-1] == "59" and len(set(found)) == 16
    found = select_images(images, {image_id: {"void": "reason"} for image_id in suspicious}, 16)
    assert found[:4] == ["00", "01", "02", "03"] and not {"05", "06", "07"} & {*found}, (
        "a quarter, and others from all over the data"
    )


def test_a_long_caption_is_cut_to_its_limit(monkeypatch):
    monkeypatch.setattr(contact_sheet, "_CAPTION_CHARACTERS", 5)
    captions, real = [], Axes.set_xlabel
    monkeypatch.setattr(Axes, "set_xlabel", lambda axes, text, **more: captions.append(text) or real(axes, text, **more))
    draw_contact_sheet(
        [SheetCell(np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8), "abcdef", "abcde")], "xyz", "title"
    )
    assert captions == ["abcd…\nabcde"]
