"""What a mount's metadata client does by itself: flush usage, keep its session alive, follow the settings, hourly jobs."""

import logging
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import trio

from jfs.errors import CorruptRecord, FsError, StoreError, UserError
from jfs.meta import fingerprints, jobs
from jfs.meta.run import read
from jfs.meta.settings import Settings
from jfs.meta.transaction import Transaction

if TYPE_CHECKING:
    from jfs.meta.client import MetaClient

log = logging.getLogger(__name__)

FLUSH_S: Final = 1.0
JOBS_S: Final = 60.0
JITTER: Final = 0.05
RESTART_S: Final = 5.0

EXPECTED: Final = (FsError, CorruptRecord, StoreError)
"""What the outside does to jobs: told in a line.  Anything else is a bug, told with its traceback."""


async def run(client: "MetaClient", task_status: trio.TaskStatus[None]) -> None:
    """All of it, until cancelled."""
    options = client.options
    async with trio.open_nursery() as nursery:
        if options.heartbeat_s > 0:
            nursery.start_soon(_repeat, "heartbeat", options.heartbeat_s, lambda: heartbeat(client))
        if not options.read_only:
            nursery.start_soon(_repeat, "usage flush", FLUSH_S, client.flush_usage)
            nursery.start_soon(keep_running, client.refill_ids, RESTART_S, "drawing ids")
            if options.bgjob:
                nursery.start_soon(_repeat, "clean-up", JOBS_S, lambda: jobs.hourly(client))
        task_status.started()
        await trio.sleep_forever()


async def _repeat(name: str, period_s: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do it every period, give or take 5 %; a failure is logged, and the next round tries again.

    Any failure: nothing that goes wrong here may take the mount, and what it has not flushed yet, with it.
    """
    failing: set[type[Exception]] = set()
    while True:
        await trio.sleep(period_s * random.uniform(1 - JITTER, 1 + JITTER))
        try:
            await work()
            failing.clear()
        except Exception as error:
            if type(error) not in failing:
                bug = None if isinstance(error, EXPECTED) else error
                log.warning("%s failed, trying again every %g s: %s", name, period_s, error, exc_info=bug)
            failing.add(type(error))


async def keep_running(work: Callable[[], Awaitable[None]], pause_s: float, name: str = "") -> None:
    """A bug in the background must not take the mount, and what is not yet flushed, with it: logged, and on it goes."""
    while True:
        try:
            await work()
            return
        except Exception:
            log.exception("%s failed; it goes on", name or getattr(work, "__qualname__", work))
            await trio.sleep(pause_s)


async def heartbeat(client: "MetaClient") -> None:
    """Stay alive, follow what others changed, and clean up after those that did not stay alive."""
    if not client.options.read_only:
        await client.refresh_session()
    await follow_settings(client)
    await follow_fingerprints(client)
    await client.load_usage()
    if client.options.read_only or not client.options.bgjob:
        return
    if await client.claim("lastCleanupSessions", client.options.heartbeat_s):
        await client.clean_stale_sessions()


async def _stored_settings(tx: Transaction) -> bytes | None:
    return await tx.settings()


async def follow_settings(client: "MetaClient") -> None:
    """Take over new settings; a volume that is gone, or is another one now, ends the mount."""
    text = await read(client.engine, _stored_settings)
    if text == client.settings_text:
        return
    if text is None:
        client.fatal("the volume's settings have vanished from the database")
        return
    try:
        settings = Settings.parse(text)
    except UserError as error:
        client.fatal(str(error))
        return
    if settings.uuid != client.settings.uuid:
        client.fatal(f"the volume was formatted again: UUID {client.settings.uuid} became {settings.uuid}")
        return
    client.take_settings(settings, text)


async def follow_fingerprints(client: "MetaClient") -> None:
    """Fingerprints may have been turned on or off."""
    try:
        kept = await read(client.engine, fingerprints.kept)
    except UserError as error:
        client.fatal(str(error))
        return
    if kept != client.fingerprinting:
        log.info("fingerprints of blocks were turned %s", "on" if kept else "off")
        client.fingerprinting = kept
