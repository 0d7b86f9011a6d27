"""Images of other formats, and JSON in any encoding."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from deconvnet.datasets.importing.images import as_layout_file, read_input, read_json, same_image
from infra import storage
from infra.errors import BadInput
from proposals.image_codec import decode_image


def test_images_of_other_formats_become_png(rng):
    pixels = rng.integers(0, 255, (20, 30, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "BMP")
    data, suffix = as_layout_file(sink.getvalue(), "a.BMP")
    assert suffix == ".png" and np.array_equal(decode_image(data), pixels)
    assert as_layout_file(b"unchanged", "a.JPEG") == (b"unchanged", ".jpeg")


@pytest.mark.parametrize(("tag", "other"), [(0x132, 0x128), (0x132, 0x11A), (0x11A, 0x132)])
def test_an_image_with_damaged_exif_data_is_not_the_same_as_another(rng, tag, other):
    """Pillow fails with a struct.error, a TypeError or an AttributeError, which would end an import from LabelMe."""
    pixels, good, exif = rng.integers(0, 255, (20, 30, 3), np.uint8), io.BytesIO(), Image.Exif()
    exif[0x112], exif[tag] = 6, "2020" if tag == 0x132 else 72.5
    Image.fromarray(pixels).save(good, "JPEG", exif=exif)
    broken = good.getvalue().replace(tag.to_bytes(2, "big"), other.to_bytes(2, "big"), 1)
    assert same_image(good.getvalue(), good.getvalue()) and not same_image(good.getvalue(), broken)


def test_a_file_that_may_not_be_read_is_refused(monkeypatch):
    def refuse(uri):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage, "read_bytes", refuse)
    with pytest.raises(BadInput, match=r"no permission to read /data/a\.png"):
        read_input("/data/a.png")


LABEL = {"label": "裂缝 é"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_any_unicode_encoding_is_read(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes(json.dumps(LABEL, ensure_ascii=False).encode(encoding))
    assert read_json(str(tmp_path / "a.json")) == read_json(str(tmp_path / "a.json"), "gbk") == LABEL


@pytest.mark.parametrize(
    ("encoding", "text"), [("gbk", "裂缝"), ("shift_jis", "ひび表"), ("cp1252", "fissure détachée"), ("big5", "裂縫")]
)
def test_json_in_another_encoding_is_read_by_its_name_or_refused(tmp_path, encoding, text):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps({"label": text}, ensure_ascii=False).encode(encoding))
    with pytest.raises(
        BadInput, match=r"byte \d+ is not text in UTF-8: save the file in UTF-8, or name its encoding by --encoding"
    ):
        read_json(str(path))
    assert read_json(str(path), encoding) == {"label": text}
    with pytest.raises(BadInput, match=r"not text in EUC_KR|not JSON"):
        path.write_bytes(b'{"label": "\xff\xff"}')
        read_json(str(path), "euc_kr")
