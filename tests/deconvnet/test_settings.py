"""Settings and the pure functions that take their values have the same defaults; the functions may not import pydantic."""

import inspect
from collections.abc import Callable

import pytest

from deconvnet.crf import dense_crf
from deconvnet.inference.predictor import PredictorOptions
from deconvnet.settings import CrfSettings, SegmentSettings
from infra.settings import Section
from proposals.edgebox import EdgeBoxOptions
from proposals.edges.training.forest import ForestOptions
from proposals.settings import ExampleSettings, ForestSettings, ProposalSettings


@pytest.mark.parametrize(
    ("function", "settings"),
    [
        (EdgeBoxOptions, ProposalSettings()),
        (ForestOptions, ForestSettings()),
        (dense_crf, CrfSettings()),
        (PredictorOptions, SegmentSettings()),
        (PredictorOptions, ExampleSettings()),
    ],
)
def test_functions_have_the_defaults_of_their_settings(function: Callable[..., object], settings: Section) -> None:
    defaults = {
        n: p.default for n, p in inspect.signature(function).parameters.items() if p.default is not inspect.Parameter.empty
    }
    shared = defaults.keys() & type(settings).model_fields.keys() - {"crf"}
    assert shared and {name: defaults[name] for name in shared} == {name: getattr(settings, name) for name in shared}
