"""What is reported of a split's proposals, so that a user sees whether they or the network are to blame."""

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
    """The figures, and the files that tell of them: proposals.json, proposals.md and proposals.png."""

    recall: Recall
    files: dict[str, bytes]


def measure(
    images_uri: str,
    proposals_uri: str,
    split: str,
    settings: "ProposalSettings",
    name: str,
    executor: Executor,
) -> ProposalReport | None:
    """The report on the proposals of `split`, made by `settings`, under the heading `name`; None where it has no objects.

    Objects count from 2,000 px² (`recall.MIN_AREA`), or from twice `settings.min_box_area` where that is less: where smaller
    boxes are sought, as in small photographs, smaller objects are to be found. executor: runs the parts.
    """
    area = min(MIN_AREA, 2 * settings.min_box_area)
    recall = measure_recall(images_uri, proposals_uri, split, executor, counts_up_to(settings.max_boxes), area)
    if not recall.num_objects:
        return None
    about = (
        f"{recall.num_objects:,} objects whose box has {area:,.0f} px² or more, and the best of each photograph's first boxes."
    )
    markdown = f"# Proposals: {name}\n\n{recall_table({split: recall})}\n{about}\n"
    figures = json.dumps({"min_area": area, **recall.as_dict()}, indent=1) + "\n"
    files = {
        "proposals.json": figures.encode(),
        "proposals.md": markdown.encode(),
        "proposals.png": recall_curves({split: recall}),
    }
    return ProposalReport(recall, files)
