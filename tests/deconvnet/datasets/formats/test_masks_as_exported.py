"""Masks as programs export them: with transparency, compressed, antialiased, and of two kinds in one folder."""

import io

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.importing.mask_values import read_mask_values
from infra.errors import UserError
from tests.deconvnet.datasets.formats.inputs import HEIGHT, WIDTH, rejection_reason, write_image
from tests.deconvnet.datasets.formats.inputs import read_mask_folder as read

TRUTH = np.zeros((HEIGHT, WIDTH), np.uint8)
TRUTH[5:20, 5:25], TRUTH[18:35, 35:55] = 1, 2
COLOURS = np.array([[0, 0, 0], [220, 20, 60], [0, 0, 142]], np.uint8)
TABLE = "crate, 220 20 60\nball, 0 0 142\n"


def class_masks(dataset):
    return [entry.load().class_mask for entry in dataset.entries]


def with_alpha(colours, alpha):
    """An RGBA mask, or one of grey and alpha if the colours have no channels."""
    return Image.fromarray(np.dstack([colours, alpha.astype(np.uint8)]))


def hidden_colours():
    """Masks with transparent background, of which each hides other values; some have two classes, some one."""
    alpha = (TRUTH > 0) * 255
    grey = np.array([255, 1, 2], np.uint8)[TRUTH]
    paletted = Image.fromarray(np.array([9, 1, 2], np.uint8)[TRUTH])
    paletted.putpalette([*range(256)] * 3)
    paletted.info["transparency"] = 9
    return {
        "white": with_alpha(np.array([[255, 255, 255], *COLOURS[1:]], np.uint8)[TRUTH], alpha),
        "a class": with_alpha(COLOURS[[1, 1, 2]][TRUTH], alpha),
        "noise": with_alpha(np.where(TRUTH[..., None] > 0, COLOURS[TRUTH], noise()).astype(np.uint8), alpha),
        "half opaque": with_alpha(COLOURS[[1, 1, 2]][TRUTH], np.array([0, 128, 255])[TRUTH]),
        "grey": with_alpha(grey, alpha),
        "palette": paletted,
    }


def noise():
    return np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize("kind", sorted(hidden_colours()))
def test_what_transparency_hides_is_background_and_no_class(tmp_path, kind):
    mask = hidden_colours()[kind]
    dataset = read(tmp_path / "inferred", mask, mask)
    assert len(dataset.classes) == 3 and any("2 masks have transparent pixels" in note for note in dataset.notes)
    found = class_masks(dataset)[0]
    assert np.array_equal(found > 0, TRUTH > 0) and len(np.unique(found)) == 3
    table = TABLE if mask.mode == "RGBA" else "crate, 1\nball, 2\n"
    assert np.array_equal(class_masks(read(tmp_path / "table", mask, table=table))[0], TRUTH)
    found = class_masks(read(tmp_path / "void", mask, table=table, transparent="void"))[0]
    assert np.array_equal(found, np.where(TRUTH == 0, 255, TRUTH))


def test_the_palettes_of_transparent_masks_are_compared_without_what_is_hidden(tmp_path):
    """The palettes differ in their last colour alone, or have only grey levels, as those of masks without transparency."""
    masks = []
    for colours in ([[0, 0, 0], [1, 1, 1], [2, 2, 2], [9, 9, 9]], [[0, 0, 0], [1, 1, 1], [2, 2, 2], [9, 9, 9], [7, 0, 0]]):
        mask = Image.fromarray(np.array([3, 1, 2], np.uint8)[TRUTH])
        mask.putpalette(np.array(colours, np.uint8).ravel().tolist())
        mask.info["transparency"] = 3
        masks.append(mask)
    dataset = read(tmp_path, *masks)
    assert dataset.classes == ("background", "id_1", "id_2")
    assert all(np.array_equal(found, TRUTH) for found in class_masks(dataset))
    sink = io.BytesIO()
    masks[0].save(sink, "PNG")
    assert not read_mask_values(sink.getvalue(), 10**6).palette


def test_transparency_can_be_ignored(tmp_path):
    mask = with_alpha(COLOURS[[1, 1, 2]][TRUTH], (TRUTH > 0) * 255)
    found = class_masks(read(tmp_path, mask, table=TABLE, transparent="opaque"))[0]
    assert np.array_equal(found, np.where(TRUTH == 2, 2, 1))


def test_a_mask_that_is_transparent_everywhere_is_rejected_if_it_has_several_values(tmp_path):
    mask = with_alpha(COLOURS[TRUTH], TRUTH * 0)
    assert "transparent everywhere, though it has 3 values" in rejection_reason(read(tmp_path, mask, table=TABLE))
    empty = with_alpha(COLOURS[TRUTH * 0], TRUTH * 0)
    assert not class_masks(read(tmp_path / "empty", empty, table=TABLE))[0].any()


def test_classes_in_the_alpha_channel_alone_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no mask has another value than 0.* the classes are in the alpha channel"):
        read(tmp_path, with_alpha(COLOURS[TRUTH * 0], TRUTH * 127))


def test_void_of_a_palette_stays_void_where_it_is_transparent(tmp_path):
    mask = Image.fromarray(np.where(TRUTH == 2, 255, TRUTH).astype(np.uint8)).convert("P")
    mask.info["transparency"] = 255
    assert np.array_equal(class_masks(read(tmp_path, mask, mask))[0], np.where(TRUTH == 2, 255, TRUTH))


def smooth(pixels):
    """Pixels enlarged and reduced again, as an antialiasing program draws them."""
    image = Image.fromarray(pixels)
    return image.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.NEAREST).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("kind", ["colours", "ids", "0 and 255", "alpha"])
def test_antialiased_masks_are_refused_and_void_on_demand(tmp_path, kind):
    mask = {
        "colours": smooth(COLOURS[TRUTH]),
        "ids": smooth(TRUTH * 100),
        "0 and 255": smooth((TRUTH > 0).astype(np.uint8) * 255),
        "alpha": smooth(np.dstack([COLOURS[[1, 1, 2]][TRUTH], (TRUTH > 0) * 255]).astype(np.uint8)),
    }[kind]
    with pytest.raises(UserError, match="blending along edges"):
        read(tmp_path / "inferred", mask, mask)
    table = {"ids": "crate, 100\nball, 200", "0 and 255": "object, 255"}.get(kind, TABLE)
    table += "\nbackground, 0 0 0" if kind in ("colours", "alpha") else ""
    assert "has no class" in rejection_reason(read(tmp_path / "table", mask, table=table))
    image = read(tmp_path / "void", mask, table=table, unknown_void=True).entries[0].load()
    void = image.class_mask == 255
    expected = np.minimum(TRUTH, 1) if kind == "0 and 255" else TRUTH
    assert np.array_equal(image.class_mask[~void], expected[~void])
    assert void.any() and "values that are not in the class table and became void" in image.remark


@pytest.mark.parametrize(
    ("size", "how"),
    [
        ((WIDTH + 9, HEIGHT + 7), Image.Resampling.BILINEAR),
        ((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BILINEAR),
        ((WIDTH - 9, HEIGHT - 7), Image.Resampling.BICUBIC),
        ((WIDTH + 9, HEIGHT + 7), Image.Resampling.HAMMING),
    ],
)
def test_ids_that_resizing_made_ids_of_other_classes_are_refused(tmp_path, size, how):
    truth = TRUTH * (TRUTH == 1)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    truth[(y - 24) ** 2 + (x - 42) ** 2 <= 14**2] = 2
    resized = np.asarray(Image.fromarray(truth).resize(size, how)).clip(0, 2)
    kinds = {"inferred": {}, "names": {"classes": ("background", "crate", "ball")}, "table": {"table": "crate, 1\nball, 2\n"}}
    for kind, rules in kinds.items():
        with pytest.raises(UserError, match="as after resizing with interpolation"):
            read(tmp_path / kind, resized, resized, **rules)
        assert len(read(tmp_path / kind, truth, truth, **rules).classes) == 3
    assert len(read(tmp_path / "void", resized, unknown_void=True, **kinds["names"]).entries) == 1


def save(folder, masks, suffix, **options):
    """Write masks with these options of Pillow."""
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"masks/p{number}{suffix}", **options)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".jpg", {"quality": 100}), (".jpg", {"quality": 90}), (".webp", {"quality": 60}), (".tif", {"compression": "jpeg"})],
)
@pytest.mark.parametrize("kind", ["ids", "0 and 255"])
def test_compressed_masks_are_refused_and_void_on_demand(tmp_path, suffix, options, kind):
    ids = TRUTH if kind == "ids" else (TRUTH > 0).astype(np.uint8) * 255
    ids = np.where(noise()[..., 0] < 20, ids[::-1, ::-1], ids).astype(np.uint8)  # speckles, which no compression keeps
    table = "crate, 1\nball, 2" if kind == "ids" else "object, 255"
    save(tmp_path, [ids, ids], suffix, **options)
    for rules in ({}, {"classes": ("background", "crate", "ball")[: 3 if kind == "ids" else 2], "unknown_void": True}):
        with pytest.raises(UserError, match=r"2 of 2 masks can't be used, the first is .*p0\..* saved as JPEG or WebP"):
            read_saved(tmp_path, **rules)
    assert "JPEG" in rejection_reason(read_saved(tmp_path, table=table))
    if suffix != ".webp":  # it has colours now
        found, truth = class_masks(read_saved(tmp_path, table=table, unknown_void=True))[0], np.where(ids == 255, 1, ids)
        assert len(np.unique(found)) > 1
        assert (found != truth)[found != 255].mean() < 0.02  # speckles of which nothing is left in the file


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
@pytest.mark.parametrize("values", [(1, 2), (1, 3), (100, 128), ("#000001", "#010203"), ("#804080", "#904890")])
def test_wrong_classes_along_the_edges_of_compressed_masks_become_void(tmp_path, suffix, values):
    """Between classes whose values are near, others of them come about along the edges."""
    lookup = [[int(v[i : i + 2], 16) for i in (1, 3, 5)] if isinstance(v, str) else v for v in values]
    lookup = np.array([np.zeros_like(lookup[0]), *lookup], np.uint8)
    options = {".jpg": {"quality": 90}, ".tif": {"compression": "jpeg", "quality": 90}}[suffix]
    save(tmp_path, [lookup[TRUTH], lookup[TRUTH]], suffix, **options)
    table = "crate, {}\nball, {}\n".format(*values)
    dataset = read_saved(tmp_path, table=table, unknown_void=True)
    found, known = class_masks(dataset)[0], class_masks(dataset)[0] != 255
    assert (found == TRUTH)[known].all()
    assert known.mean() > 0.3 or lookup.ndim == 2  # JPEG keeps few colours exactly
    assert "3 px along edges" in dataset.entries[0].load().remark


def test_a_jpeg_of_low_quality_whose_ids_are_near_is_refused(tmp_path):
    """Here the id 1 has become 0 in whole areas."""
    for quality, ids in ((50, [0, 1, 2]), (30, [0, 10, 20]), (10, [0, 3, 200])):
        folder = tmp_path / str(quality)
        save(folder, [np.array(ids, np.uint8)[TRUTH]] * 2, ".jpg", quality=quality)
        dataset = read_saved(folder, table=f"crate, {ids[1]}\nball, {ids[2]}\n", unknown_void=True)
        assert "of such a low quality that its ids may be those of other classes" in rejection_reason(dataset)


def test_compressed_masks_whose_values_are_far_apart_keep_their_edges(tmp_path):
    save(tmp_path, [np.array([0, 100, 200], np.uint8)[TRUTH]] * 2, ".jpg", quality=75)
    found = class_masks(read_saved(tmp_path, table="crate, 100\nball, 200\nvoid, 255\n", unknown_void=True))[0]
    assert (found == TRUTH)[found != 255].all() and (found != 255).mean() > 0.7


def read_saved(folder, **rules):
    """The data set of masks that `save` wrote."""
    for number in range(2):
        write_image(folder / f"images/p{number}.jpg")
    return read(folder, **rules)


def test_compression_that_lost_nothing_is_accepted(tmp_path):
    for suffix, options in ((".webp", {"lossless": True}), (".tif", {"compression": "tiff_lzw"})):
        save(tmp_path / suffix, [TRUTH, TRUTH], suffix, **options)
        assert np.array_equal(class_masks(read_saved(tmp_path / suffix))[0], TRUTH)


def test_masks_of_0_and_1_and_of_0_and_255_are_not_mixed_silently(tmp_path):
    one, other = np.minimum(TRUTH, 1), np.minimum(TRUTH, 1) * 255
    for rules in ({}, {"classes": ("background", "object")}, {"table": "object, 1\n"}):
        with pytest.raises(UserError, match="not clear whether 255 is a class or void"):
            read(tmp_path / str(len(rules)), one, other, **rules)
    dataset = read(tmp_path / "joined", one, other, Image.fromarray(one > 0), table="object, 1\nobject, 255\n")
    assert all(np.array_equal(found, one) for found in class_masks(dataset))


def test_grey_masks_among_coloured_ones_are_colours(tmp_path):
    white = np.array([[0, 0, 0], [255, 255, 255], [255, 255, 255]], np.uint8)[TRUTH]
    coloured = np.array([[0, 0, 0], [255, 255, 255], [0, 200, 0]], np.uint8)[TRUTH]
    dataset = read(tmp_path, coloured, white)
    assert dataset.classes == ("background", "colour_00c800", "colour_ffffff")
    assert np.array_equal(class_masks(dataset)[1] == 2, TRUTH > 0)


def test_ids_that_16_bits_do_not_hold_are_refused(tmp_path):
    dataset = read(tmp_path, Image.fromarray((TRUTH.astype(np.int32) << 16) + 5), suffix=".tif", table="crate, 5\n")
    assert "its ids run from 5 to 131077" in rejection_reason(dataset)


def test_a_background_of_another_name_is_told(tmp_path):
    dataset = read(tmp_path, TRUTH, table="null, 0\ncrate, 1\nball, 2\n")
    assert dataset.classes == ("background", "crate", "ball") and "null (id 0) is the background" in dataset.notes[0]
    assert np.array_equal(class_masks(dataset)[0], TRUTH)
    with pytest.raises(UserError, match=r"calls id 0 sky: which class is the background\? It has sky \(\d+% of the pixels\), "):
        read(tmp_path / "sky", TRUTH, table="sky, 0\ncrate, 1\nball, 2\n")
