"""Pack a folder for a machine without Ray and MLflow: photographs, masks, proposals and VGG-16's weights, and the settings.

  python workflows/pack.py --config FILE --pack DIR [--SETTING VALUE …]     here: the pipeline's first two stages, then the folder
  python -m deconvnet.plain DIR --out OUT                                   there: train and evaluate

Stages that stand in the workspace are not run again. No file of the pack is over 16 MB, and pack.json in it names them all, so they can
be sent one by one.

Exit codes: 0 done; 2 a mistake in the settings or the data; 75 interrupted: run it again to go on.
"""

import shutil
import sys
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from deconvnet.packed import MANIFEST, SETTINGS, seal
from deconvnet.packing import write_tables
from deconvnet.settings import ComputeSettings
from infra import storage, tables
from infra.errors import UserError
from workflows import door
from workflows.pipeline import Pipeline
from workflows.settings import Settings, as_dict, from_arguments, parser

SECTIONS = ("seed", "examples", "model", "compute", "train", "segment")
"""What the bare machine needs of the settings; the others hold places and, it may be, secrets."""


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__ or "")
    options.add_argument("--pack", required=True, metavar="DIR", help="folder to make")
    arguments = options.parse_args(argv)
    settings = from_arguments(arguments)
    pack = storage.local_path(arguments.pack).resolve()
    _check(settings, pack)
    # Nothing is trained here, so this machine need not have what the training wants.
    pipeline = Pipeline(settings.model_copy(update={"compute": ComputeSettings()}), partial(print, flush=True))
    if not all(planned.done for planned in pipeline.stages.plan()[:2]):
        pipeline.run(Path(arguments.config).stem, go_on=lambda stage: stage.name != "proposals")
    size = _write(pipeline, settings, pack)
    print(f"\npack  {pack}: {size / 1e6:,.0f} MB\nthere: python -m deconvnet.plain {pack.name} --out OUT")
    return 0


def _check(settings: Settings, pack: Path) -> None:
    """Raises UserError for what can't be packed, or would cost a folder that is no pack."""
    if settings.init.from_:
        raise UserError(
            f"init.from {settings.init.from_} can't be packed: leave it empty, a pack starts from VGG-16 or from scratch"
        )
    if pack.exists() and not (pack.is_dir() and ((pack / MANIFEST).exists() or not any(pack.iterdir()))):
        raise UserError(f"--pack {pack} is there and is no pack: name a new folder")


def _write(pipeline: Pipeline, settings: Settings, pack: Path) -> int:
    """The pack appears whole: it is made beside its place. Returns its bytes."""
    content, aside = (pack.with_name(f".{pack.name}.{what}") for what in ("content", "sealed"))
    storage.check_writable(str(pack.parent))
    try:
        for folder in (content, aside):
            storage.remove(str(folder))
            folder.mkdir()
        write_tables(pipeline.images, pipeline.proposals, str(content), settings.examples, settings.segment)
        found = tables.require_commit(pipeline.images).extra["counts"]
        counts = ", ".join(f"{count:,} {split}" for split, count in found.items())
        print(f"photographs: {counts}", flush=True)
        storage.write_json(str(content / SETTINGS), _settings(pipeline, settings, content))
        size = seal(content, aside)
        storage.remove(str(pack))
        aside.rename(pack)
        return size
    finally:
        for folder in (content, aside):
            storage.remove(str(folder))


def _settings(pipeline: Pipeline, settings: Settings, content: Path) -> dict[str, Any]:
    """`settings.json`; the weights that `model.vgg16` names are copied beside it."""
    chosen = as_dict(settings, SECTIONS)
    if uri := settings.model.vgg16:
        name = f"vgg16{PurePosixPath(urlsplit(uri).path).suffix}"
        with storage.local_copy(uri) as path:
            shutil.copyfile(path, content / name)
        chosen["model"]["vgg16"] = name
    return {"dataset": pipeline.dataset_name, "classes": list(settings.data.classes), **chosen}


if __name__ == "__main__":
    sys.exit(door.run(main))
