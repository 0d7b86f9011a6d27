"""How the tests are divided among the processes of pytest-xdist (`conftest.py`)."""

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="the tests run in one process")
def test_the_tests_of_a_file_run_in_one_process(request: pytest.FixtureRequest) -> None:
    """pytest-xdist sees the group in the test's id. Without it, what the tests of a file share is made in each process."""
    assert request.node.nodeid.endswith("@test_groups.py")
