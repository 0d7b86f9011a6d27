"""Evaluate the trained models of a workspace: the five results on a split, as a table, a report and figures.

  python workflows/evaluate.py --config FILE [--split val|dev]
  python workflows/evaluate.py --config FILE --submission OUT.tar.gz [--result NAME] [--competition comp5]

The settings are those of train_pipeline.py, so segmentation can be evaluated with other values (`--segment.aggregation sum`). Choose
values on dev: val is for the final table only. The report is written to evaluations/SPLIT in the workspace.

--submission evaluates nothing. It predicts the images of `ImageSets/Segmentation/test.txt` in data.root (without such a file: val.txt,
or the list that --split names) and writes the archive that VOC's test server takes, checked against the server's rules. The same
command resumes an interrupted run.

Exit codes: 0 done; 2 an error in the settings or the images, or the models are not trained yet; 75 interrupted.
"""

import sys

from infra.errors import UserError
from workflows import cli
from workflows.settings import parser

RESULTS = ("fcn8s", "deconvnet", "deconvnet_crf", "edeconvnet", "edeconvnet_crf")
"""As in `deconvnet.inference.predictor`, which imports torch."""


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments (None: those of the process); returns its exit code."""
    command = parser(__doc__ or "")
    command.add_argument(
        "--split", choices=("val", "dev", "test"), help="images to evaluate on (default: val), or to predict for --submission"
    )
    command.add_argument("--submission", metavar="OUT.tar.gz", help="write the archive that VOC's test server takes")
    command.add_argument(
        "--result", choices=RESULTS, default="edeconvnet_crf", help="the result to submit (default: %(default)s)"
    )
    command.add_argument(
        "--competition",
        choices=("comp5", "comp6"),
        default="comp6",
        help="comp5: trained on VOC's data only; comp6: on other data too, as VGG-16's weights are (default)",
    )
    settings, options = command.parse_settings(argv)
    from workflows.operations.submission import check_trained, write_submission
    from workflows.pipelines.training import Pipeline

    if options.submission is not None:
        lines = write_submission(
            settings,
            options.submission,
            options.config,
            split=options.split,
            result=options.result,
            competition=options.competition,
        )
        print(lines)
        return 0
    split = options.split or "val"
    if split == "test":
        raise UserError("--split test has no masks to evaluate on: --submission OUT.tar.gz writes what VOC's server evaluates")
    pipeline = Pipeline(settings)
    check_trained(settings, options.config, proposals=True)
    report = pipeline.uri("evaluations", split)
    with pipeline.executor:
        pipeline.measure_proposals(split, report)
        results = pipeline.evaluate(split, report)
    print(cli.results_text(results))
    print(f"\nreport   {report}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
