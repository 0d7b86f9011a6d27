"""Draw figures of a finished run, from the tables, models and report in its workspace.

  python workflows/figures.py NAME --workspace DIR              draw one figure
  python workflows/figures.py all --workspace DIR               draw all figures whose data are there
  python workflows/figures.py report --workspace DIR            write the page report/index.html again
  python workflows/figures.py instances --workspace DIR --image ID --image ID      choose the images to show

The figures are PNG files, 1,200 px wide. They are written to DIR/figures, or to the folder that --out names. NAME is one of:

{figures}
The figures {per_image} show single images. --image chooses them; without it, they are the images of the report.
The pipeline itself draws all figures once, for its report and for MLflow.

Exit codes: 0 done; 2 there is no such figure or image, or the stage that makes its data is not finished; 3 another command is
working in this workspace.
"""

import argparse
import difflib
import logging
import sys
from collections.abc import Mapping
from contextlib import nullcontext

from infra.errors import UserError
from workflows import cli

logger = logging.getLogger("workflows.figures")  # unlike `print`, no BrokenPipeError if stdout is closed (`| head`)
ALL, REPORT = "all", "report"
FIGURES = {
    "unpooling": "the most active map after each unpooling and deconvolution, for an image's largest object",
    "instances": "the segmentation after 1, 5, 10, 20, 50 proposals, from the largest to the smallest",
    "comparison": "image, ground truth and predictions side by side: the best, the median and the worst",
    "wins": "the same for the images where DeconvNet, FCN-8s or the ensemble is furthest ahead",
    "iou_by_class": "IoU of each class, for the five results",
    "iou_by_proposals": "DeconvNet's mean IoU by the number of proposals",
    "iou_by_size": "IoU of objects by their size",
    "confusion": "which classes are predicted in place of which",
    "calibration": "predicted probability against the share of right pixels",
    "recall": "how many objects the proposals find",
    "training_curves": "loss and pixel accuracy of the trainings, step by step",
    "examples": "training crops of stage 1 and stage 2, with their masks",
}
PER_IMAGE = ("unpooling", "instances", "comparison")
"""Names of the figures that show single images, for which --image can be given."""
INTERRUPTED = "the files listed above are complete"


def main(argv: list[str] | None = None) -> None:
    """Run figures.py with the given command-line arguments.

    Args:
        argv: command-line arguments. None for those of the process.

    Raises:
        UserError: if the figure or image does not exist, or the workspace lacks the data for it (for "all": for every figure).
        Locked: if the files are to be written to the workspace, and another command holds its lock.
        Interrupted: if another command took over the lock.
    """
    options = _parser().parse_args(argv)
    _check(options.name, options.image)
    from deconvnet.tracking.store import tracking_uri
    from infra import storage
    from infra.settings import absolute_location
    from workflows.pipelines.figures import WorkspaceFigures
    from workflows.pipelines.run_log import RUN_FILE, report_files
    from workflows.pipelines.workspace import hold_workspace

    try:
        workspace, named = absolute_location(options.workspace), absolute_location(options.out or "")
    except ValueError as error:
        raise UserError(f"--workspace {options.workspace}{f' or --out {options.out}' if options.out else ''}: {error}") from None
    folder = storage.join(workspace, REPORT if options.name == REPORT else "figures")
    out = named or folder
    # With --out, nothing is written to the workspace, so it is not locked. Neither is a folder that is not a workspace.
    inside = not options.out and storage.exists(storage.join(workspace, "stages"))
    with hold_workspace(workspace, "figures.py") if inside else nullcontext():
        if options.name == REPORT:
            _write(out, report_files(workspace))
            return
        run_file = storage.join(workspace, RUN_FILE)
        figures = WorkspaceFigures(workspace, run_file, lambda: tracking_uri(workspace, options.tracking_uri))
        figures.check_images(options.image)
        missing: list[str] = []
        for name in FIGURES if options.name == ALL else [options.name]:
            try:
                files = figures.make(name, options.image if name in PER_IMAGE else ())
            except UserError as error:
                if options.name != ALL:
                    raise
                missing.append(f"{name}: {error}")
                continue
            _write(out, files)
        text = "\n  ".join(["not drawn:", *missing])
        if len(missing) == len(FIGURES):
            raise UserError(text)
        if missing:
            print(f"\n{text}", file=sys.stderr)


def _write(out: str, files: Mapping[str, bytes]) -> None:
    """Write files to a folder, and log their URIs.

    Args:
        out: folder to write to, local or in a bucket.
        files: contents of the files by name.
    """
    from infra import storage

    for file, data in files.items():
        storage.write_bytes(storage.join(out, file), data)
        logger.info(storage.join(out, file))


def _parser() -> argparse.ArgumentParser:
    """Return the parser for the command line of figures.py."""
    names = "".join(f"  {name:<18}{about}\n" for name, about in FIGURES.items())
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").format(figures=names, per_image=", ".join(PER_IMAGE)),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help=f"a figure, or {ALL}, or {REPORT}")
    parser.add_argument("--workspace", required=True, metavar="DIR", help="folder or bucket prefix of a finished run")
    parser.add_argument("--out", metavar="DIR", help="folder to write to (default: figures/ in the workspace, or report/)")
    parser.add_argument("--image", action="append", default=[], metavar="ID", help="an image to show; may be repeated")
    parser.add_argument("--tracking.uri", dest="tracking_uri", metavar="URI", help="MLflow, if it is not the workspace's own")
    return parser


def _check(name: str, image_ids: list[str]) -> None:
    """Check the command line: the figure must exist, and images may be chosen only for a figure that shows single images.

    Args:
        name: name of the figure, "all" or "report".
        image_ids: ids of the images that `--image` names.

    Raises:
        UserError: if there is no such figure, or images are chosen for a figure that does not show single images.
    """
    if name not in (known := (ALL, REPORT, *FIGURES)):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no figure {name}: {hint}There are {', '.join(FIGURES)}, {REPORT}, and {ALL}")
    if image_ids and name not in (ALL, *PER_IMAGE):
        raise UserError(f"{name} does not show single images: --image goes with {', '.join(PER_IMAGE)}")


if __name__ == "__main__":
    raise SystemExit(cli.run(main, INTERRUPTED))
