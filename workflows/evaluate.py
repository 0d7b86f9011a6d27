"""Evaluate the trained models of a workspace on one split: the five results as a table, a report and figures.

  python workflows/evaluate.py --config FILE                                 evaluate on the val images
  python workflows/evaluate.py --config FILE --split dev                     evaluate on the dev images
  python workflows/evaluate.py --config FILE --split test                    evaluate on the images of data.test_split
  python workflows/evaluate.py --config FILE --submission OUT.tar.gz         write masks for VOC's test server instead

The five results are those of FCN-8s, of DeconvNet and of the ensemble of both, the last two with and without a CRF. The
report is written to WORKSPACE/evaluations/SPLIT.

The settings are those of train_pipeline.py. You can evaluate with other values of the settings in the section segment, for
example --segment.aggregation sum. Choose such values on dev, a part of the training images that is set aside for this
purpose, and evaluate on val for the final table only.

With --submission, the command evaluates nothing. It predicts the images that ImageSets/Segmentation/test.txt in data.root
lists (val.txt if there is no test.txt; --split chooses between them). The masks are checked against the rules of VOC's test
server, and packed into the archive to upload there. --result chooses one of the five results.

Exit codes: 0 done; 2 an error in the settings or the images, or the models are not trained yet; 3 another command is working in
this workspace; 75 interrupted: the same command resumes it.
"""

from infra.errors import UserError
from workflows import cli
from workflows.settings import parser

RESULTS = ("fcn8s", "deconvnet", "deconvnet_crf", "edeconvnet", "edeconvnet_crf")
"""Names of the five results, as in `deconvnet.inference.predictor`. They are repeated here because that module imports torch."""


def main(argv: list[str] | None = None) -> None:
    """Run evaluate.py with the given command-line arguments.

    Args:
        argv: command-line arguments. None for those of the process.

    Raises:
        UserError: if the settings or images have an error, or the models are not trained yet.
        Locked: if another command holds the lock of the workspace.
        Interrupted: if another command took over the lock.
    """
    command = parser(__doc__ or "")
    command.add_argument(
        "--split", choices=("val", "dev", "test"), help="images to evaluate on (default: val), or to predict for --submission"
    )
    command.add_argument("--submission", metavar="OUT.tar.gz", help="write the archive to upload to VOC's test server")
    command.add_argument("--result", choices=RESULTS, help="with --submission: the result to submit (default: edeconvnet_crf)")
    command.add_argument(
        "--competition",
        choices=("comp5", "comp6"),
        help="with --submission: comp5: trained on VOC's data only; comp6: on other data too, as VGG-16's weights are (default)",
    )
    settings, options = command.parse_settings(argv)
    from infra.device import check_gpu
    from workflows.operations.submission import check_trained, write_submission
    from workflows.pipelines.training import Pipeline

    if settings.executor == "local":
        check_gpu(settings.compute.gpu)
    if options.submission is not None:
        chosen = {"result": options.result or "edeconvnet_crf", "competition": options.competition or "comp6"}
        print(write_submission(settings, options.submission, options.config, split=options.split, **chosen))
        return
    if options.result or options.competition:
        raise UserError("--result and --competition choose what is submitted: give --submission OUT.tar.gz, or leave them out")
    split = options.split or "val"
    if split == "test" and settings.data.test_split is None:
        raise UserError(
            "--split test has no masks to evaluate on, as data.test_split is empty: name the list of the test images there and "
            "run train_pipeline.py, or give --submission OUT.tar.gz to have VOC's server evaluate them"
        )
    pipeline = Pipeline(settings)
    check_trained(settings, options.config, proposals=True)
    pipeline.use_prepared_tables()
    report = pipeline.uri("evaluations", split)
    with pipeline.hold("evaluate.py"), pipeline.executor:
        check_trained(settings, options.config, proposals=True)  # again, because a run may just have ended
        pipeline.measure_proposals(split, report)
        results = pipeline.evaluate(split, report)
    print(cli.results_text(results))
    print(f"\nreport   {report}")


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
