"""Folders of masks: ids and colours by a table or inferred, and what is refused or rejected."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.formats.masks import read_masks
from deconvnet.datasets.importing.dataset import AnnotationSource, ImportOptions
from deconvnet.datasets.palette import VOC_CLASSES, VOC_PALETTE
from infra.errors import UserError
from tests.deconvnet.datasets.formats.inputs import HEIGHT, WIDTH, rejection_reason, scene_mask, write_image, write_text
from tests.deconvnet.datasets.formats.inputs import read_mask_folder as read
from tests.proposals.grey_png import grey_png

IDS = np.zeros((HEIGHT, WIDTH), np.uint8)
IDS[5:20, 5:20], IDS[20:35, 30:50], IDS[0] = 7, 11, 255
COLOURS = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
COLOURS[IDS == 7], COLOURS[IDS == 11] = (250, 50, 83), (51, 221, 255)


def class_mask(dataset):
    return dataset.entries[0].load().class_mask


def test_ids_are_read_by_a_table(tmp_path):
    dataset = read(tmp_path, IDS, table="# id table\nroad, 7\nunlabelled, 11\n", mask_suffix="_mask")
    mask = class_mask(dataset)
    assert dataset.classes == ("background", "road") and dataset.entries[0].image_id == "p0"
    assert (mask[IDS == 7] == 1).all() and (mask[IDS == 11] == 255).all() and (mask[IDS == 255] == 255).all()


@pytest.mark.parametrize(("images", "masks"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
@pytest.mark.parametrize("suffix", ["", "_maßstab ä"])
def test_masks_are_matched_in_any_unicode_form_of_their_names(tmp_path, images, masks, suffix):
    write_image(tmp_path / unicodedata.normalize(images, "images/größe/ü1.jpg"))
    mask_path = tmp_path / unicodedata.normalize(masks, f"masks/größe/ü1{suffix}.png")
    mask_path.parent.mkdir(parents=True)
    Image.fromarray(IDS).save(mask_path)
    source = AnnotationSource(str(tmp_path / "images"), str(tmp_path / "masks"))
    dataset = read_masks([source], ImportOptions(mask_suffix=suffix))
    assert len(dataset.entries) == 1 and not dataset.rejects and (class_mask(dataset)[IDS == 11] == 2).all()


def test_classes_of_ids_are_inferred(tmp_path):
    dataset = read(tmp_path, IDS)
    assert dataset.classes == ("background", "id_7", "id_11") and "each id found" in dataset.notes[0]
    assert dataset.class_table == "background, 0\nid_7, 7\nid_11, 11\nvoid, 255\n"
    mask = class_mask(dataset)
    assert (mask[IDS == 11] == 2).all() and (mask[IDS == 255] == 255).all()


def test_black_and_white_masks_have_one_class_at_255(tmp_path):
    dataset = read(tmp_path, np.where(IDS == 7, 255, 0).astype(np.uint8))
    assert dataset.classes == ("background", "object") and (class_mask(dataset) == 1).sum() == 225


def test_colours_are_those_of_voc_or_of_a_table_or_inferred(tmp_path):
    voc = np.where(IDS == 11, 15, IDS)
    dataset = read(tmp_path / "voc", VOC_PALETTE[voc])
    assert dataset.classes == VOC_CLASSES and np.array_equal(class_mask(dataset), voc)
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[IDS == 7], colours[IDS == 11] = (10, 20, 30), (0, 200, 0)
    assert read(tmp_path / "inferred", colours).classes == ("background", "colour_00c800", "colour_0a141e")
    dataset = read(tmp_path / "table", colours, table="background:0,0,0::\ntraffic light:10,20,30::\n#00c800 sky\n")
    assert dataset.classes == ("background", "traffic light", "sky")
    assert (class_mask(dataset)[IDS == 11] == 2).all()


def test_a_paletted_mask_is_read_by_the_colours_of_a_table(tmp_path):
    paletted = Image.fromarray(np.where(IDS == 7, 1, 0).astype(np.uint8)).convert("P")
    paletted.putpalette([0, 0, 0, 10, 20, 30])
    dataset = read(tmp_path, paletted, table="road 10 20 30\nbackground 0 0 0\n")
    assert (class_mask(dataset) == 1).sum() == 225


def test_values_without_a_class_reject_their_image_or_are_void(tmp_path):
    dataset = read(tmp_path, IDS, table="road, 7\n")
    assert "12 % of the mask has no class: id 11" in rejection_reason(dataset)
    dataset = read(tmp_path, IDS, table="road, 7\n", unknown_void=True)
    assert (class_mask(dataset)[IDS == 11] == 255).all()


def test_masks_that_were_resized_or_saved_as_jpeg_are_refused(tmp_path):
    with pytest.raises(UserError, match="saved as JPEG"):
        read(tmp_path, IDS, np.roll(IDS, 3, 1), suffix=".jpg")
    enlarged = Image.fromarray(np.where(IDS == 255, 0, IDS * 9)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, (0, 0, 31, 21))
    with pytest.raises(UserError, match="saved as JPEG"):
        read(tmp_path / "resized", enlarged)


def test_grey_masks_of_few_bits_are_refused_unless_a_table_names_their_levels(tmp_path):
    write_image(tmp_path / "images/0.png")
    (tmp_path / "masks").mkdir()
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[:9], ids[12:, :20] = 3, 1
    (tmp_path / "masks/0.png").write_bytes(grey_png(ids, 2))
    source = AnnotationSource(str(tmp_path / "images"), str(tmp_path / "masks"))
    with pytest.raises(UserError, match=r"none of the 1 masks can be used; .*0\.png: it is grey with 2 bits, so its ids may be"):
        read_masks([source], ImportOptions())
    (tmp_path / "t.txt").write_text("ground 0 0 0\ncat 255 255 255\ndog 85 85 85\n")
    dataset = read_masks([source], ImportOptions(class_table_uri=str(tmp_path / "t.txt"), background="ground"))
    mask = dataset.entries[0].load().class_mask
    assert dataset.classes[mask[0, 0]] == "cat" and dataset.classes[mask[15, 0]] == "dog" and mask[10, 0] == 0


def test_masks_and_images_that_do_not_match_are_left_out_or_refused(tmp_path):
    read(tmp_path, IDS, IDS)
    (tmp_path / "images/p1.jpg").rename(tmp_path / "images/q.jpg")
    dataset = read(tmp_path, IDS)
    assert "1 images" in dataset.notes[0] and dataset.rejects[0].image_id == "p1" and len(dataset.entries) == 1
    (tmp_path / "images/p0.jpg").unlink()
    with pytest.raises(UserError, match=r"no mask in .* has the name of an image in .* \(q.jpg and p0.png, for example\)"):
        read_masks([AnnotationSource(str(tmp_path / "images"), str(tmp_path / "masks"))], ImportOptions())


@pytest.mark.parametrize(
    ("stem", "image_suffix", "mask_suffix", "other", "kind"),
    [
        ("aachen/aachen_000000_000019", "_leftImg8bit", "_gtFine_labelIds", "_gtFine_color", ".png"),
        ("0001TP_006690", "_rgb", "_L", "_depth", ".png"),
        ("tile_1", "_image", "_label", "_height", ".tif"),
    ],
    ids=["Cityscapes", "CamVid", "tiles"],
)
def test_images_and_masks_with_endings_of_their_own_belong_together(tmp_path, stem, image_suffix, mask_suffix, other, kind):
    names = [f"i/{stem}{image_suffix}", f"i/{stem}_right", f"m/{stem}{mask_suffix}", f"m/{stem}{other}"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IDS).save(tmp_path / f"{name}{kind}")
    sources = [AnnotationSource(str(tmp_path / "i"), str(tmp_path / "m"))]
    dataset = read_masks(sources, ImportOptions(image_suffix=image_suffix, mask_suffix=mask_suffix))
    assert [entry.uri for entry in dataset.entries] == [str(tmp_path / f"{names[2]}{kind}")] and not dataset.rejects
    assert (class_mask(dataset)[IDS == 11] == 2).all() and any(f"don't end in {image_suffix}" in note for note in dataset.notes)
    with pytest.raises(UserError, match="with --mask_suffix in place of --image_suffix"):
        read_masks(sources, ImportOptions(image_suffix="_x", mask_suffix=mask_suffix))


@pytest.mark.parametrize(
    ("name", "text", "pixels"),
    [
        ("masks/_classes.csv", "Pixel Value, Class\n0, background\n7, crate\n11, ball\n", IDS),
        ("class_dict.csv", "name,r,g,b\nbackground,0,0,0\ncrate,250,50,83\nball,51,221,255\n", COLOURS),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\nball:51,221,255::\ncrate:250,50,83::\n", COLOURS),
        ("label_colors.txt", "0 0 0\tbackground\n250 50 83\tcrate\n51 221 255\tball\n", COLOURS),
    ],
    ids=["Roboflow", "class_dict.csv", "CVAT", "CamVid"],
)
def test_a_table_that_a_tool_wrote_beside_the_masks_is_used_and_told(tmp_path, name, text, pixels):
    (tmp_path / "masks").mkdir()
    (tmp_path / name).write_text(text)
    dataset = read(tmp_path, pixels)
    assert dataset.notes[0].startswith(f"the classes are those of {tmp_path / name}")
    mask = class_mask(dataset)
    assert set(dataset.classes) == {"background", "crate", "ball"}
    assert (mask[IDS == 7] == dataset.classes.index("crate")).all() and (mask[IDS == 11] == dataset.classes.index("ball")).all()
    (tmp_path / "table.txt").write_text(text.replace("ball", "disc"))
    assert "disc" in read(tmp_path, pixels, class_table_uri=str(tmp_path / "table.txt")).classes


def test_classes_that_are_named_are_used_in_place_of_a_table_beside_the_masks(tmp_path):
    write_text(tmp_path / "masks/_classes.csv", "Pixel Value, Class\n0, background\n1, crate\n2, ball\n")
    dataset = read(tmp_path, scene_mask(), classes=("background", "disc", "cone"))
    assert dataset.classes == ("background", "disc", "cone") and not any("_classes.csv" in note for note in dataset.notes)


def test_a_table_in_another_encoding_is_refused_and_read_by_its_name(tmp_path):
    write_text(tmp_path / "masks/_classes.csv", "Pixel Value, Class\n0, background\n1, 裂缝\n2, 坑洞\n", "gbk")
    with pytest.raises(UserError, match=r"_classes\.csv can't be read: byte .*--encoding"):
        read(tmp_path, scene_mask())
    assert read(tmp_path, scene_mask(), encoding="gbk").classes == ("background", "裂缝", "坑洞")


def test_tables_of_two_folders_that_differ_are_refused(tmp_path):
    sources = []
    for split, name in (("train", "crate"), ("valid", "box")):
        read(tmp_path / split, IDS)
        (tmp_path / split / "masks/_classes.csv").write_text(f"Pixel Value, Class\n0, background\n7, {name}\n11, ball\n")
        sources.append(AnnotationSource(str(tmp_path / split / "images"), str(tmp_path / split / "masks")))
    with pytest.raises(UserError, match="name different classes: name one by --table"):
        read_masks(sources, ImportOptions())


def test_two_folders_are_one_data_set_and_keep_their_splits(tmp_path):
    sources = []
    for split, name in (("train", "a"), ("val", "b")):
        read(tmp_path / split, IDS if name == "a" else IDS[::-1])
        for each in ("images/p0.jpg", "masks/p0.png"):
            (tmp_path / split / each).rename(tmp_path / split / each.replace("p0", name))
        sources.append(AnnotationSource(str(tmp_path / split / "images"), str(tmp_path / split / "masks"), split))
    dataset = read_masks(sources, ImportOptions())
    assert {entry.image_id: entry.split for entry in dataset.entries} == {"a": "train", "b": "val"} and not dataset.rejects
    for entry, ids in zip(dataset.entries, (IDS, IDS[::-1]), strict=True):
        np.testing.assert_array_equal(entry.load().class_mask, np.select([ids == 7, ids == 11, ids == 255], [1, 2, 255]))


def test_masks_and_images_larger_than_allowed_are_refused_or_rejected(tmp_path):
    assert "larger than 300 pixels" in rejection_reason(read(tmp_path, IDS, table="road, 7\nball, 11\n", max_pixels=300))
    with pytest.raises(UserError, match="larger than 300 pixels"):
        read(tmp_path / "inferred", IDS, max_pixels=300)


def test_images_and_masks_in_one_folder_are_told_apart_by_their_endings(tmp_path):
    write_image(tmp_path / "IMG_0001_jpg.rf.0a1b.jpg")
    Image.fromarray(IDS).save(tmp_path / "IMG_0001_jpg.rf.0a1b_mask.png")
    (tmp_path / "_classes.csv").write_text("Pixel Value, Class\n0, background\n7, crate\n11, ball\n")
    sources = [AnnotationSource(str(tmp_path), str(tmp_path))]
    with pytest.raises(UserError, match=r"in one folder, .*: say by --mask_suffix"):
        read_masks(sources, ImportOptions())
    dataset = read_masks(sources, ImportOptions(mask_suffix="_mask"))
    assert len(dataset.entries) == 1 and not dataset.rejects and (class_mask(dataset)[IDS == 11] == 2).all()


def test_of_masks_of_one_image_a_jpeg_is_left_out_and_others_are_rejected(tmp_path):
    read(tmp_path, IDS, IDS, IDS)
    Image.fromarray(IDS).convert("RGB").save(tmp_path / "masks/p0.jpg")
    Image.fromarray(IDS).save(tmp_path / "masks/p2.gif")
    Image.fromarray(IDS + 1).save(tmp_path / "masks/p1.bmp")
    dataset = read_masks([AnnotationSource(str(tmp_path / "images"), str(tmp_path / "masks"))], ImportOptions())
    assert [entry.uri.rpartition("/")[2] for entry in dataset.entries] == ["p0.png", "p2.png"]
    assert [reject.reason for reject in dataset.rejects] == ["p1.bmp and p1.png are masks of one image: keep one"]
    assert any(note.startswith("2 JPEGs or GIFs") for note in dataset.notes)


RED_AND_BLUE = np.array([[0, 0, 0], [250, 50, 83], [51, 221, 255]], np.uint8)


def paletted(folder, orders, table=None):
    """A mask for each order: the ids that stand for background, the red and the blue class in its palette."""
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    truth[2:12, 2:12], truth[15:28, 15:35] = 1, 2
    masks = []
    for order in orders:
        mask = Image.fromarray(np.array(order, np.uint8)[truth]).convert("P")
        palette = np.zeros((256, 3), np.uint8)
        palette[list(order)] = RED_AND_BLUE
        mask.putpalette(palette.tobytes())
        masks.append(mask)
    return truth, read(folder, *masks, table=table)


@pytest.mark.parametrize("orders", [[(0, 1, 2), (0, 2, 1)], [(0, 1, 2), (1, 0, 2)], [(0, 1, 2)] * 4 + [(0, 7, 1)]])
def test_palettes_that_differ_are_read_by_a_table_of_colours_and_refused_without_one(tmp_path, orders):
    with pytest.raises(
        UserError, match=r"palettes of the masks differ \(id \d is #\w{6} in .*p\d.png and #\w{6} in .*by --table"
    ):
        paletted(tmp_path / "a", orders)
    truth, dataset = paletted(tmp_path / "b", orders, "background, 0 0 0\nred, 250 50 83\nblue, 51 221 255\n")
    for entry in dataset.entries:
        np.testing.assert_array_equal(entry.load().class_mask, truth)


def test_palettes_that_differ_are_read_by_a_table_of_ids_with_a_note(tmp_path):
    _, dataset = paletted(tmp_path, [(0, 1, 2), (0, 2, 1)], "background, 0\nred, 1\nblue, 2\n")
    assert any("palettes of the masks differ" in note and "their ids are read" in note for note in dataset.notes)


@pytest.mark.parametrize("orders", [[(0, 1, 2)] * 3, [(0, 3, 7), (0, 3, 7)]])
def test_palettes_that_agree_need_no_table(tmp_path, orders):
    truth, dataset = paletted(tmp_path, orders)
    assert not any("palettes" in note for note in dataset.notes)
    for entry in dataset.entries:
        np.testing.assert_array_equal(entry.load().class_mask, truth)


def test_masks_of_floats_are_ids_if_they_are_whole_numbers(tmp_path):
    ids = np.zeros((HEIGHT, WIDTH), np.float32)
    ids[2:12, 2:12], ids[15:28, 15:35] = 1, 2
    np.testing.assert_array_equal(class_mask(read(tmp_path / "whole", Image.fromarray(ids), suffix=".tif")), ids)
    for wrong in (ids / 2, ids - 1, np.where(ids == 1, np.nan, ids).astype(np.float32)):
        with pytest.raises(UserError, match=r"none of the 1 masks can be used; .*p0.tif: its values"):
            read(tmp_path / f"wrong{wrong.min()}", Image.fromarray(wrong), suffix=".tif")


@pytest.mark.parametrize("objects", ["SegmentationObject", None])
def test_object_masks_beside_the_masks_are_said_to_be_ignored(tmp_path, objects):
    """CVAT's Segmentation mask 1.1 has them."""
    for name in ("JPEGImages", "SegmentationClass", *filter(None, [objects])):
        write_image(tmp_path / f"{name}/a.png")
    Image.fromarray(IDS).save(tmp_path / "SegmentationClass/a.png")
    sources = [AnnotationSource(str(tmp_path / "JPEGImages"), str(tmp_path / "SegmentationClass"))]
    notes = [note for note in read_masks(sources, ImportOptions()).notes if "each connected region" in note]
    assert [note.partition(" ")[0] for note in notes] == ([str(tmp_path / objects)] if objects else [])


def test_images_with_the_name_of_another_are_told(tmp_path):
    write_image(tmp_path / "images/p0.png")
    dataset = read(tmp_path, Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)))
    assert any(
        "1 images are left out, because another image differs from each only in the suffix, such as p0" in note
        for note in dataset.notes
    )


def test_colours_that_are_almost_equal_are_told(tmp_path):
    off = np.where(COLOURS == (250, 50, 83), COLOURS + np.uint8(1), COLOURS).astype(np.uint8)
    assert "#fa3253 and #fb3354 are almost equal" in read(tmp_path / "a", COLOURS, off).notes[0]
    assert "almost" not in read(tmp_path / "b", COLOURS).notes[0]
