"""Import annotated images into PASCAL VOC's folder layout, and check them. All formats are in docs/formats.md.

  python workflows/import_data.py --from coco    --images DIR --annotations instances.json --to my-data
  python workflows/import_data.py --from labelme --annotations DIR_OF_JSON_FILES --to my-data
  python workflows/import_data.py --from masks   --images DIR --annotations DIR_OF_MASKS --to my-data
  python workflows/import_data.py --from yolo    --annotations data.yaml --to my-data
  … --add_to my-data                                         instead of --to: add to a folder, or replace masks in it
  python workflows/import_data.py --check my-data            import nothing, only check a folder in VOC's layout

Options for the import:

  --val_annotations WHAT [--val_images DIR]      annotations (and images) of the val split, if they are separate
  --train_list FILE, --val_list FILE             or text files that list the train and val images; without them, and if the
                                                 annotations name no split, a random fifth of the images becomes val
  --table colours.txt                            masks only: classes and their ids or colours
  --dry-run                                      read everything, print what would be imported or left out, write nothing

The new folder appears only when it is complete. It contains:

  JPEGImages                        the image files, unchanged
  SegmentationClass                 masks of class ids
  SegmentationObject                masks of object ids, if the objects are known
  ImageSets/Segmentation            lists of the images in train and val
  classes.txt                       the class names
  rejects.csv                       what was not imported, and why
  check.md, contact_sheet.png       the check: a report, and a picture of some images with their masks

The last line printed is the command that trains on this folder (with --add_to, the retraining).

With --add_to, new images are added to a folder in this layout. Images that the folder already has (same name and content) get the
new masks and stay in their splits. The classes must be those of the folder. If a new image has the name of a different image in
the folder, nothing is written.

Exit codes: 0 done; 2 an error in the settings or the data; 3 another import writes to the same folder; 75 interrupted: no new
folder was written; with --add_to, run the same command again to complete the addition.
"""

from workflows import cli
from workflows.settings import CONFIGS
from workflows.settings.import_data import ImportSettings

INTERRUPTED = "no new folder was written; with --add_to, run the same command again to complete the addition"


def main(argv: list[str] | None = None) -> None:
    """Run import_data.py with the given command-line arguments.

    Args:
        argv: command-line arguments. None for those of the process.

    Raises:
        UserError: if the settings or the data have an error.
        Locked: if another import writes to the same folder.
        Interrupted: if another import took over the lock.
    """
    command = cli.SettingsParser(__doc__ or "", ImportSettings, CONFIGS / "import_data.yaml")
    command.add_argument(
        "--dry-run", action="store_true", help="read everything, print what would be imported or left out, and write nothing"
    )
    settings, options = command.parse_settings(argv)
    from workflows.operations.data_addition import add_images
    from workflows.operations.data_import import check_folder, import_dataset

    if settings.check:
        check_folder(settings, settings.check)
    elif settings.add_to:
        add_images(settings, options.dry_run)
    else:
        import_dataset(settings, options.dry_run)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, INTERRUPTED))
