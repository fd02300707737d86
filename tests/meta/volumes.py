"""Small volumes for the tests of operations and of the client."""

import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from jfs.errors import FsError
from jfs.meta.check import Finding, check
from jfs.meta.client import ClientOptions, MetaClient
from jfs.meta.run import run
from jfs.meta.settings import Settings
from jfs.meta.transaction import Engine
from jfs.meta.types import ROOT, ROOT_INO, Entry, Ino, Slice
from jfs.meta.volume_format import create_volume

T = TypeVar("T")

START_NS = 1_800_000_000_000_000_000


class Clock:
    """Time that moves when told to; a microsecond with each look, so that two events are never at one time."""

    def __init__(self) -> None:
        self.ns = START_NS

    def __call__(self) -> int:
        self.ns += 1000
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += int(seconds * 1_000_000_000)


async def format_volume(engine: Engine, **changes: Any) -> Settings:
    settings = Settings.fresh("testvol", bucket="/tmp/none/")
    for name, value in changes.items():
        setattr(settings, name, value)
    await engine.prepare()
    await run(engine, create_volume, settings, START_NS)
    return settings


async def connect(engine: Engine, clock: Clock | None = None, **options: Any) -> MetaClient:
    client = await MetaClient.connect(engine, ClientOptions(**options), now_ns=clock or Clock())
    await client.start_session()
    return client


async def new_volume(engine: Engine, clock: Clock | None = None, **changes: Any) -> MetaClient:
    """A client with a session on a fresh volume; `changes` are settings."""
    await format_volume(engine, **changes)
    return await connect(engine, clock)


async def do(engine: Engine, operation: Callable[..., Awaitable[T]], *args: Any, **named: Any) -> T:
    """Run an operation; its charges are lost."""
    from functools import partial

    result, _ = await run(engine, partial(operation, **named), *args)
    return result


async def make_file(client: MetaClient, name: bytes, *, parent: Ino = ROOT_INO) -> Entry:
    """A file that is closed."""
    return await client.mknod(ROOT, parent, name, 0o100644, 0)


async def append(client: MetaClient, ino: Ino, index: int, pos: int, length: int) -> Slice:
    """A new slice written at `pos` of a chunk."""
    record = Slice(pos, await client.new_slice_id(), length, 0, length)
    await client.write_slice(ino, index, record, client.now_ns())
    return record


async def remove_data(client: MetaClient) -> list[int]:
    """What the cleaner does, without blocks; the ids of the slices that went."""
    gone = []
    while (item := client.deleted.take()) is not None:
        if hasattr(item, "ino"):
            async for ref in client.release_chunks(item):
                gone.append(ref.id)
                await client.forget_slice(ref)
        else:
            gone.append(item.id)
            await client.forget_slice(item)
    return sorted(gone)


async def findings(client: MetaClient) -> list[Finding]:
    """fsck, with the client's own books settled first and its session taken for dead, so that one pass is enough."""
    await client.flush_usage()
    observer = await MetaClient.connect(client.engine, ClientOptions(), now_ns=lambda: client.now_ns() + 10**9 * 10**6)
    return [found async for found in check(observer)]


async def assert_clean(client: MetaClient) -> None:
    found = [finding for finding in await findings(client) if finding.kind != "session"]
    assert found == [], [finding.message for finding in found]


async def fails(expected: int, operation: Awaitable[object]) -> None:
    """The operation raises this errno."""
    with pytest.raises(FsError) as caught:
        await operation
    assert caught.value.errno == expected, f"{caught.value}, not {os.strerror(expected)}"
