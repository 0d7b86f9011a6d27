"""Predict masks with the models of a workspace, and pack them into the archive that VOC's test server scores."""

from deconvnet.datasets import voc
from deconvnet.datasets.palette import VOC_CLASSES
from deconvnet.evaluation.voc_submission import job
from deconvnet.evaluation.voc_submission.archive import SUFFIXES, check_submission, masks_folder, pack_masks
from deconvnet.inference.predictor import PredictorOptions
from infra import storage
from infra.errors import UserError
from infra.runtime import open_executor
from infra.runtime.stages import outdated
from infra.settings import absolute_location
from infra.storage import tables
from workflows.pipelines.run_log import changed_since_training
from workflows.pipelines.workspace import Workspace, hold_workspace
from workflows.settings import Settings


def check_trained(settings: Settings, config: str, *, proposals: bool) -> None:
    """Check that a workspace has the trained models of both networks, DeconvNet and FCN-8s, and that they belong together.

    Args:
        settings: settings of the pipeline that was run in the workspace.
        config: path of the settings file, for the error message.
        proposals: True to check that the table of box proposals is there, too.

    Raises:
        UserError: if something is missing, or was made from other images or models than the current ones. The message says which
            command makes it.
    """
    workspace = Workspace(settings.workspace)
    models = ("fcn8s", "stage2")
    missing = [name for name in models if not storage.exists(storage.join(workspace.model(name), "model.json"))]
    if proposals and tables.fingerprint_of(workspace.proposals) is None:
        missing = ["proposals", *missing]
    if missing:
        raise UserError(
            f"{settings.workspace} has no {' and no '.join(missing)} yet: run workflows/train_pipeline.py --config {config} first"
        )
    if stale := outdated(settings.workspace, (*(["proposals"] if proposals else []), *models)):
        raise UserError(
            f"{settings.workspace}: the last run there did not finish, so {' and '.join(stale)} may not match the current images "
            f"and models: run workflows/train_pipeline.py --config {config} first"
        )


def write_submission(settings: Settings, archive: str, config: str, *, split: str | None, result: str, competition: str) -> str:
    """Predict the images of one of VOC's lists, and write an archive of their masks for VOC's test server.

    The archive is checked against the server's rules before it is written. Only the models of the workspace are used, because no
    pipeline can run on VOC's test images, which have no masks. An interrupted call is resumed by the next one.

    Args:
        settings: settings of the pipeline. `data.root` is the folder of the images, in VOC's layout.
        archive: path or URI of the archive to write, ending in .tar.gz or .tgz.
        config: path of the settings file, for error messages.
        split: name of the image list. None for "test" if there is such a list, else "val".
        result: result to submit: "fcn8s", "deconvnet", "deconvnet_crf", "edeconvnet" (the ensemble) or "edeconvnet_crf".
        competition: "comp5" for models trained on VOC's data only, "comp6" for models trained on other data, too.

    Returns:
        Text to print: the number of masks, and the URI and size of the archive.

    Raises:
        UserError: if the models or images can't be used, a setting that must be as in the training differs, the archive can't
            be written, or the masks break the server's rules.
        Locked: if another command holds the lock of the workspace.
        Interrupted: if another command took over the lock.
    """
    target = _archive_uri(archive)
    root, split = _image_list(settings.data.root, split)
    check_trained(settings, config, proposals=False)
    with hold_workspace(settings.workspace, "evaluate.py", settings.retrain.lock_minutes) as lock:
        check_trained(settings, config, proposals=False)  # again, because a run may just have ended
        workspace = Workspace(settings.workspace)
        models = workspace.model("stage2"), workspace.model("fcn8s")
        classes = tuple(storage.read_json(storage.join(models[0], "model.json"))["classes"])
        if classes != VOC_CLASSES:
            raise UserError(
                f"VOC's server scores VOC's {len(VOC_CLASSES)} classes in their order, and the models in {settings.workspace} "
                f"have the classes {', '.join(classes)}"
            )
        changed_since_training(settings)  # raises UserError about settings that must be as in the training; others may change
        images = job.list_split(root, split, settings.data.max_pixels)
        options = PredictorOptions.from_settings(settings.segment, settings.examples, settings.proposals, settings.data)
        boxes = None if settings.proposals.kind == "windows" else settings.proposals.edge_box
        recipe = job.Recipe(*models, options, boxes, result)
        work = workspace.uri("submissions", recipe.key(images)[:16])
        with open_executor(settings.executor, settings.cluster, lambda: lock.lost) as executor:
            masks = job.predict_masks(images, recipe, work, executor, settings.compute.gpu)
        folder = masks_folder(competition, split)
        data = pack_masks(masks, folder)
        if faults := check_submission(data, folder, {each.image_id: (each.width, each.height) for each in images}):
            raise UserError("\n  ".join([f"the masks in {work} break the server's rules (remove it, and run again):", *faults]))
        storage.write_bytes(target, data)
        storage.remove(work)
        return (
            f"{len(masks):,} masks by {result} for {split}, checked against the server's rules\n\n"
            f"submission  {target} ({len(data) / 1e6:.1f} MB)"
        )


def _archive_uri(archive: str) -> str:
    """Return the absolute URI of the archive to write, and check that its folder is writable.

    Args:
        archive: path or URI of the archive.

    Raises:
        UserError: if the name has a wrong ending or the folder is not writable.
    """
    if not archive.endswith(SUFFIXES):
        raise UserError(
            f"--submission {archive} is not allowed: the server takes {' or '.join(SUFFIXES)}, so end the name in one"
        )
    try:
        target = absolute_location(archive)
    except ValueError as error:
        raise UserError(f"--submission {archive}: {error}") from None
    storage.check_writable(target.rpartition("/")[0] or "/")
    return target


def _image_list(root: str | None, split: str | None) -> tuple[str, str]:
    """Choose the image list for a submission, which is a file in ImageSets/Segmentation of the data folder.

    Args:
        root: folder in VOC's layout, or None if the settings name none.
        split: name of the image list. None for "test" if there is such a list, else "val".

    Returns:
        The folder, and the name of the list.

    Raises:
        UserError: if `root` is None, or `split` is "dev", which is not one of VOC's lists.
    """
    if root is None:
        raise UserError("a submission is of VOC's images: name their folder, in VOC's layout, by --data.root")
    if split == "dev":
        raise UserError("--split dev can't be submitted, as it is this project's own part of train: use test or val")
    return root, split or ("test" if storage.exists(voc.split_path(root, "test")) else "val")
