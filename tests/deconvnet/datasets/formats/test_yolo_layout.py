"""The folders, lists and names of classes of YOLO's text files, as the tools write them: splits, and what is refused."""

import pytest

from infra.errors import UserError
from tests.deconvnet.datasets.formats.inputs import write_image, write_text
from tests.deconvnet.datasets.formats.yolo_inputs import SCENE, check_scene, read, splits_of, write_scenes


def test_ultralytics_splits_are_those_of_data_yaml(tmp_path):
    write_scenes(tmp_path, train__a=SCENE, train__b="", val__c=SCENE, test__d=SCENE)
    yaml = "path: /content/elsewhere\ntrain: images/train\nval: images/val\ntest: images/test\nnames:\n  0: crate\n  1: ball\n"
    write_text(tmp_path / "data.yaml", yaml)
    for given in (tmp_path / "data.yaml", tmp_path):
        dataset = read(given)
        check_scene(dataset)
        assert splits_of(dataset) == {"train_a": "train", "train_b": "train", "val_c": "val"}
        assert any(note.startswith("1 images") and "neither train nor val" in note for note in dataset.notes)
        assert dataset.entries[1].load().class_mask.max() == 0


@pytest.mark.parametrize("name", ["data.yaml", "coco8.yaml"])
def test_the_file_of_the_classes_is_data_yaml_or_the_only_yaml_that_is_not_hidden_and_val_may_be_called_valid(tmp_path, name):
    write_scenes(tmp_path, train__a=SCENE, val__b=SCENE)
    write_text(tmp_path / name, "train: images/train\nvalid: images/val\nnames: [crate, ball]\n")
    write_text(tmp_path / ("args.yaml" if name == "data.yaml" else "._coco8.yaml"), "names: [other, classes]\n")
    dataset = read(tmp_path)
    check_scene(dataset)
    assert splits_of(dataset) == {"train_a": "train", "val_b": "val"}


@pytest.mark.parametrize("elsewhere", ["/content/set/images", "../set/images", "D:\\set\\images"])
@pytest.mark.parametrize("images", ["images", "."])
def test_splits_with_the_paths_of_another_machine_are_found_below_the_images(tmp_path, elsewhere, images):
    write_scenes(tmp_path, train__a=SCENE, train__b=SCENE, val__c=SCENE, test__d=SCENE)
    text = "".join(f"{split}: '{elsewhere}/{split}'\n" for split in ("train", "val", "test"))
    write_text(tmp_path / "data.yaml", text + "names: [crate, ball]\n")
    dataset = read(tmp_path / "data.yaml", tmp_path / images)
    assert splits_of(dataset) == {"train_a": "train", "train_b": "train", "val_c": "val"}
    assert sum(f"is taken for {split}" in note for note in dataset.notes for split in ("train", "val", "test")) == 3


def test_lists_with_the_paths_of_another_machine_are_found_beside_data_yaml(tmp_path):
    write_scenes(tmp_path, a=SCENE, b=SCENE, c=SCENE)
    for split, name in (("train", "a"), ("val", "b"), ("test", "c")):
        write_text(tmp_path / f"{split}.txt", f"/content/images/{name}.jpg\n")
    text = "".join(f"{split}: /content/{split}.txt\n" for split in ("train", "val", "test"))
    write_text(tmp_path / "data.yaml", text + "names: [crate, ball]\n")
    assert splits_of(read(tmp_path / "data.yaml", tmp_path / "images")) == {"a": "train", "b": "val"}


def test_splits_below_a_symbolic_link_are_those_of_its_target(tmp_path):
    write_scenes(tmp_path / "disk", train__a=SCENE, val__b=SCENE, test__c=SCENE)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for yaml in (
        f"path: {tmp_path}/link\ntrain: images/train\nval: images/val\ntest: images/test\n",
        "".join(f"{split}: {tmp_path}/link/images/{split}\n" for split in ("train", "val", "test")),
    ):
        write_text(tmp_path / "disk/data.yaml", yaml + "names: [crate, ball]\n")
        dataset = read(tmp_path / "disk/labels", tmp_path / "disk/images")
        assert splits_of(dataset) == {"train_a": "train", "val_b": "val"}


def test_images_of_test_are_left_out_also_if_no_other_split_is_named(tmp_path):
    write_scenes(tmp_path, train__a=SCENE, test__b=SCENE)
    write_text(tmp_path / "data.yaml", "test: images/test\nnames: [crate, ball]\n")
    assert splits_of(read(tmp_path)) == {"train_a": None}


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        (
            "train: /content/train\nval: /content/val\n",
            r"data\.yaml names train: /content/train, val: /content/val, and no image",
        ),
        ("train: images/a\nval: /content/val\n", r"names val: /content/val, and no image below .* to import all images"),
        ("test: /content/test\n", "names test: /content/test, and no image"),
        ("train: empty\nval: empty/2\n", "names train: empty, val: empty/2, and no image"),
    ],
)
def test_splits_that_can_not_be_found_are_refused_also_if_the_images_are_given(tmp_path, yaml, words):
    write_scenes(tmp_path, a__1=SCENE, b__2=SCENE)
    (tmp_path / "empty/2").mkdir(parents=True)
    write_text(tmp_path / "data.yaml", yaml + "names: [crate, ball]\n")
    with pytest.raises(UserError, match=words):
        read(tmp_path / "data.yaml", tmp_path / "images")


def test_a_split_without_images_and_a_test_that_is_gone_are_named(tmp_path):
    write_scenes(tmp_path, train__a=SCENE, val__b=SCENE)
    write_text(tmp_path / "data.yaml", "train: images/train\nval: images/val\ntest: ../gone\nnames: [crate, ball]\n")
    dataset = read(tmp_path / "data.yaml", tmp_path / "images/train")
    assert splits_of(dataset) == {"a": None}
    file, images = tmp_path / "data.yaml", tmp_path / "images/train"
    assert f"{file}: no image below {images} is in val: images/val" in dataset.notes
    assert f"{file}: there is no ../gone, which it names for test" in dataset.notes


def test_roboflow_names_the_folders_one_level_too_high(tmp_path):
    for split in ("train", "valid"):
        write_image(tmp_path / f"{split}/images/IMG_1_jpg.rf.{split}.jpg")
        write_text(tmp_path / f"{split}/labels/IMG_1_jpg.rf.{split}.txt", SCENE)
    write_text(tmp_path / "README.roboflow.txt", "a text")
    write_text(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['crate', 'ball']\n")
    dataset = read(tmp_path / "data.yaml")
    check_scene(dataset)
    assert sorted(splits_of(dataset).values()) == ["train", "val"]


def test_the_images_of_train_are_not_taken_for_a_test_that_is_gone(tmp_path):
    write_image(tmp_path / "train/images/a.jpg")
    write_text(tmp_path / "train/labels/a.txt", SCENE)
    write_text(tmp_path / "data.yaml", "train: ../train/images\ntest: ../test/images\nnames: [crate, ball]\n")
    dataset = read(tmp_path / "data.yaml", tmp_path / "train")
    assert splits_of(dataset) == {"a": None} and any("there is no ../test/images" in note for note in dataset.notes)


def test_folders_of_images_and_labels_with_names_above_them(tmp_path):
    write_scenes(tmp_path, a=SCENE, b=SCENE)
    write_text(tmp_path / "data.yaml", "names: [crate, ball]\n")
    for images in (tmp_path / "images", tmp_path):
        dataset = read(tmp_path / "labels", images)
        check_scene(dataset)
        assert splits_of(dataset) == {"a": None, "b": None}


def test_label_studio_and_cvat_write_the_names_in_text_files(tmp_path):
    write_scenes(tmp_path / "studio", a=SCENE)
    write_text(tmp_path / "studio/classes.txt", "crate\nball\n")
    check_scene(read(tmp_path / "studio"))
    write_image(tmp_path / "cvat/obj_train_data/a.jpg")
    write_text(tmp_path / "cvat/obj_train_data/a.txt", SCENE)
    write_text(tmp_path / "cvat/train.txt", "data/obj_train_data/a.jpg\n")
    write_text(tmp_path / "cvat/obj.names", "crate\nball\n")
    check_scene(read(tmp_path / "cvat"))


def test_lists_of_images_give_the_splits(tmp_path):
    write_scenes(tmp_path, a=SCENE, b=SCENE, c=SCENE)
    write_text(tmp_path / "train.txt", "./images/a.jpg\nimages/b.jpg\n")
    write_text(tmp_path / "val.txt", f"{tmp_path}/images/c.jpg\n")
    write_text(tmp_path / "data.yaml", "train: train.txt\nval: [val.txt]\nnames: {0: crate, 1: ball}\n")
    dataset = read(tmp_path)
    check_scene(dataset)
    assert splits_of(dataset) == {"a": "train", "b": "train", "c": "val"}


@pytest.mark.parametrize("name", ["classes.txt", "obj.names"])
def test_a_blank_line_among_the_names_is_refused_because_ids_after_it_are_not_clear(tmp_path, name):
    write_scenes(tmp_path, a=SCENE)
    write_text(tmp_path / name, "crate\n \nball\n")
    with pytest.raises(UserError, match=rf"{name} can't be used: line 2 is empty"):
        read(tmp_path)
    write_text(tmp_path / name, "crate\nball\n\n  \n")
    check_scene(read(tmp_path))


@pytest.mark.parametrize("gone", ["images/gone.jpg", "./gone.jpg", "/home/me/images/gone.jpg"])
def test_listed_images_that_do_not_exist_are_rejected(tmp_path, gone):
    write_scenes(tmp_path, a=SCENE, b=SCENE)
    write_text(tmp_path / "train.txt", f"images/a.jpg\n{gone}\n")
    write_text(tmp_path / "val.txt", "/home/me/set/images/b.jpg\n")  # a list that was made elsewhere
    write_text(tmp_path / "test.txt", "images/not-there-either.jpg\n")
    write_text(tmp_path / "data.yaml", "train: train.txt\nval: val.txt\ntest: test.txt\nnames: {0: crate, 1: ball}\n")
    dataset = read(tmp_path)
    assert splits_of(dataset) == {"a": "train", "b": "val"}
    assert [(each.path, "listed, but there is no such image" in each.reason) for each in dataset.rejects] == [
        (f"{tmp_path}/train.txt", True)
    ]


def test_names_given_by_the_user_are_of_the_classes_from_0(tmp_path):
    write_scenes(tmp_path, a=SCENE)
    with pytest.raises(UserError, match=r"no data.yaml or classes.txt .*give the names of the classes 0, 1, … by --classes"):
        read(tmp_path / "labels", tmp_path / "images")
    check_scene(read(tmp_path / "labels", tmp_path / "images", classes=("crate", "ball")))
    with pytest.raises(UserError, match="counts the classes of objects from 0, so leave background out"):
        read(tmp_path / "labels", tmp_path / "images", classes=("background", "crate", "ball"))


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("nc: 3\nnames: [crate, ball]\n", "nc is 3, and it has 2 names"),
        ("train: images\n", "it has no list of names"),
        ("names: [crate\n", "can't be used"),
        ("names: [crate, ball]\nkpt_shape: [17, 3]\n", "keypoints"),
        ("train: gone\nval: away\nnames: [crate, ball]\n", "names train: gone, val: away, and no image below"),
        ("train: images\nval: images/a.jpg\nnames: [crate, ball]\ntest: images", "is in train and in test"),
    ],
)
def test_a_data_yaml_that_can_not_be_followed_is_refused(tmp_path, yaml, words):
    write_scenes(tmp_path, a=SCENE)
    write_text(tmp_path / "data.yaml", yaml)
    with pytest.raises(UserError, match=words):
        read(tmp_path / "data.yaml")


def test_names_are_text_whatever_yaml_takes_them_for(tmp_path):
    write_scenes(tmp_path, a=SCENE)
    for names in ("[no, 007, 1e3, null, 2024-01-01]", "{0: no, 1: 007, 2: 1e3, 3: null, 4: 2024-01-01}"):
        write_text(tmp_path / "data.yaml", f"nc: 5\nnames: {names}\n")
        assert read(tmp_path).classes == ("background", "no", "007", "1e3", "null", "2024-01-01")


def test_names_in_another_encoding_are_read_by_its_name(tmp_path):
    write_scenes(tmp_path, a=SCENE)
    write_text(tmp_path / "data.yaml", "names: [裂缝, 坑洞]\n", "gbk")
    with pytest.raises(UserError, match=r"data\.yaml can't be used: byte .*--encoding"):
        read(tmp_path)
    assert read(tmp_path, encoding="gbk").classes == ("background", "裂缝", "坑洞")


def test_lists_of_images_in_another_encoding_are_read_by_its_name(tmp_path):
    write_scenes(tmp_path, 裂缝=SCENE, 坑洞=SCENE, 桥=SCENE)
    for split, name in (("train", "裂缝"), ("val", "坑洞"), ("test", "桥")):
        write_text(tmp_path / f"{split}.txt", f"images/{name}.jpg\n", "gbk")
    write_text(tmp_path / "data.yaml", "train: train.txt\nval: val.txt\ntest: test.txt\nnames: [crate, ball]\n")
    with pytest.raises(UserError, match=r"list of images .*/train\.txt can't be used: byte .*--encoding"):
        read(tmp_path)
    assert splits_of(read(tmp_path, encoding="gbk")) == {"裂缝": "train", "坑洞": "val"}
    (tmp_path / "val.txt").unlink()
    (tmp_path / "val.txt").mkdir()
    with pytest.raises(UserError, match=r"list of images .*/val\.txt can't be used: there is no file"):
        read(tmp_path, encoding="gbk")
