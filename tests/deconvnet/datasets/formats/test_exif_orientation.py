"""Images with EXIF orientation, of which the size, the points or the masks were annotated as stored or as displayed.

Each image has a red rectangle, and where its masks are right they are the red pixels of the image as displayed.
"""

import io
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.formats.coco import read_coco
from deconvnet.datasets.formats.labelme import read_labelme
from deconvnet.datasets.formats.masks import read_masks
from deconvnet.datasets.importing import orientation
from deconvnet.datasets.importing.dataset import AnnotatedDataset, AnnotationSource, ImportOptions
from infra.errors import BadInput
from proposals.image_codec import decode_image
from tests.deconvnet.datasets.formats.inputs import runs

WIDTH, HEIGHT = 60, 40  # of the images as stored
MIDDLE, RIGHT, LOW, WIDE = (10, 30, 12, 30), (45, 58, 10, 30), (10, 30, 30, 39), (2, 58, 10, 30)  # x0, x1, y0, y1 as stored
FRAMES = ("stored", "displayed")


@dataclass
class Photo:
    """An image of `size` (as stored) with a red rectangle, and how it was annotated."""

    orientation: int
    box: tuple[int, int, int, int] = MIDDLE
    size: tuple[int, int] = (WIDTH, HEIGHT)
    suffix: str = "png"

    def __post_init__(self) -> None:
        stored = np.full((self.size[1], self.size[0], 3), 90, np.uint8)
        x0, x1, y0, y1 = self.box
        stored[y0:y1, x0:x1] = (250, 0, 0)
        exif = Image.Exif()
        exif[0x0112] = self.orientation
        sink = io.BytesIO()
        Image.fromarray(stored).save(sink, self.suffix, exif=exif)
        self.data = sink.getvalue()
        self.red = {"stored": stored[..., 0] > 200, "displayed": decode_image(self.data)[..., 0] > 200}

    def polygon(self, frame: str) -> list[list[int]]:
        y, x = np.nonzero(self.red[frame])
        x0, x1, y0, y1 = (int(v) for v in (x.min(), x.max() + 1, y.min(), y.max() + 1))
        return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def read(kind: str, folder: Path, photos: list[Photo], size: str | None, points: str) -> AnnotatedDataset:
    """The data set of these photos, with the size and the points of one frame each; `size` may be None for no stated size."""
    images = []
    for number, photo in enumerate(photos):
        (folder / "images").mkdir(exist_ok=True)
        (folder / f"images/{number:03d}.{photo.suffix}").write_bytes(photo.data)
        images.append(photo.red[size].shape[::-1] if size else (None, None))
    source = AnnotationSource(str(folder / "images"), str(folder / "annotations"))
    if kind == "masks":
        (folder / "annotations").mkdir()
        for number, photo in enumerate(photos):
            Image.fromarray(photo.red[points].astype(np.uint8)).save(folder / f"annotations/{number:03d}.png")
        return read_masks([source], ImportOptions(classes=("background", "cat")))
    if kind == "labelme":
        (folder / "annotations").mkdir()
        for number, (photo, (width, height)) in enumerate(zip(photos, images, strict=True)):
            content = {"imagePath": f"{number:03d}.{photo.suffix}", "imageWidth": width, "imageHeight": height}
            content["shapes"] = [{"label": "cat", "points": photo.polygon(points)}]
            (folder / f"annotations/{number:03d}.json").write_text(json.dumps(content))
        return read_labelme([source], ImportOptions())
    content = {"categories": [{"id": 1, "name": "cat"}], "images": [], "annotations": []}
    for number, (photo, (width, height)) in enumerate(zip(photos, images, strict=True)):
        content["images"].append({"id": number, "file_name": f"{number:03d}.{photo.suffix}", "width": width, "height": height})
        red = photo.red[points]
        mask = {"size": list(red.shape), "counts": runs(red.T)}
        segmentation = mask if kind == "run lengths" else photo.polygon(points)
        content["annotations"].append({"id": number, "image_id": number, "category_id": 1, "segmentation": segmentation})
    (folder / "annotations").write_text(json.dumps(content))
    return read_coco([source], ImportOptions())


def assert_right(dataset: AnnotatedDataset, photos: list[Photo]) -> None:
    """Assert that the masks of all images are right."""
    assert len(dataset.entries) == len(photos)
    for entry, photo in zip(dataset.entries, photos, strict=True):
        image = entry.load()
        assert np.array_equal(image.class_mask > 0, photo.red["displayed"]), f"{entry.image_id}: {photo}"
        assert image.object_mask is None or np.array_equal(image.object_mask > 0, photo.red["displayed"])


POINT_KINDS = ("polygons", "labelme", "run lengths")


@pytest.mark.parametrize("suffix", ["png", "tiff"])  # Pillow turns a TIFF as it reads it
@pytest.mark.parametrize("orientations", [[6], [5, 6, 7, 8]])  # a single image is not helped by others
@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("kind", [*POINT_KINDS, "masks"])
def test_masks_fit_the_image_as_displayed_whichever_way_it_was_annotated(tmp_path, kind, frame, orientations, suffix):
    photos = [Photo(orientation, suffix=suffix) for orientation in orientations]
    assert_right(read(kind, tmp_path, photos, frame, frame), photos)


@pytest.mark.parametrize("orientations", [[6], [5, 6, 7, 8]])
@pytest.mark.parametrize(
    ("size", "points"), [("stored", "displayed"), ("displayed", "stored"), (None, "stored"), (None, "displayed")]
)
@pytest.mark.parametrize("kind", POINT_KINDS)
def test_points_outside_of_the_stated_size_tell_how_they_were_annotated(tmp_path, kind, size, points, orientations):
    """A rectangle as wide as the stored image lies outside of the displayed one, and the reverse."""
    photos = [Photo(orientation, WIDE) for orientation in orientations]
    assert_right(read(kind, tmp_path, photos, size, points), photos)


@pytest.mark.parametrize(
    ("size", "points"), [("stored", "displayed"), ("displayed", "stored"), (None, "stored"), (None, "displayed")]
)
@pytest.mark.parametrize("kind", ["polygons", "labelme"])
def test_an_image_that_tells_nothing_is_as_the_others_of_its_file(tmp_path, kind, size, points):
    """Also images that are displayed upside down or mirrored, and square ones, of which the size never tells."""
    photos = [Photo(6, RIGHT), *(Photo(orientation) for orientation in (5, 6, 7, 8, 3, 2, 4, 1))]
    photos += [Photo(6, MIDDLE, (40, 40)), Photo(6, LOW), Photo(8, RIGHT)]
    dataset = read(kind, tmp_path, photos, size, points)
    assert_right(dataset, photos)
    remarks = {entry.load().remark for entry in dataset.entries}
    assert remarks == ({"", f"was annotated as {points}, though its size is stated as {size}"} if size else {""})


@pytest.mark.parametrize("kind", [*POINT_KINDS, "masks"])
@pytest.mark.parametrize("frame", FRAMES)
def test_the_stated_sizes_of_others_tell_where_that_of_an_image_does_not(tmp_path, kind, frame):
    photos = [Photo(3), Photo(6), Photo(2, RIGHT), Photo(4, LOW), Photo(8, MIDDLE, (40, 40))]
    assert_right(read(kind, tmp_path, photos, frame, frame), photos)


@pytest.mark.parametrize("kind", [*POINT_KINDS, "masks"])
@pytest.mark.parametrize("photo", [Photo(3), Photo(2), Photo(6, MIDDLE, (40, 40))])
def test_without_any_evidence_images_are_taken_as_displayed_and_that_is_said(tmp_path, kind, photo):
    dataset = read(kind, tmp_path, [photo], "displayed", "displayed")
    assert_right(dataset, [photo])
    assert "nothing tells whether it was annotated as stored or as displayed" in dataset.entries[0].load().remark


@pytest.mark.parametrize("kind", ["polygons", "labelme"])
@pytest.mark.parametrize("orientation", [6, 8, 3])
def test_an_image_whose_points_fit_it_in_no_way_is_set_aside(tmp_path, kind, orientation):
    photo = Photo(orientation)
    photo.polygon = lambda frame: [[10, 10], [70, 10], [70, 65]]
    with pytest.raises(BadInput, match=r"fit it neither as stored nor as displayed \(they reach from 10, 10 to 70, 65"):
        read(kind, tmp_path, [photo], "stored", "stored").entries[0].load()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("polygons", r"was it turned\?"),
        ("labelme", r"was it turned\?"),
        ("run lengths", "its mask is 40×60, the image is 60×40"),
        ("masks", "annotations are for 40×60"),
    ],
)
def test_an_image_that_lost_its_orientation_after_it_was_annotated_is_set_aside(tmp_path, kind, words):
    photo, turned = Photo(1, RIGHT), Photo(6, RIGHT)
    photo.red["displayed"] = turned.red["displayed"]
    with pytest.raises(BadInput, match=words):
        read(kind, tmp_path, [photo], "stored", "displayed").entries[0].load()


@pytest.mark.parametrize("kind", ["polygons", "labelme"])
def test_images_of_a_file_that_contradicts_itself_are_set_aside_if_they_do_not_tell(tmp_path, kind):
    photos = [Photo(6, RIGHT), Photo(6, RIGHT), Photo(6)]
    photos[1].polygon = lambda frame: Photo(6, RIGHT).polygon("stored")
    dataset = read(kind, tmp_path, photos, "stored", "displayed")
    for entry, photo in zip(dataset.entries[:2], photos, strict=False):
        assert np.array_equal(entry.load().class_mask > 0, photo.red["displayed"])
    with pytest.raises(BadInput, match="some images of its file were annotated as stored, others as displayed"):
        dataset.entries[2].load()


def test_few_telling_images_among_many_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(orientation, "_SPREAD", 5)
    photos = [Photo(1) for _ in range(30)] + [Photo(6)]
    photos[13] = Photo(6, RIGHT)
    dataset = read("polygons", tmp_path, photos, "stored", "displayed")
    assert np.array_equal(dataset.entries[-1].load().class_mask > 0, photos[-1].red["displayed"])


@pytest.mark.parametrize(("enough", "turned", "read_images"), [(2, 1000, 4), (100, 5, 5), (100, 1000, 12)])
def test_no_more_images_are_read_than_needed(enough, turned, read_images, monkeypatch):
    monkeypatch.setattr(orientation, "_ENOUGH", enough)
    monkeypatch.setattr(orientation, "_ENOUGH_REORIENTED", turned)
    calls = []

    def weigh(telling):
        calls.append(telling)
        return orientation.Evidence({}, True, "stored", "displayed" if telling else None)

    chooser = orientation.FrameChooser([partial(weigh, number % 2 == 1) for number in range(12)])
    doubtful = orientation.Evidence({}, True, "stored", None)
    assert chooser.choose(doubtful)[0] == chooser.choose(doubtful)[0] == "displayed" and len(calls) == read_images


def test_points_a_little_outside_of_the_image_tell_nothing(tmp_path):
    photo = Photo(6)
    photo.polygon = lambda frame: [[-1, 10], [30, 10], [30, 41], [-1, 41]]
    mask = read("polygons", tmp_path, [photo], "stored", "stored").entries[0].load().class_mask
    assert mask.shape == (60, 40) and (mask > 0).sum() == 30 * 30


@pytest.mark.parametrize("size", [(600, 400), (400, 600)])
def test_a_polygon_that_reaches_a_little_out_of_an_image_is_cut_off(tmp_path, size):
    """Though its points lie inside an image of exchanged sides."""
    photo = Photo(1, size=size)
    photo.polygon = lambda frame: [[10, 10], [300, 10], [300, size[1] + 20], [10, size[1] + 20]]
    mask = read("polygons", tmp_path, [photo], "stored", "stored").entries[0].load().class_mask
    assert mask.shape == size[::-1] and (mask > 0).sum() == 290 * (size[1] - 10)


@pytest.mark.parametrize("kind", ["polygons", "labelme"])
def test_points_far_outside_of_an_image_of_no_stated_size_set_it_aside(tmp_path, kind):
    """As those of an image that was made smaller after it was annotated. Points a little outside are cut off."""
    photos = [Photo(1), Photo(1)]
    photos[0].polygon = lambda frame: [[20, 20], [100, 20], [100, 75], [20, 75]]
    photos[1].polygon = lambda frame: [[50, 10], [80, 10], [80, 30], [50, 30]]
    resized, careless = read(kind, tmp_path, photos, None, "stored").entries
    with pytest.raises(BadInput, match=r"far outside of it \(they reach from 20, 20 to 100, 75, .* 60×40 .*was it resized\?"):
        resized.load()
    assert (careless.load().class_mask > 0).sum() == 10 * 20


def test_one_careless_polygon_does_not_turn_an_image_or_the_others(tmp_path):
    """Its points reach out of the stored image, and all others were annotated as stored."""
    photos = [Photo(6, RIGHT) for _ in range(11)] + [Photo(6), Photo(6)]
    photos[-1].polygon = lambda frame: [[10, 10], [30, 10], [30, 55], [10, 55]]
    dataset = read("polygons", tmp_path, photos, "stored", "stored")
    for entry, photo in zip(dataset.entries[:-1], photos, strict=False):
        assert np.array_equal(entry.load().class_mask > 0, photo.red["displayed"])
    with pytest.raises(
        BadInput, match="its points lie outside its stated size, unlike those of nearly all other images of the file"
    ):
        dataset.entries[-1].load()


@pytest.mark.parametrize("number", [0, 9])
def test_a_number_that_means_no_orientation_leaves_an_image_as_it_is(tmp_path, number):
    photo = Photo(number)
    dataset = read("polygons", tmp_path, [photo], None, "stored")
    assert_right(dataset, [photo])
    assert dataset.entries[0].load().remark == ""


@pytest.mark.parametrize("number", range(1, 9))
def test_masks_of_more_than_254_objects_are_turned_with_all_their_ids(number):
    photo, ids = Photo(number), np.array([7, 300, 65535], np.uint16)
    turned = orientation.apply_orientation(photo.data, ids[photo.red["stored"].astype(np.uint8)])
    np.testing.assert_array_equal(turned, ids[photo.red["displayed"].astype(np.uint8)])
    assert turned.dtype == np.uint16


def test_images_too_small_to_train_on_are_rejected():
    assert orientation.displayed_size(Photo(6, size=(16, 40)).data, 10**6) == (40, 16)
    with pytest.raises(BadInput, match="40×15 is too small: its shorter side must have 16 px or more"):
        orientation.displayed_size(Photo(6, size=(15, 40)).data, 10**6)
