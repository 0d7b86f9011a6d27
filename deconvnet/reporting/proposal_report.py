"""The report on a split's proposals: how many objects they find. It shows whether they or the network limit the result."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deconvnet.reporting.plots import recall_curves
from infra.runtime.executor import Executor
from proposals.recall import MIN_AREA, Recall, counts_up_to, recall_table
from proposals.recall_job import measure_recall

if TYPE_CHECKING:
    from proposals.settings import ProposalSettings


@dataclass(frozen=True)
class ProposalReport:
    """The recall of a split's proposals.

    Attributes:
        recall: the measured recall.
        files: proposals.json, proposals.md and proposals.png, by name.
    """

    recall: Recall
    files: dict[str, bytes]


def report_proposals(
    images_uri: str, proposals_uri: str, split: str, settings: "ProposalSettings", title: str, executor: Executor
) -> ProposalReport | None:
    """Measure how many objects the proposals of a split find.

    Objects count from 2,000 px² (`recall.MIN_AREA`), or from twice `settings.min_box_area` if that is less: where smaller boxes
    are proposed, as for small images, smaller objects should be found.

    Args:
        images_uri: the table `images`.
        proposals_uri: the table `proposals` made from it.
        split: the images that are measured.
        settings: how the proposals were made.
        title: heading of the Markdown file.
        executor: runs the parts of the tables.

    Returns:
        The report, or None if the split has no such objects.
    """
    area = min(MIN_AREA, 2 * settings.min_box_area)
    recall = measure_recall(images_uri, proposals_uri, split, executor, counts_up_to(settings.max_boxes), area)
    if not recall.num_objects:
        return None
    note = f"{recall.num_objects:,} objects whose box has {area:,.0f} px² or more; the best of each image's first boxes counts."
    content = json.dumps({"min_area": area, **recall.as_dict()}, indent=1) + "\n"
    files = {
        "proposals.json": content.encode(),
        "proposals.md": f"# Proposals: {title}\n\n{recall_table({split: recall})}\n{note}\n".encode(),
        "proposals.png": recall_curves({split: recall}),
    }
    return ProposalReport(recall, files)
