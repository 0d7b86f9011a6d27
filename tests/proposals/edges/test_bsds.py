"""BSDS500 is read with every annotator, and wrong folders or files give a user error."""

import numpy as np
import pytest
from scipy.io import savemat

from infra.errors import UserError
from proposals.edges.bsds import bsds_files, read_bsds_image
from tests.proposals.edges.bsds_folder import drawing, write


def test_images_are_ordered_by_id_and_have_every_annotator(tmp_path):
    write(tmp_path, "30", [drawing(4)])
    write(tmp_path, "2", [drawing(7), drawing(9), drawing(11)])
    two, thirty = map(read_bsds_image, bsds_files(tmp_path, "val"))
    assert (two.image_id, thirty.image_id) == ("2", "30")
    assert two.image.shape == (20, 30, 3) and two.image.dtype == np.uint8
    assert np.abs(two.image.reshape(-1, 3).mean(axis=0) - (200, 90, 30)).max() < 4, "not RGB"
    assert [b.dtype for b in two.boundaries] == [bool] * 3 and [s.dtype for s in two.segmentations] == [np.uint16] * 3
    assert [int(b[0].argmax()) for b in two.boundaries] == [7, 9, 11]
    np.testing.assert_array_equal(two.segmentations[1], drawing(9)[0])


def test_a_folder_that_is_not_bsds500_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not BSDS500, or has no split 'val'"):
        bsds_files(tmp_path, "val")
    write(tmp_path, "1", [drawing(4)])
    with pytest.raises(UserError, match="'test'"):
        bsds_files(tmp_path, "test")
    (tmp_path / "images" / "val" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"1\.jpg is missing"):
        bsds_files(tmp_path, "val")


@pytest.mark.parametrize("keep", [0, 50, 150, 0.5, -10])
def test_a_truncated_annotation_is_a_user_error(tmp_path, keep):
    path = write(tmp_path, "1", [drawing(4)])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"1\.mat is not a BSDS500 annotation that can be read"):
        read_bsds_image(*bsds_files(tmp_path, "val"))


@pytest.mark.parametrize(
    "content",
    [{"other": 1}, {"groundTruth": "text"}, {"groundTruth": np.zeros((2, 2))}, {"groundTruth": np.empty((1, 0), object)}],
    ids=["no groundTruth", "text", "numbers", "no annotator"],
)
def test_a_mat_file_with_other_content_is_a_user_error(tmp_path, content):
    savemat(write(tmp_path, "1", [drawing(4)]), content)
    with pytest.raises(UserError, match=r"1\.mat is not a BSDS500 annotation"):
        read_bsds_image(*bsds_files(tmp_path, "val"))


def test_an_annotation_in_matlabs_hdf5_format_is_a_user_error(tmp_path):
    path = write(tmp_path, "1", [drawing(4)])
    path.write_bytes(path.read_bytes()[:124] + b"\x00\x02IM" + bytes(200))
    with pytest.raises(UserError, match=r"not a BSDS500 annotation that can be read \(.*7\.3"):
        read_bsds_image(*bsds_files(tmp_path, "val"))


def test_annotations_of_another_size_than_the_image_are_refused(tmp_path):
    write(tmp_path, "1", [drawing(4), drawing(4, height=21)])
    with pytest.raises(UserError, match=r"does not fit its image.*21, 30"):
        read_bsds_image(*bsds_files(tmp_path, "val"))


def test_a_damaged_image_is_a_user_error(tmp_path):
    write(tmp_path, "1", [drawing(4)])
    (tmp_path / "images" / "val" / "1.jpg").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"1\.jpg can't be used: not an image"):
        read_bsds_image(*bsds_files(tmp_path, "val"))


def test_the_real_data_set_is_read(shared):
    if not (shared / "bsds500").is_dir():
        pytest.skip("no BSDS500")
    first = read_bsds_image(bsds_files(shared / "bsds500", "val")[0])
    assert first.image_id == "101085" and len(first.boundaries) == 5 and first.image.shape == (481, 321, 3)
    assert int(first.boundaries[0].sum()) == 3904
    for boundaries, segments in zip(first.boundaries, first.segmentations, strict=True):
        inside = ~boundaries[:, :-1] & ~boundaries[:, 1:]
        assert (segments[:, :-1] == segments[:, 1:])[inside].mean() > 0.99, "segments change elsewhere than at the boundaries"
