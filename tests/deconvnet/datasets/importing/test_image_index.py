"""Finding images by the names that annotations list."""

import unicodedata
import urllib.parse

import pytest

from deconvnet.datasets.importing.image_index import ImageIndex, complete_name


@pytest.fixture
def index_of(tmp_path):
    """A function that makes empty image files below a folder "images" and lists them."""

    def make(*names):
        for name in names:
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        return ImageIndex(str(tmp_path / "images"))

    return make


@pytest.mark.parametrize(
    "listed",
    [
        "a/1.jpg",
        "./a/1.jpg",
        "a\\1.jpg",
        "/data/a/1.jpg",
        "C:\\data\\images\\a\\1.jpg",
        "images/a/1.jpg",
        "b/../a/1.jpg",
        "x/../../a/1.jpg",
    ],
)
def test_an_image_is_found_in_the_folder_that_is_listed(index_of, listed):
    assert index_of("a/1.jpg", "b/1.jpg", "1.jpg").find(listed) == "a/1.jpg"


@pytest.mark.parametrize("listed", ["1.jpg", "images/1.jpg", "/home/me/old/1.jpg", "old\\1.jpg"])
def test_an_image_in_the_folder_of_images_itself_is_found_whatever_folder_is_listed(index_of, listed):
    assert index_of("1.jpg", "a/2.jpg").find(listed) == "1.jpg"


@pytest.mark.parametrize(
    ("listed", "found"),
    [("1.jpg", "a/c/1.jpg"), ("c/1.jpg", "a/c/1.jpg"), ("images/1.jpg", "a/c/1.jpg"), ("a/c/1.jpg", "a/c/1.jpg")],
)
def test_outer_folders_may_be_left_out(index_of, listed, found):
    assert index_of("a/c/1.jpg", "2.jpg").find(listed) == found


@pytest.mark.parametrize(
    ("names", "listed", "reason"),
    [
        (["a/1.jpg", "b/2.jpg"], "b/1.jpg", "in the folder b"),  # b exists, and 1.jpg is not in it
        (["1.jpg", "b/2.jpg"], "b/1.jpg", "in the folder b"),
        (["1.jpg", "c/b/2.jpg"], "b/1.jpg", "in the folder b"),
        (["a/cam/1.jpg"], "b/cam/1.jpg", "in the folder b/cam"),
        (["a/1.jpg", "b/1.jpg"], "1.jpg", "2 images below"),
        (["x/a/1.jpg", "y/a/1.jpg"], "a/1.jpg", "2 images below"),
        (["a/1.jpg"], "../../etc/passwd", "no such image below"),
        (["a/1.jpg"], "", "no such image below"),
    ],
)
def test_an_image_of_the_same_name_in_another_folder_is_never_taken(index_of, names, listed, reason):
    index = index_of(*names)
    found, missing, _ = index.find_listed([listed])
    assert not found and reason in missing[listed] and index.find(listed) is None


@pytest.mark.parametrize(
    ("names", "listed", "by_name"),
    [
        (["a/1.jpg"], ["b/1.jpg"], {"b/1.jpg": "a/1.jpg"}),
        (["a/1.jpg"], ["/data/b/1.jpg"], {"/data/b/1.jpg": "a/1.jpg"}),  # a list that was made on another machine
        (["a/1.jpg", "b/2.jpg"], ["C:\\x\\1.jpg", "C:\\x\\2.jpg"], {"C:\\x\\1.jpg": "a/1.jpg", "C:\\x\\2.jpg": "b/2.jpg"}),
        (["a/1.jpg", "b/1.jpg"], ["x/1.jpg"], {}),  # which of the two?
        (["a/1.jpg"], ["x/1.jpg", "y/1.jpg"], {}),  # whose is it?
        (["a/1.jpg"], ["x/1.jpg", "y/1"], {}),
        (["a/1.jpg"], ["x/1"], {"x/1": "a/1.jpg"}),
        (["a/1.jpg"], ["x/1.jpg", "1.jpg"], {}),  # it is that of the second name
        (["a/1.jpg", "a/2.jpg"], ["x/1.jpg", "a/2.jpg"], {}),  # the list names folders that exist, but x is missing
        (["a/1.jpg", "a/2.jpg"], ["x/1.jpg", "a/3.jpg"], {}),
    ],
)
def test_file_names_alone_decide_only_if_no_listed_folder_exists_and_this_is_told(index_of, names, listed, by_name):
    found, missing, notes = index_of(*names).find_listed(listed)
    assert {name: file for name, file in found.items() if name in by_name} == by_name
    assert set(found) | set(missing) == set(listed) and not set(found) & set(missing)
    assert len(notes) == bool(by_name) and all(f"{len(by_name)} images" in note and listed[0] in note for note in notes)
    assert by_name or "x/1.jpg" in missing


def test_names_that_compete_for_an_image_are_not_found_unless_one_is_its_path(index_of):
    index = index_of("1.jpg", "2.jpg", "a/3.jpg")
    found, missing, _ = index.find_listed(["1.jpg", "x/1.jpg", "x/2.jpg", "y/2.jpg", "1.jpg"])
    assert found == {"1.jpg": "1.jpg"} and missing.keys() == {"x/1.jpg", "x/2.jpg", "y/2.jpg"}
    assert missing["x/1.jpg"].endswith("that fits, 1.jpg, is that of another entry, 1.jpg")
    assert missing["x/2.jpg"].endswith("that fits, 2.jpg, also fits another entry, y/2.jpg")
    found, missing, _ = index.find_listed(["3.jpg", "a/3.jpg"])
    assert found == {"a/3.jpg": "a/3.jpg"} and missing["3.jpg"].endswith("is that of another entry, a/3.jpg")


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["1.jpg", "7.jpg"], ["images/1.jpg", "site_b/7.jpg"]),  # the list names the folder of images
        (["1.jpg", "7.jpg"], ["site_b/1.jpg", "/data/images/1.jpg", "site_b/7.jpg"]),
        (["1.jpg", "7.jpg", "a/2.jpg"], ["1.jpg", "a/2.jpg", "site_b/7.jpg"]),  # the list names a folder in it
        (["7.jpg", "a/2.jpg"], ["a/3.jpg", "site_b/7.jpg"]),
    ],
)
def test_a_list_that_names_existing_folders_finds_no_image_of_a_folder_that_is_missing(index_of, names, listed):
    found, missing, notes = index_of(*names).find_listed(listed)
    assert set(found) == {name for name in listed if name.rpartition("/")[0] in ("", "images", "/data/images", "a")} - {"a/3.jpg"}
    assert not notes and missing["site_b/7.jpg"].endswith(
        "in the folder site_b; images of the same name in other folders are not used"
    )


@pytest.mark.parametrize(
    ("names", "listed", "found"),
    [
        (["sub/frame_1.PNG", "sub/frame_2.PNG"], "frame_1", "sub/frame_1.PNG"),
        (["a/1.v2.jpg", "b/1.v2.jpg"], "b/1.v2", "b/1.v2.jpg"),
        (["b/1.jpg"], "a/1", None),
        (["1.jpg", "1.png"], "1", None),  # which of the two?
        (["a/1.jpg", "b/1.png"], "1", None),
        (["1.jpg"], "1.png", None),
        (["1.jpg.png"], "1.jpg", None),
    ],
)
def test_a_name_without_suffix_finds_the_one_image_of_this_name(index_of, names, listed, found):
    assert index_of(*names, "c/other.jpg").find(listed) == found


def test_a_path_without_suffix_is_a_spelling_of_the_path(index_of):
    found, missing, _ = index_of("a/1.jpg", "2.jpg").find_listed(["a/1", "a/1.jpg", "2", "x/2"])
    assert found == {"a/1": "a/1.jpg", "a/1.jpg": "a/1.jpg", "2": "2.jpg"} and list(missing) == ["x/2"]
    assert [complete_name(name, "x/1.PNG") for name in ("a/1", "1.v2", "1.jpg")] == ["a/1.PNG", "1.v2.PNG", "1.jpg"]


def test_the_name_that_competes_is_told(index_of):
    found, missing, _ = index_of("x/a/1.jpg").find_listed(["1.jpg", "a/1.jpg"])
    assert not found and missing["1.jpg"].endswith("that fits, x/a/1.jpg, also fits another entry, a/1.jpg")
    assert missing["a/1.jpg"].endswith("also fits another entry, 1.jpg")


def test_all_spellings_of_the_path_of_an_image_are_found(index_of):
    listed = ["a/1.jpg", "./a/1.jpg", "a\\1.jpg", "b/../a/1.jpg", "1.jpg"]
    found, missing, _ = index_of("a/1.jpg").find_listed(listed)
    assert found == dict.fromkeys(listed[:4], "a/1.jpg") and list(missing) == ["1.jpg"]


NAME = "Straße über 50%.jpg"


@pytest.mark.parametrize("on_disk", [NAME, unicodedata.normalize("NFD", NAME), urllib.parse.quote(NAME)])
@pytest.mark.parametrize("listed", [NAME, unicodedata.normalize("NFD", NAME), urllib.parse.quote(NAME), NAME.replace(" ", "%20")])
@pytest.mark.parametrize("folder", ["", "a/", "größe/"])
def test_names_are_found_in_any_spelling(index_of, on_disk, listed, folder):
    index = index_of(folder + on_disk, folder + "other.jpg")
    assert index.find(folder + listed) == folder + on_disk
    assert index.find(listed) == folder + on_disk
    assert index.find(unicodedata.normalize("NFD", folder) + listed) == folder + on_disk


def test_a_percent_sign_is_decoded_only_where_that_alone_fits(index_of):
    index = index_of("a b.jpg", "a%20b.jpg", "c/d e.jpg", "c/d%20e.jpg")
    for name in ("a b.jpg", "a%20b.jpg", "c/d e.jpg", "c/d%20e.jpg"):
        assert index.find(name) == name
    assert index.find("d%20e.jpg") == "c/d%20e.jpg" and index.find("d e.jpg") == "c/d e.jpg"
    found, missing, _ = index_of("f g.jpg").find_listed(["f g.jpg", "f%20g.jpg"])
    assert found == {"f g.jpg": "f g.jpg"} and "another entry" in missing["f%20g.jpg"]
