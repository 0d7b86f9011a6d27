"""Predict the class masks of a folder of images with a registered model.

  python workflows/predict.py --input DIR --output DIR --workspace RUN          use the champion in the MLflow store of RUN
  python workflows/predict.py --input s3://… --output s3://… --tracking.uri URI     use the champion on an MLflow server
  … --model models:/NAME@ALIAS                                                  use another model (or models:/NAME/VERSION)
  … --overlays true                                                             also draw each mask over its image
  … --confidence maps                                                           also write how sure each pixel is, as a grey PNG
  … --confidence maps --rank 50                                                 also choose 50 images to label next
  … --executor local                                                            predict in this process, without Ray
  … --dry-run                                                                   print what would be done

The champion is the version of the registered model that is in use. Instead of --tracking.uri, you can set the environment
variable MLFLOW_TRACKING_URI.

For each image, the output folder gets masks/PATH.png, a paletted PNG of class ids, and if requested overlays/PATH.jpg and
confidence/PATH.png. PATH is the image's path in the input folder. The output also has classes.json (the class names by id) and
two Parquet tables: predictions (each image's classes, and how sure its prediction is) and rejects (images that can't be used).
Files whose suffix is not that of an image are left out; they are counted and named.

With --rank N, the folder ranking gets the N images whose predictions are least sure, without near-duplicates: as a list of files
(images.txt), as tables (images.csv, images.parquet) and as a contact sheet (images.png), which outlines uncertain regions.
--rank_labelled DIR leaves out the images in DIR, which are labelled already, and near-duplicates of them.

A second run predicts only images that are new or changed, that an interrupted run has left out, or whose files could not be
read. With another version of the model, it predicts all images again.

Exit codes: 0 done; 2 an error in the settings or the images; 3 another run is writing to the same output; 75 interrupted:
the same command resumes.
"""

from workflows import cli
from workflows.settings import CONFIGS, PredictSettings


def main(argv: list[str] | None = None) -> None:
    """Run predict.py with the given command-line arguments.

    Args:
        argv: command-line arguments. None for those of the process.

    Raises:
        UserError: if the settings or the images have an error.
        Locked: if another run is writing to the same output folder.
        Interrupted: if another run took over the lock of the output folder.
    """
    command = cli.SettingsParser(__doc__ or "", PredictSettings, CONFIGS / "predict.yaml")
    command.add_argument("--dry-run", action="store_true", help="print the settings and what would be done")
    settings, options = command.parse_settings(argv)
    from workflows.operations.prediction import PredictionRun

    prediction = PredictionRun(settings)
    if options.dry_run:
        print(cli.settings_text(settings))
        print(prediction.plan_text())
        return
    prediction.run()
    print(prediction.summary())


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
