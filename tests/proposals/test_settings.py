"""Settings of proposals and of forests that contradict each other are refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from proposals.settings import ForestSettings, ProposalSettings


@pytest.mark.parametrize(
    ("settings", "allowed", "refused", "message"),
    [
        (
            ProposalSettings,
            {"edges": "forest", "edge_model": "/mine.yml.gz"},
            {"edges": "gradient"},
            r"proposals\.edge_model /mine\.yml\.gz is not used with proposals\.edges gradient",
        ),
        (
            ForestSettings,
            {"patches": 1000, "min_child": 500},
            {"min_child": 501},
            r"forest\.min_child 501 is more than half of forest\.patches 1000: no tree can grow",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: Any, allowed: dict[str, Any], refused: dict[str, Any], message: str
) -> None:
    settings(**allowed)
    with pytest.raises(ValidationError, match=message):
        settings(**allowed | refused)
