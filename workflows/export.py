"""Export predictions as labels to correct or to look at, or the networks as ONNX files. All formats are in docs/formats.md.

  python workflows/export.py --format cvat        --predictions DIR --to export     for CVAT ("CVAT for images 1.1")
  python workflows/export.py --format labelstudio --predictions DIR --to export     for Label Studio: tasks with predictions
  python workflows/export.py --format labelme     --predictions DIR --to export     for LabelMe and X-AnyLabeling
  … --format coco | yolo | voc                                                      for other tools
  python workflows/export.py --format fiftyone    --predictions DIR --to export     predictions to view in FiftyOne
  python workflows/export.py --format fiftyone    --workspace RUN   --to export     evaluated images, with ground truth
  python workflows/export.py --format onnx        --workspace RUN   --to export     the networks of the champion, for onnxruntime
  … --shapes masks                                                                  exact masks instead of polygons
  … --only names.txt                                                                only these images, one name a line
  … --dry-run                                                                       print what would be exported

DIR is the output folder of predict.py. The new folder gets the annotations with a score for each object (how sure its class is),
a configuration of the tool (its labels), and copies of the images. It appears only when it is complete. When you have corrected
the annotations, import_data.py imports them; the last line printed is that command.

With --format fiftyone, the new folder is a data set in FiftyOne's own format (metadata.json, samples.json, images and masks); the
command prints how to open it. With --workspace, it has the val images of the pipeline's report, or with --evaluation
evaluations/dev the images that evaluate.py --split dev has evaluated.

With --format onnx, the new folder gets deconvnet.onnx, fcn8s.onnx and networks.json. --model models:/NAME@ALIAS names another
model than the champion, and --tracking.uri an MLflow server. examples/segment_onnx.py runs the networks without torch.

Exit codes: 0 done; 2 an error in the settings or the data; 3 another export creates the same folder; 75 interrupted: nothing was
written.
"""

from workflows import cli
from workflows.settings import CONFIGS
from workflows.settings.export import ExportSettings

INTERRUPTED = "nothing was written"


def main(argv: list[str] | None = None) -> None:
    """Run export.py with the given command-line arguments.

    Args:
        argv: command-line arguments. None for those of the process.

    Raises:
        UserError: if the settings or the data have an error.
        Locked: if another export creates the same folder.
        Interrupted: if another export took over the lock.
    """
    command = cli.SettingsParser(__doc__ or "", ExportSettings, CONFIGS / "export.yaml")
    command.add_argument("--dry-run", action="store_true", help="print what would be exported, and write nothing")
    settings, options = command.parse_settings(argv)
    if settings.format == "onnx":
        from workflows.operations.network_export import export_networks

        export_networks(settings, options.dry_run)
        return
    if settings.format == "fiftyone":
        from workflows.operations.fiftyone_export import export_to_fiftyone

        export_to_fiftyone(settings, options.dry_run)
        return
    from workflows.operations.label_export import export_labels

    export_labels(settings, options.dry_run)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, INTERRUPTED))
