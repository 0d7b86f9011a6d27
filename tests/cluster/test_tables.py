"""A node dies while the cluster makes a table."""

from functools import partial

import pytest

from infra.runtime.local_executor import LocalExecutor
from infra.storage import tables
from tests.cluster.conftest import ClusterFixture
from tests.cluster.tables_driver import make
from tests.waiting import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.timeout(300)]
DRIVER = "tests/cluster/tables_driver.py"


@pytest.fixture(scope="module")
def undisturbed(started: ClusterFixture) -> str:
    """URI of images and proposals made by one process."""
    folder = started.new_uri("undisturbed")
    make("inputs", folder, folder, LocalExecutor(1))
    return folder


@pytest.mark.parametrize("what", ["proposals", "mining"])
def test_a_table_is_complete_and_equal_though_a_node_dies_while_it_is_made(
    cluster: ClusterFixture, undisturbed: str, what: str
) -> None:
    if what == "mining":
        make(what, undisturbed, undisturbed, LocalExecutor(1))
    folder = cluster.new_uri(what)
    out = f"{folder}/{what}"
    driver = cluster.start(DRIVER, what, undisturbed, folder)
    victim = cluster.local.nodes[1]
    busy = partial(victim.processes, "ray::Map(")
    condition = "a part is complete, and the node works on another"
    wait_until(lambda: len(tables.part_files(out)) >= 1 and busy(), description=condition)
    victim.kill()
    done = len(tables.part_files(out))
    before = tables.require_commit(f"{undisturbed}/{what}")
    assert driver.process.poll() is None and done < len(before.parts), "the table was complete before the node was killed"
    assert driver.end() == 0, driver.output
    assert victim.address not in cluster.local.alive()
    made = tables.require_commit(out)
    assert made.rows == before.rows > 150
    assert list(tables.iter_rows(out)) == list(tables.iter_rows(f"{undisturbed}/{what}"))
    assert [p.digest for p in made.parts] == [p.digest for p in before.parts]
