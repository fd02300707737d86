"""What every test gets: async tests under trio, deadlines instead of sleeps, and a log that must stay clean."""

import inspect
import logging
import os
import re
import signal
from collections.abc import Generator

import pytest
import trio
from hypothesis import HealthCheck, settings

from tests.deadline import eventually, eventually_async
from tests.leftovers import pytest_runtest_protocol
from tests.s3server import S3Server, start_s3_server
from tests.tikv.fixtures import new_address, pytest_runtest_makereport, restored_tikv_cluster, tikv_cluster

__all__ = [
    "eventually",
    "eventually_async",
    "new_address",
    "pytest_runtest_makereport",
    "pytest_runtest_protocol",
    "restored_tikv_cluster",
    "tikv_cluster",
]


def pytest_configure() -> None:
    """SIGTERM ends the run as Ctrl-C does, so that no mount is left behind; an example of hypothesis may take its time.

    And files are made with the modes that the tests expect, whoever runs them.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.umask(0o022)
    settings.register_profile(
        "unhurried", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("unhurried")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests under trio."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def run() -> None:
        await test(**arguments)

    trio.run(run)
    return True


class _Collector(logging.Handler):
    """Keeps what the logger `jfs` said at WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}: {record.getMessage()}")


@pytest.fixture(autouse=True)
def clean_log(request: pytest.FixtureRequest) -> Generator[None, None, None]:
    """Fail a test that logs a warning or an error under `jfs` which its `logs` mark does not name."""
    collector = _Collector()
    logger = logging.getLogger("jfs")
    logger.addHandler(collector)
    try:
        yield
    finally:
        logger.removeHandler(collector)
    expected = [pattern for mark in request.node.iter_markers("logs") for pattern in mark.args]
    unexpected = [line for line in collector.lines if not any(re.search(pattern, line) for pattern in expected)]
    if unexpected:
        pytest.fail("unexpected log lines:\n" + "\n".join(unexpected), pytrace=False)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Server, None, None]:
    """A real S3 server; it starts when the first test asks for it."""
    server = start_s3_server(tmp_path_factory.mktemp("s3server"))
    yield server
    server.stop()
