"""A read's patience with a block that the store does not have: another client may have staged it and not uploaded it yet.

Nothing in the metadata tells whether that is so.  Where this client is the volume's only one nobody is waited for.
"""

import logging
from typing import TYPE_CHECKING, Final

import trio

from jfs.errors import ObjectMissing
from jfs.object.retry import delay_after

if TYPE_CHECKING:
    from jfs.meta.client import MetaClient

LIMIT_S: Final = 10.0
GIVEN_UP_S: Final = 30.0
"""So long a block that did not come is not waited for again: the kernel asks twice, and programs more often."""

MOST_GIVEN_UP: Final = 10_000

log = logging.getLogger(__name__)


class GivenUp:
    """Blocks of one mount that did not come, by what their errors say, until when that is remembered."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def add(self, error: ObjectMissing) -> None:
        if len(self._until) >= MOST_GIVEN_UP:
            self._until.clear()
        self._until[str(error)] = trio.current_time() + GIVEN_UP_S

    def holds(self, error: ObjectMissing) -> bool:
        return self._until.get(str(error), 0.0) > trio.current_time()


class UploadWait:
    """One read's waiting; as long as it lasts the read can be cancelled."""

    def __init__(self, meta: "MetaClient", given_up: GivenUp) -> None:
        self._meta = meta
        self._given_up = given_up
        self._attempt = 0
        self._deadline = trio.current_time() + LIMIT_S

    async def again(self, error: ObjectMissing) -> bool:
        """Wait a little before the next try; False: there is no point in one."""
        left = self._deadline - trio.current_time()
        if self._attempt == 0 and (self._given_up.holds(error) or not await self._meta.has_company()):
            return False
        if left <= 0:
            self._given_up.add(error)
            return False
        if self._attempt == 0:
            log.warning("%s; if another client has staged it, it comes: waiting up to %g s", error, LIMIT_S)
        await trio.sleep(min(delay_after(self._attempt), left))
        self._attempt += 1
        return True
