"""The cluster that the tests share: started for the first test that asks for it."""

from collections.abc import Generator

import pytest

from tests.tikv.cluster import Cluster


@pytest.fixture(scope="session")
def tikv_cluster() -> Generator[Cluster, None, None]:
    """A cluster of two stores; tests keep apart by the prefixes of their volumes."""
    with Cluster() as cluster:
        yield cluster
