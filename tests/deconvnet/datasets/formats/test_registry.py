"""The list of formats is the list of modules."""

from deconvnet.datasets import formats


def test_each_module_is_a_format() -> None:
    assert formats.format_names() == ["coco", "labelme", "masks"]
    for name in formats.format_names():
        found = formats.get_format(name)
        assert isinstance(found, formats.DatasetFormat) and found.annotations.startswith("the ")
