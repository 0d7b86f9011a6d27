"""The table of scores, for formats that have no room for them."""

import csv
import io
from collections.abc import Sequence

SCORES = "scores.csv"


def score_table(scores: Sequence[tuple[str, float]]) -> bytes:
    """Return the content of scores.csv.

    Args:
        scores: name and score (0 to 1) of each image.
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(("image", "score"))
    rows.writerows((name, f"{score:.4f}") for name, score in scores)
    return text.getvalue().encode()
