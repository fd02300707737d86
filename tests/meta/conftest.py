"""The metadata engines: what is tested here holds on each of them."""

import itertools
from collections.abc import Generator
from pathlib import Path

import pytest

from jfs.meta.engines import open_engine
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.run import run_inline
from jfs.meta.sql.sqlite3 import Sqlite3Engine
from jfs.meta.transaction import Engine
from tests.tikv.cluster import Cluster
from tests.tikv.fixtures import LATE

_volumes = itertools.count(1)


@pytest.fixture
def sqlite3_engine(tmp_path: Path) -> Generator[Sqlite3Engine, None, None]:
    """The embedded engine alone, on a fresh database."""
    made = Sqlite3Engine(str(tmp_path / "meta.db"), create=True)
    run_inline(made.prepare())
    yield made
    run_inline(made.close())


@pytest.fixture(params=["memory", "sqlite3", "tikv"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Engine, None, None]:
    """An engine with an empty database that is ready for use."""
    opened: Engine
    if request.param == "memory":
        opened = MemoryEngine()
    elif request.param == "tikv":
        cluster: Cluster = request.getfixturevalue("tikv_cluster")
        request.node.add_marker(pytest.mark.logs(LATE))
        opened = open_engine(cluster.url(f"test{next(_volumes)}"))
    else:
        opened = open_engine(f"sqlite3://{tmp_path}/meta.db", create=True)
    run_inline(opened.prepare())
    yield opened
    run_inline(opened.close())
