"""Predict the class masks of a folder of images with a registered model.

  python workflows/predict.py --input DIR --output DIR --workspace RUN        the champion in the MLflow store of RUN
  python workflows/predict.py --input s3://… --output s3://… --overlays true  MLflow by MLFLOW_TRACKING_URI or --tracking.uri
  … --model models:/NAME@ALIAS (or models:/NAME/VERSION)                      another model
  … --dry-run                                                                 print what would be done

For each image, OUTPUT gets masks/PATH.png (paletted, class ids) and, on request, overlays/PATH.jpg, where PATH is the image's path
below INPUT. The tables predictions/ and rejects/ are Parquet. A second run predicts only images that are new, changed or were left by
an interrupted run; with another version of the model it predicts all images again.

Exit codes: 0 done; 2 an error in the settings or the images; 3 another run is writing to the same output; 75 interrupted: the same
command resumes.
"""

import sys

from workflows import cli
from workflows.settings import CONFIGS, PredictSettings


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments (None: those of the process); returns its exit code."""
    command = cli.SettingsParser(__doc__ or "", PredictSettings, CONFIGS / "predict.yaml")
    command.add_argument("--dry-run", action="store_true", help="print the settings and what would be done")
    settings, options = command.parse_settings(argv)
    from workflows.operations.prediction import PredictionRun

    prediction = PredictionRun(settings)
    if options.dry_run:
        print(cli.settings_text(settings))
        print(prediction.plan_text())
        return 0
    prediction.run()
    print(prediction.summary())
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
