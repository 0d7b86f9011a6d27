"""The options of import_data.py for a folder of masks."""

from pathlib import Path

CLASSES = "background,disc,square,triangle,star,ring"


def arguments(data: Path, to: Path, *more: str) -> list[str]:
    images, masks = str(data / "JPEGImages"), str(data / "SegmentationClass")
    return ["--from", "masks", "--images", images, "--annotations", masks, "--to", str(to), *more]


def added(data: Path, to: Path, *more: str) -> list[str]:
    """Options that add the images to a data set."""
    options = arguments(data, to, "--classes", CLASSES, *more)
    options[options.index("--to")] = "--add_to"
    return options
