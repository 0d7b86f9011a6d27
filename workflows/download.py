"""Download VOC 2012, SBD and the VGG-16 weights from their official addresses.

  python workflows/download.py voc2012 --to DIR      images and masks of PASCAL VOC 2012
  python workflows/download.py sbd --to DIR          masks of SBD for more of VOC's images; needs voc2012 first
  python workflows/download.py vgg16 --to DIR        weights of VGG-16, trained on ImageNet
  python workflows/download.py all --to DIR          all three

To train with them, set data.root to DIR/VOCdevkit/VOC2012, and model.vgg16 to DIR/vgg16-397923af.pth. To train on SBD's masks,
too, set data.train_split to train_aug. Files that are complete are not downloaded again. An interrupted download is resumed.

Exit codes: 0 done; 2 an error, described in the last line; 75 interrupted: the same command resumes.
"""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError
from workflows import cli

logger = logging.getLogger("workflows.download")  # unlike `print`, no BrokenPipeError if stdout is closed (`| head`)
INTERRUPTED = "the same command resumes the download"


@dataclass(frozen=True)
class Source:
    """A file to download.

    Attributes:
        url: address of the file.
        checksum: checksum that the file must have, as "md5:HEX" or "sha256:HEX".
    """

    url: str
    checksum: str


SOURCES = {
    "voc2012": Source(
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar", "md5:6cd6e144f989b92b3379bac3b3de84fd"
    ),
    "sbd": Source(
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "md5:82b4d87ceb2ed10f6038a1cba92111cb",
    ),
    "vgg16": Source(
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "sha256:397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
}


def download_voc2012(source: Source, to: Path) -> Path:
    """Download and unpack the data set VOC 2012, unless it is there already.

    Args:
        source: archive to download. It is deleted once it is unpacked.
        to: folder to download to.

    Returns:
        Path of VOC 2012: `to`/VOCdevkit/VOC2012.

    Raises:
        UserError: if the archive can't be downloaded or unpacked.
    """
    from deconvnet.datasets.fetch import fetch, unpack

    root = to / "VOCdevkit" / "VOC2012"
    if not root.is_dir():
        archive = fetch(source.url, to / "VOCtrainval_11-May-2012.tar", source.checksum)
        unpack(archive, "VOCdevkit/VOC2012", root)
        archive.unlink()
    return root


def download_sbd(source: Source, to: Path) -> Path:
    """Download SBD (masks for more of VOC's images) and add its masks to VOC 2012, unless they are there already.

    The function prints how many images were added, and why some were not.

    Args:
        source: archive to download. It is deleted once it is unpacked.
        to: folder to download to. It must hold VOC 2012.

    Returns:
        Path of the image list of the new split train_aug.

    Raises:
        UserError: if VOC 2012 is not there, or the archive can't be downloaded or unpacked.
    """
    from deconvnet.datasets.fetch import fetch, unpack
    from deconvnet.datasets.sbd import add_sbd_to_voc

    root = to / "VOCdevkit" / "VOC2012"
    if not root.is_dir():
        raise UserError(f"SBD's masks are added to VOC 2012, but {root} does not exist: download voc2012 first, or all")
    split = root / "ImageSets" / "Segmentation" / "train_aug.txt"
    if not split.is_file():
        benchmark = to / "benchmark_RELEASE"
        if not benchmark.is_dir():
            archive = fetch(source.url, to / "benchmark.tgz", source.checksum)
            unpack(archive, "benchmark_RELEASE", benchmark, wanted=lambda name: not name.endswith(".jpg"))  # VOC has the images
            archive.unlink()
        count, rejects = add_sbd_to_voc(str(benchmark / "dataset"), str(root))
        logger.info(f"train_aug: {count:,} images")
        logger.info(cli.rejects_text(rejects))
    return split


def download_vgg16(source: Source, to: Path) -> Path:
    """Download the weights of VGG-16, unless they are there already.

    Args:
        source: the file to download.
        to: folder to download to.

    Returns:
        Path of the file.

    Raises:
        UserError: if the file can't be downloaded.
    """
    from deconvnet.datasets.fetch import fetch

    return fetch(source.url, to / "vgg16-397923af.pth", source.checksum)


DOWNLOADERS = {"voc2012": download_voc2012, "sbd": download_sbd, "vgg16": download_vgg16}


def main(argv: list[str] | None = None) -> None:
    """Run download.py with the given command-line arguments.

    Args:
        argv: command-line arguments. None for those of the process.

    Raises:
        UserError: if the folder can't be written to, or a file can't be downloaded or has another checksum than expected.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*SOURCES, "all"], help="what to download")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to download to")
    for name, source in SOURCES.items():
        parser.add_argument(f"--{name}-url", default=source.url, metavar="URL", help="another address (a mirror)")
        parser.add_argument(f"--{name}-checksum", default=source.checksum, metavar="SUM", help="md5:HEX or sha256:HEX")
    options = parser.parse_args(argv)
    from infra import storage

    to = options.to.expanduser().resolve()
    storage.check_writable(str(to))
    for name in SOURCES if options.what == "all" else [options.what]:
        chosen = vars(options)
        logger.info(f"{name}: {DOWNLOADERS[name](Source(chosen[f'{name}_url'], chosen[f'{name}_checksum']), to)}")


if __name__ == "__main__":
    raise SystemExit(cli.run(main, INTERRUPTED))
