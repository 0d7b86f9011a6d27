"""Draw a figure of a finished run, from the tables, models and report in its workspace.

  python workflows/figures.py NAME --workspace DIR [--out DIR]              PNGs, 1,200 px wide, in DIR/figures or --out
  python workflows/figures.py instances --workspace DIR --image ID [--image ID …]
  python workflows/figures.py all --workspace DIR                           all that can be drawn
  python workflows/figures.py report --workspace DIR                        the page report/index.html anew, of the pictures in report/

NAME is one of:
{figures}
Those of photographs ({of_images}) show the ones named by --image; else ones that the report's figures choose. The pipeline draws all
of them into its report and MLflow without being asked.

Exit codes: 0 done; 2 there is no such figure or photograph, or the stage that it needs is not finished.
"""

import argparse
import difflib
import sys
from collections.abc import Mapping

from deconvnet.tracking.store import tracking_uri
from infra import storage
from infra.errors import UserError
from workflows import cli
from workflows.pipelines.figures import ALL, FIGURES, OF_IMAGES, Album
from workflows.pipelines.run_log import RUN_FILE, report_files

REPORT = "report"


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    _check(arguments.name, arguments.image)
    workspace = storage.absolute(arguments.workspace)
    out = storage.absolute(arguments.out) if arguments.out else storage.join(workspace, _folder(arguments.name))
    if arguments.name == REPORT:
        _write(out, report_files(workspace))
        return 0
    album = Album(workspace, storage.join(workspace, RUN_FILE), lambda: tracking_uri(workspace, arguments.tracking_uri))
    album.check_images(arguments.image)
    missing: list[str] = []
    for name in FIGURES if arguments.name == ALL else [arguments.name]:
        try:
            files = album.make(name, arguments.image if name in OF_IMAGES else ())
        except UserError as error:
            if arguments.name != ALL:
                raise
            missing.append(f"{name}: {error}")
            continue
        _write(out, files)
    if missing:
        print("\nleft out:", *missing, sep="\n  ", file=sys.stderr)
    return cli.USER_ERROR if len(missing) == len(FIGURES) else 0


def _folder(name: str) -> str:
    """Where in the workspace what is asked for goes."""
    return "report" if name == REPORT else "figures"


def _write(out: str, files: Mapping[str, bytes]) -> None:
    for file, data in files.items():
        storage.write_bytes(storage.join(out, file), data)
        print(storage.join(out, file), flush=True)


def _parser() -> argparse.ArgumentParser:
    names = "".join(f"  {name:<18}{about}\n" for name, about in FIGURES.items())
    made = argparse.ArgumentParser(
        description=(__doc__ or "").format(figures=names, of_images=", ".join(OF_IMAGES)),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("name", metavar="NAME", help=f"which figure, or {ALL}, or {REPORT}")
    made.add_argument("--workspace", required=True, metavar="DIR", help="folder or s3:// prefix of a finished run")
    made.add_argument("--out", metavar="DIR", help="where the files go (default: the workspace's figures/, or report/)")
    made.add_argument("--image", action="append", default=[], metavar="ID", help="a photograph to show; may be given again")
    made.add_argument("--tracking.uri", dest="tracking_uri", metavar="URI", help="MLflow, where it isn't the workspace's own")
    return made


def _check(name: str, image_ids: list[str]) -> None:
    if name not in (known := (ALL, REPORT, *FIGURES)):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"there is no figure {name}: {hint}There are {', '.join(FIGURES)}, {REPORT}, and {ALL}")
    if image_ids and name not in (ALL, *OF_IMAGES):
        raise UserError(f"{name} is not of single photographs: --image goes with {', '.join(OF_IMAGES)}")


if __name__ == "__main__":
    sys.exit(cli.run(main, interrupted="what is named above is written"))
