"""Report how many annotated objects of a split the proposals find.

A proposal is a box that may contain an object. DeconvNet cannot segment an object that no proposal covers. So the report shows
whether the proposals or the network limit the quality of the predictions.
"""

import json
from collections.abc import Collection
from typing import TYPE_CHECKING

from deconvnet.reporting.plots import recall_curves
from infra.runtime.executor import Executor
from proposals.recall import MIN_AREA, Recall, counts_up_to, recall_table
from proposals.recall_job import measure_recall

if TYPE_CHECKING:
    from proposals.settings import ProposalSettings


def report_proposals(
    images_uri: str,
    proposals_uri: str,
    split: str,
    settings: "ProposalSettings",
    title: str,
    executor: Executor,
    skip_parts: Collection[str] = (),
) -> tuple[Recall, dict[str, bytes]] | None:
    """Measure how many annotated objects the proposals of a split find, and make the files that report it.

    No file is written. An object counts if its bounding box is large enough. The smallest area is 2,000 px² or twice the smallest
    area of a proposal (`settings.min_box_area`), whichever is less. The second limit is for data sets of small images: small
    proposals are usually allowed there, so small objects should be found too.

    Args:
        images_uri: URI of the table `images`.
        proposals_uri: URI of the table `proposals`, with the boxes found in these images.
        split: name of the split, such as "val", whose images are measured.
        settings: the settings that the proposals were made with.
        title: heading of the Markdown file, after "Proposals: ".
        executor: runs the measurement of several parts (Parquet files) of the tables at once.
        skip_parts: names of parts of the table `proposals` that are left out.

    Returns:
        A tuple of two values. The first is the recall: the share of the annotated objects that the first k proposals of each
        image find, for several numbers k. The second is a dict from file name to content, for the files proposals.json (recall),
        proposals.md (table of the recall) and proposals.png (chart). If no object of the split counts, the result is None.
    """
    area = min(MIN_AREA, 2 * settings.min_box_area)
    recall = measure_recall(images_uri, proposals_uri, split, executor, counts_up_to(settings.max_boxes), area, skip_parts)
    if not recall.num_objects:
        return None
    note = f"{recall.num_objects:,} objects whose box has at least {area:,.0f} px²; of the first k boxes, the best IoU counts."
    content = json.dumps({"min_area": area, **recall.as_dict()}, indent=1) + "\n"
    files = {
        "proposals.json": content.encode(),
        "proposals.md": f"# Proposals: {title}\n\n{recall_table({split: recall})}\n{note}\n".encode(),
        "proposals.png": recall_curves({split: recall}),
    }
    return recall, files
