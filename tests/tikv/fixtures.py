"""The cluster that the tests share: started for the first test that asks for it, found well by each."""

import itertools
from collections.abc import Callable, Generator

import pytest

from tests.tikv.cluster import Cluster

LATE = "the metadata store .* does not answer, trying again"
"""What jfs says of a cluster that gets no processor for three seconds; what was asked must come all the same."""

_shared: list[Cluster] = []
_volumes = itertools.count(1)


@pytest.fixture(scope="session")
def tikv_cluster() -> Generator[Cluster, None, None]:
    """A cluster of two stores and one region; tests keep apart by the prefixes of their volumes."""
    with Cluster() as cluster:
        _shared.append(cluster)
        yield cluster
        _shared.remove(cluster)


def fresh_address(cluster: Cluster) -> str:
    """The meta URL of a volume that nobody else uses."""
    return cluster.url(f"volume-{next(_volumes)}")


@pytest.fixture(params=["sqlite3", "tikv"])
def new_address(request: pytest.FixtureRequest) -> Callable[[], str]:
    """Where volumes of the test keep their metadata: "" for a database of their own, or a place in the cluster."""
    if request.param == "sqlite3":
        return lambda: ""
    cluster = request.getfixturevalue("tikv_cluster")
    return lambda: fresh_address(cluster)


@pytest.fixture(autouse=True)
def restored_tikv_cluster(request: pytest.FixtureRequest) -> Generator[None, None, None]:
    """A test that killed or paused the shared cluster, or armed faults, leaves it as it was; its crash is an error."""
    yield
    if "tikv_cluster" not in request.fixturenames:
        return
    for cluster in _shared:
        last_words = cluster.died()
        cluster.restore()
        assert not last_words, last_words


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed because the shared cluster died says so."""
    report = yield
    for cluster in _shared:
        if report.failed and (last_words := cluster.died()):
            report.sections.append(("TiKV test server", last_words))
    return report
