"""Measure a workspace's trained models: the five results on a split, as a table, results.json, results.md and pictures.

  python workflows/evaluate.py --config FILE [--split val|dev]
  python workflows/evaluate.py --config FILE --submission OUT.tar.gz [--result NAME] [--competition comp5]

The settings are the pipeline's (`train_pipeline.py`), so segmentation can be tried with other values (`--segment.aggregation sum`);
choose on dev: val is for the final table alone. The report goes to the workspace's `evaluations/SPLIT`.

--submission measures nothing: it labels the photographs of `ImageSets/Segmentation/test.txt` in data.root (val.txt where there is no
such file, or what --split says) and writes the archive that VOC's test server takes, checked against its rules. A killed run is gone
on with by the same command.

Exit codes: 0 done; 2 a mistake in the settings or the photographs, or the models are not there yet; 75 interrupted.
"""

import argparse
import sys

from deconvnet.datasets import voc
from deconvnet.evaluation.voc_submission import COMPETITIONS, SUFFIXES, check_submission, masks_folder, pack
from deconvnet.inference.predictor import RESULTS, PredictorOptions
from deconvnet.settings import VOC_CLASSES
from infra import storage
from infra.errors import UserError
from infra.runtime.ray_executor import RayExecutor
from infra.storage.tables import COMMIT
from workflows import cli
from workflows.pipelines.training import Pipeline
from workflows.settings import Settings, as_dict, parser


def main(argv: list[str] | None = None) -> int:
    command = parser(__doc__ or "")
    command.add_argument(
        "--split", choices=("val", "dev", "test"), help="photographs to measure on (default: val), or to label for --submission"
    )
    command.add_argument("--submission", metavar="OUT.tar.gz", help="write the archive that VOC's test server takes")
    command.add_argument(
        "--result", choices=RESULTS, default="edeconvnet_crf", help="which labels are submitted (default: edeconvnet_crf)"
    )
    command.add_argument(
        "--competition",
        choices=COMPETITIONS,
        default="comp6",
        help="comp5: learned from VOC's data alone; comp6: from more, as VGG-16's weights are (default)",
    )
    settings, arguments = command.parse_settings(argv)
    if arguments.submission is not None:
        return _submit(settings, arguments)
    split = arguments.split or "val"
    if split == "test":
        raise UserError("--split test has no masks to measure against: --submission OUT.tar.gz writes what VOC's server measures")
    pipeline = Pipeline(settings)
    _check_trained(settings, arguments.config, proposals=True)
    report = pipeline.place("evaluations", split)
    with pipeline.executor:
        pipeline.measure_proposals(split, report)
        results = pipeline.evaluate(split, report)
    print(cli.results_text(results))
    print(f"\nreport   {report}")
    return 0


def _check_trained(settings: Settings, config: str, *, proposals: bool) -> None:
    """Raise UserError where the workspace has not what is needed."""
    needed = {name: storage.join(_model(settings, name), "model.json") for name in ("fcn8s", "stage2")}
    if proposals:
        needed = {"proposals": storage.join(settings.workspace, "proposals", COMMIT), **needed}
    if missing := [name for name, uri in needed.items() if not storage.exists(uri)]:
        raise UserError(
            f"{settings.workspace} has no {' and no '.join(missing)} yet: run workflows/train_pipeline.py --config {config} first"
        )


def _model(settings: Settings, stage: str) -> str:
    return storage.join(settings.workspace, "models", stage)


def _submit(s: Settings, arguments: argparse.Namespace) -> int:
    """Only the workspace's models are looked at: a folder of VOC's test photographs has no masks that a pipeline could be made of."""
    from deconvnet.evaluation.voc_submission_job import Recipe, label_list, list_split

    target = _target(arguments.submission)
    root, split = _split(s.data.root, arguments.split)
    _check_trained(s, arguments.config, proposals=False)
    models = _model(s, "stage2"), _model(s, "fcn8s")
    known = tuple(storage.read_json(storage.join(models[0], "model.json"))["classes"])
    if known != VOC_CLASSES:
        raise UserError(
            f"VOC's server scores VOC's {len(VOC_CLASSES)} classes in their order, and the models in {s.workspace} know {', '.join(known)}"
        )
    photographs = list_split(root, split, s.data.max_pixels)
    recipe = Recipe(*models, PredictorOptions.from_settings(s.segment, s.examples), as_dict(s.proposals), arguments.result)
    place = storage.join(s.workspace, "submissions", recipe.key(photographs)[:16])
    with RayExecutor(s.cluster) as executor:
        masks = label_list(photographs, recipe, place, executor, s.compute.gpu)
    folder = masks_folder(arguments.competition, split)
    archive = pack(masks, folder)
    if faults := check_submission(archive, folder, {each.image_id: (each.width, each.height) for each in photographs}):
        raise UserError("\n  ".join([f"the masks in {place} break the server's rules (remove it, and run again):", *faults]))
    storage.write_bytes(target, archive)
    storage.remove(place)
    print(f"{len(masks):,} masks by {arguments.result} for {split}, checked against the server's rules")
    print(f"\nsubmission  {target} ({len(archive) / 1e6:.1f} MB)")
    return 0


def _target(archive: str) -> str:
    """Where the archive goes, absolute. Raises UserError where it can't be written."""
    if not archive.endswith(SUFFIXES):
        raise UserError(f"--submission {archive} won't do: the server takes {' or '.join(SUFFIXES)}, so end the name in one")
    cli.check_job_folder("submission", archive)
    target = storage.absolute(archive)
    storage.check_writable(target.rpartition("/")[0] or "/")
    return target


def _split(root: str | None, asked: str | None) -> tuple[str, str]:
    """The folder, and the list in it whose photographs are labelled."""
    if root is None:
        raise UserError("a submission is of VOC's photographs: name their folder, in VOC's layout, by --data.root")
    if asked == "dev":
        raise UserError("--split dev is this project's own part of train, and no list of VOC's: test or val can be submitted")
    return root, asked or ("test" if storage.exists(voc.split_path(root, "test")) else "val")


if __name__ == "__main__":
    sys.exit(cli.run(main))
