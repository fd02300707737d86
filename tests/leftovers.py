"""What a failed test leaves open fails that test only.

A failure's traceback keeps what the test held until the next test is called, and the collector comes later still: the
ResourceWarning of a socket, say, would be the failure of any test that runs at that moment.
"""

import gc
import sys
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    failed = item.session.testsfailed
    done = yield
    if item.session.testsfailed > failed:
        _collect_silently()
    return done


def _collect_silently() -> None:
    for name in ("last_type", "last_value", "last_traceback"):
        vars(sys).pop(name, None)
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        gc.collect()
    finally:
        sys.unraisablehook = hook
