"""A script that makes tables on the cluster while a test kills a node. Arguments: WHAT FOLDER OUT, as those of `make`."""

import sys

from deconvnet.datasets.images_table import data_folder, prepare_images
from deconvnet.datasets.palette import GENERATED_CLASSES
from deconvnet.settings import DataSettings, GeneratedSettings
from infra.runtime.executor import Executor
from infra.runtime.ray_executor import RayExecutor
from infra.settings import ClusterSettings
from proposals.job import make_proposals
from proposals.mining.job import mine_examples
from proposals.settings import ExampleSettings, ProposalSettings

FINGERPRINT = "f" * 64
PROPOSALS = ProposalSettings(max_boxes=200, min_box_area=150)
EXAMPLES = ExampleSettings(max_per_image=32)


def make(what: str, folder: str, out: str, executor: Executor) -> None:
    """Make tables in the folder `out`.

    Args:
        what: "proposals", "mining" (crops of stage 2), or "inputs" for images and proposals.
        folder: folder with the tables that these are made from.
        out: folder of the new tables.
        executor: runs the work.
    """
    if what == "inputs":
        data = DataSettings(classes=GENERATED_CLASSES, generated=GeneratedSettings(train=180, val=12, height=140, width=180))
        prepare_images(data, 0, f"{out}/images", FINGERPRINT, data_folder(data, 0, f"{folder}/data"), executor)
    if what in ("inputs", "proposals"):
        make_proposals(f"{folder}/images", f"{out}/proposals", PROPOSALS, FINGERPRINT, executor)
    if what == "mining":
        mine_examples(
            2,
            f"{folder}/images",
            f"{folder}/proposals",
            f"{out}/mining",
            EXAMPLES,
            128,
            fingerprint=FINGERPRINT,
            executor=executor,
        )


if __name__ == "__main__":
    what, folder, out = sys.argv[1:]
    with RayExecutor(ClusterSettings()) as executor:
        make(what, folder, out, executor)
