"""Fetch VOC 2012, SBD and the VGG-16 weights from their official addresses.

    python workflows/download.py voc2012|sbd|vgg16|all --to DIR

DIR/VOCdevkit/VOC2012 is then what data.root wants; SBD's masks are joined into it as the split train_aug (data.train_split);
DIR/vgg16-397923af.pth is what model.vgg16 wants. What stands complete is left alone, what broke off is gone on with.

Exit codes: 0 done; 2 it can't be done, and the last line says why; 130 stopped by Ctrl-C (the same command goes on).
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deconvnet.datasets.fetch import fetch, unpack
from deconvnet.datasets.sbd import add_sbd_to_voc
from infra.errors import UserError


@dataclass(frozen=True)
class Source:
    """Where a file comes from and how to know it."""

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


def get_voc2012(source: Source, to: Path) -> Path:
    """VOC 2012's folder, fetched and unpacked if it isn't there."""
    root = to / "VOCdevkit" / "VOC2012"
    if not root.is_dir():
        archive = fetch(source.url, to / "VOCtrainval_11-May-2012.tar", source.checksum)
        unpack(archive, "VOCdevkit/VOC2012", root)
        archive.unlink()
    return root


def get_sbd(source: Source, to: Path) -> Path:
    """The list of train_aug in VOC 2012's folder, SBD fetched and joined into it if it isn't there."""
    root = to / "VOCdevkit" / "VOC2012"
    if not root.is_dir():
        raise UserError(f"SBD's masks are joined into VOC 2012, and there is no {root}: fetch voc2012 first, or all")
    split = root / "ImageSets" / "Segmentation" / "train_aug.txt"
    if not split.is_file():
        benchmark = to / "benchmark_RELEASE"
        if not benchmark.is_dir():
            archive = fetch(source.url, to / "benchmark.tgz", source.checksum)
            unpack(archive, "benchmark_RELEASE", benchmark, wanted=lambda name: not name.endswith(".jpg"))  # VOC has them
            archive.unlink()
        count, rejects = add_sbd_to_voc(str(benchmark / "dataset"), str(root))
        print(f"train_aug: {count:,} photographs")
        for reason, n in Counter(reject.reason for reject in rejects).most_common(5):
            print(f"left out: {n}× {reason}")
    return split


def get_vgg16(source: Source, to: Path) -> Path:
    """The weight file, fetched if it isn't there."""
    return fetch(source.url, to / "vgg16-397923af.pth", source.checksum)


GET = {"voc2012": get_voc2012, "sbd": get_sbd, "vgg16": get_vgg16}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*SOURCES, "all"], help="what to fetch")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to keep it in")
    for name, source in SOURCES.items():
        parser.add_argument(f"--{name}-url", default=source.url, metavar="URL", help="another address (a mirror)")
        parser.add_argument(f"--{name}-checksum", default=source.checksum, metavar="SUM", help="md5:HEX or sha256:HEX")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch; returns the exit code."""
    options = parse(arguments)
    try:
        to = options.to.expanduser().resolve()
        for name in SOURCES if options.what == "all" else [options.what]:
            chosen = vars(options)
            source = replace(SOURCES[name], url=chosen[f"{name}_url"], checksum=chosen[f"{name}_checksum"])
            print(f"{name}: {GET[name](source, to)}")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{options.to} can't be used: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
