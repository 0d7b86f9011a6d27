"""A node dies while the cluster makes a table."""

from functools import partial

import pytest

from infra.storage import tables
from tests.cluster.conftest import Lab, until
from tests.cluster.tables_driver import FINGERPRINT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
DRIVER = "tests/cluster/tables_driver.py"


@pytest.fixture(scope="module")
def undisturbed(started: Lab) -> str:
    """Images, proposals and examples made while nothing happened."""
    started.whole()
    folder = started.place("undisturbed")
    driver = started.start(DRIVER, "all", folder, folder)
    assert driver.end() == 0, driver.said
    return folder


@pytest.mark.parametrize("what", ["proposals", pytest.param("mining", marks=pytest.mark.slow)])
def test_a_node_that_dies_while_a_table_is_made(lab: Lab, undisturbed: str, what: str) -> None:
    place = lab.place(what)
    out = f"{place}/{what}"
    driver = lab.start(DRIVER, what, undisturbed, place)
    victim = lab.cluster.nodes[1]
    busy = partial(victim.processes, "ray::Map(")
    until(lambda: len(tables.parts_done(out, FINGERPRINT)) >= 1 and busy(), "a part is done, and the node makes another")
    victim.kill()
    done = len(tables.parts_done(out, FINGERPRINT))
    before = tables.require_commit(f"{undisturbed}/{what}")
    assert driver.process.poll() is None and done < len(before.parts), "the kill came too late to disturb anything"
    assert driver.end() == 0, driver.said
    assert victim.address not in lab.cluster.alive()
    made = tables.require_commit(out)
    assert made.rows == before.rows > 150
    assert list(tables.iter_rows(out)) == list(tables.iter_rows(f"{undisturbed}/{what}"))
    assert [p.digest for p in made.parts] == [p.digest for p in before.parts]
