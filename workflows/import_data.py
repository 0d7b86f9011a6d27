"""Import annotated images from COCO JSON, LabelMe or a folder of masks to VOC's layout, and check them.

  python workflows/import_data.py --from coco    --images DIR --annotations instances.json --to my-data
  python workflows/import_data.py --from labelme --annotations DIR_OF_JSON_FILES --to my-data
  python workflows/import_data.py --from masks   --images DIR --annotations DIR_OF_MASKS --to my-data [--table colours.txt]
  … --val_annotations WHAT [--val_images DIR]       a given split (or --train_list, --val_list; else a fifth is drawn for val)
  … --dry-run                                       print what would be imported
  python workflows/import_data.py --check my-data   only check a folder in VOC's layout

The new folder appears whole or not at all. It holds JPEGImages (the files unchanged), SegmentationClass, SegmentationObject (where
objects are known), ImageSets/Segmentation, classes.txt, rejects.csv (what was not imported, and why), and the check: check.md and
contact_sheet.png. The last line printed is the command that trains on it.

Exit codes: 0 done; 2 an error in the settings or the data; 75 interrupted: nothing was written.
"""

import sys

from workflows import cli
from workflows.settings import CONFIGS, ImportSettings

INTERRUPTED = "nothing was written"


def main(argv: list[str] | None = None) -> int:
    """Run the command with these arguments (None: those of the process); returns its exit code."""
    command = cli.SettingsParser(__doc__ or "", ImportSettings, CONFIGS / "import_data.yaml")
    command.add_argument("--dry-run", action="store_true", help="print what would be imported, and write nothing")
    settings, options = command.parse_settings(argv)
    from workflows.operations.data_import import check_folder, import_dataset

    if settings.check:
        check_folder(settings, settings.check)
    else:
        import_dataset(settings, options.dry_run)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, INTERRUPTED))
