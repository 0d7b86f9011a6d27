"""The formats are the modules of `deconvnet.datasets.formats`."""

from typing import get_args

from deconvnet.datasets import formats
from workflows.settings.import_data import ImportSettings


def test_each_module_is_a_format() -> None:
    assert formats.format_names() == ["coco", "cvat", "kaggle", "label_studio", "labelme", "masks", "supervisely", "yolo"]
    for name in formats.format_names():
        found = formats.get_format(name)
        assert isinstance(found, formats.DatasetFormat) and found.annotations


def test_the_setting_from_takes_each_format() -> None:
    choices, _ = get_args(ImportSettings.model_fields["from_"].annotation)
    assert sorted(get_args(choices)) == formats.format_names()
