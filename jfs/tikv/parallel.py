"""Several requests at once."""

from collections.abc import Awaitable, Callable, Sequence

import trio


async def in_parallel(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run all; the first error ends the others and is raised as it is."""
    try:
        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(work)
    except BaseExceptionGroup as group:
        raise _first(group) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """An error rather than a cancellation, if there is one."""
    inner = [_first(each) if isinstance(each, BaseExceptionGroup) else each for each in group.exceptions]
    return next((each for each in inner if not isinstance(each, trio.Cancelled)), inner[0])
