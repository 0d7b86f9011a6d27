"""What most tests of training share: a table, and what is logged."""

import logging

import pytest

from deconvnet.training.data.examples import Examples, open_examples
from tests.deconvnet.training_tables import SIZE, examples_table


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    """60 crops, of which every second one occurs twice in an epoch."""
    return open_examples(examples_table(str(tmp_path_factory.mktemp("examples")), 60), SIZE)


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Collects what is logged, in its `messages`."""
    caplog.set_level(logging.INFO, "deconvnet")
    return caplog
