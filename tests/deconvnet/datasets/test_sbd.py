"""SBD's MATLAB files, converted and added to a VOC folder."""

import io

import numpy as np
import pytest
from scipy.io import savemat

from deconvnet.datasets import sbd as module
from deconvnet.datasets.sbd import add_sbd_to_voc, read_masks, read_mat
from deconvnet.datasets.voc import VocDataset, read_split
from infra.errors import BadInput, UserError
from proposals.image_codec import decode_mask

CLASSES = np.zeros((40, 60), np.uint8)
CLASSES[5:20, 5:20], CLASSES[5:20, 20:40] = 3, 15
INSTANCES = (CLASSES == 3) * np.uint8(1) + (CLASSES == 15) * np.uint8(2)


def mat(name, segmentation, categories=None):
    struct = {"Segmentation": segmentation}
    if categories is not None:
        struct["Categories"] = np.array(categories, np.uint8).reshape(-1, 1)
    sink = io.BytesIO()
    savemat(sink, {name: struct}, do_compression=True)
    return sink.getvalue()


def put(folder, image_id, cls=None, inst=None):
    (folder / "cls").mkdir(parents=True, exist_ok=True)
    (folder / "inst").mkdir(exist_ok=True)
    (folder / f"cls/{image_id}.mat").write_bytes(mat("GTcls", CLASSES) if cls is None else cls)
    (folder / f"inst/{image_id}.mat").write_bytes(mat("GTinst", INSTANCES, [3, 15]) if inst is None else inst)


@pytest.fixture
def sbd(layout, tmp_path):
    """SBD annotates images of VOC's train (a, b) and val (v), and three more (s, t, u)."""
    folder = tmp_path / "sbd"
    for image_id in ("a", "b", "v", "s", "t", "u"):
        put(folder, image_id)
    for image_id in ("s", "t", "u"):
        layout.image(image_id)
    (folder / "train.txt").write_text("a\ns\nt\n")
    (folder / "val.txt").write_text("b\nv\nu\n")
    return folder


def test_masks_of_an_image():
    classes, objects = read_masks(mat("GTcls", CLASSES), mat("GTinst", INSTANCES, [3, 15]))
    assert np.array_equal(classes, CLASSES) and np.array_equal(objects, INSTANCES)
    assert read_mat(mat("GTinst", INSTANCES > 0, [7]), "GTinst")[1] == (7,)


def test_unreadable_mat_files_are_rejected_with_a_reason():
    good = mat("GTcls", CLASSES)
    for data, word in [
        (b"", "empty"),
        (b"words " * 99, "MATLAB"),
        (good[: len(good) // 2], "MATLAB"),
        (mat("X", CLASSES), "no GTcls"),
    ]:
        with pytest.raises(BadInput, match=word):
            read_mat(data, "GTcls")
    with pytest.raises(BadInput, match="Categories names 1"):
        read_masks(good, mat("GTinst", INSTANCES, [3]))
    with pytest.raises(BadInput, match="GTinst is 60×20"):
        read_masks(good, mat("GTinst", INSTANCES[:20], [3, 15]))


def test_train_aug_has_sbd_and_vocs_train_without_vocs_val(layout, sbd):
    vocs_own = (layout.root / "SegmentationClass/a.png").read_bytes()
    count, rejects = add_sbd_to_voc(str(sbd), str(layout.root))
    assert (count, rejects) == (7, [])
    assert read_split(str(layout.root), "train_aug") == ["a", "b", "c", "d", "s", "t", "u"]
    assert (layout.root / "SegmentationClass/a.png").read_bytes() == vocs_own
    assert not (layout.root / "SegmentationObject/v.png").exists()
    assert np.array_equal(decode_mask((layout.root / "SegmentationClass/s.png").read_bytes()), CLASSES)
    assert np.array_equal(decode_mask((layout.root / "SegmentationObject/s.png").read_bytes()), INSTANCES)
    assert not VocDataset(str(layout.root)).split("train_aug")[1]


def test_images_that_can_not_be_converted_are_left_out(layout, sbd):
    put(sbd, "s", cls=b"words")
    (sbd / "inst/t.mat").unlink()
    (sbd / "train.txt").write_text("a\ns\nt\n../v\nnophoto\n")
    count, rejects = add_sbd_to_voc(str(sbd), str(layout.root))
    assert count == 5 and read_split(str(layout.root), "train_aug") == ["a", "b", "c", "d", "u"]
    words = {"../v": "plain file name", "nophoto": "no image", "s": "MATLAB", "t": "there is no file"}
    assert [r.image_id for r in rejects] == sorted(words)
    assert all(words[r.image_id] in r.reason for r in rejects)


def test_an_interrupted_run_leaves_no_list_and_is_resumed(layout, sbd, monkeypatch):
    convert, done = module._convert, []

    def stop_at_the_second(sbd, voc_root, image_id):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(image_id)
        convert(sbd, voc_root, image_id)

    monkeypatch.setattr(module, "_convert", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        add_sbd_to_voc(str(sbd), str(layout.root))
    assert done == ["s"] and not (layout.root / "ImageSets/Segmentation/train_aug.txt").exists()
    again = []
    monkeypatch.setattr(module, "_convert", lambda *a: (again.append(a[2]), convert(*a)))
    assert add_sbd_to_voc(str(sbd), str(layout.root))[0] == 7
    assert again == ["t", "u"]


def test_an_image_of_which_one_mask_is_missing_is_converted_again(layout, sbd):
    """The run was killed between its two files."""
    add_sbd_to_voc(str(sbd), str(layout.root))
    for name in ("SegmentationObject/s.png", "SegmentationClass/t.png"):
        (layout.root / name).unlink()
    add_sbd_to_voc(str(sbd), str(layout.root))
    assert np.array_equal(decode_mask((layout.root / "SegmentationObject/s.png").read_bytes()), INSTANCES)
    assert np.array_equal(decode_mask((layout.root / "SegmentationClass/t.png").read_bytes()), CLASSES)


def test_a_folder_that_is_not_sbds_is_refused(layout, tmp_path):
    with pytest.raises(UserError, match=r"train\.txt.*dataset"):
        add_sbd_to_voc(str(tmp_path), str(layout.root))
