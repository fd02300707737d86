"""A mounted volume without a kernel: the Vfs on the memory engine and on a store whose faults are scripted."""

import threading
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from jfs.chunk.memory_cache import BlockCache
from jfs.chunk.options import ChunkOptions
from jfs.chunk.store import BlockStore
from jfs.errors import StoreError
from jfs.meta.client import ClientOptions, MetaClient
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.run import run
from jfs.meta.settings import Settings
from jfs.meta.transaction import Engine
from jfs.meta.types import ROOT, ROOT_INO, Slice
from jfs.meta.volume_format import create_volume
from jfs.object.memory import MemoryStore
from jfs.object.store import Buffer, ObjectStore
from jfs.vfs.handles import Handle
from jfs.vfs.vfs import Vfs, VfsOptions

KIB = 1 << 10
MIB = 1 << 20
BLOCK = 64 * KIB

RDWR = 2
WRONLY = 1
RDONLY = 0


class ScriptedStore(MemoryStore):
    """Fails, hangs and cuts short as told; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.puts = 0
        self.failing: Callable[[int, str], bool] = lambda number, key: False
        self.may_put = threading.Event()
        self.may_put.set()
        self.hanging: Callable[[str], bool] = lambda key: True
        self.short = False
        self.sync_failure: StoreError | None = None

    def put(self, key: str, data: Buffer) -> None:
        self.puts += 1
        number = self.puts
        if self.hanging(key):
            self.may_put.wait()
        if self.failing(number, key):
            raise StoreError(f"put {number} was chosen to fail")
        super().put(key, data)
        self.events.append(f"put {key}")

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        data = super().get(key, offset, length)
        return data[:-1] if self.short else data

    def sync(self, keys: Iterable[str]) -> None:
        self.events.append("sync blocks " + " ".join(sorted(keys)))
        if self.sync_failure is not None:
            raise self.sync_failure

    def sync_all(self) -> None:
        self.events.append("sync all")

    def blocks(self) -> list[str]:
        return [info.key for info in self.list("chunks/")]


class FarEngine(MemoryEngine):
    """As one over a network: changes of one inode take turns, and transactions begin ahead."""

    inline = False


class Mounted:
    """The parts of a mount, and the few calls that tests make over and over."""

    def __init__(self, vfs: Vfs, meta: MetaClient, store: Any) -> None:
        self.vfs = vfs
        self.meta = meta
        self.store = store

    async def create(self, name: bytes, flags: int = RDWR) -> Handle:
        return (await self.vfs.create(ROOT, ROOT_INO, name, 0o644, flags))[1]

    async def open(self, name: bytes, flags: int = RDWR) -> Handle:
        return await self.vfs.open(ROOT, (await self.vfs.lookup(ROOT, ROOT_INO, name)).ino, flags)

    async def write(self, handle: Handle, offset: int, data: bytes) -> None:
        assert await self.vfs.write(handle.fh, offset, data) == len(data)

    async def read(self, handle: Handle, offset: int, size: int) -> bytes:
        return bytes(await self.vfs.read(handle.fh, offset, size))

    async def close(self, handle: Handle) -> None:
        await self.vfs.flush(handle.fh)
        await self.vfs.release(handle.fh)

    async def content(self, name: bytes) -> bytes:
        """The file through a fresh handle."""
        handle = await self.open(name, RDONLY)
        data = await self.read(handle, 0, 1 << 40)
        await self.close(handle)
        return data

    async def records(self, handle: Handle, index: int = 0) -> list[Slice]:
        assert handle.file is not None
        return await self.meta.read_chunk(handle.file.ino, index)


@asynccontextmanager
async def mounted(
    *,
    engine: Engine | None = None,
    store: ObjectStore | None = None,
    options: VfsOptions | None = None,
    cache: BlockCache | None = None,
    chunk: dict[str, Any] | None = None,
    **changes: Any,
) -> AsyncGenerator[Mounted, None]:
    """A mount of a fresh volume; `changes` are settings, `chunk` are ChunkOptions.  At the end everything is flushed and the background ends."""
    engine = engine or MemoryEngine()
    store = store or ScriptedStore()
    settings = Settings.fresh("testvol", bucket="/none/")
    settings.block_size = BLOCK // KIB
    for name, value in changes.items():
        setattr(settings, name, value)
    await engine.prepare()
    await run(engine, create_volume, settings, 1)
    async with mount(engine, store, options, cache, chunk) as mount_:
        yield mount_


@asynccontextmanager
async def mount(
    engine: Engine,
    store: ObjectStore,
    options: VfsOptions | None = None,
    cache: BlockCache | None = None,
    chunk: dict[str, Any] | None = None,
) -> AsyncGenerator[Mounted, None]:
    """A mount of a volume that exists."""
    meta = await MetaClient.connect(engine, ClientOptions())
    await meta.start_session()
    blocks = BlockStore(store, ChunkOptions(block_size=meta.settings.block_size * KIB, **(chunk or {})), cache)
    vfs = Vfs(meta, blocks, options or VfsOptions(buffer_size=16 * MIB))
    async with trio.open_nursery() as nursery:
        await nursery.start(vfs.run)
        await trio.testing.wait_all_tasks_blocked()  # the first ids are drawn, and made durable
        try:
            yield Mounted(vfs, meta, store)
        finally:
            if isinstance(store, ScriptedStore):
                store.may_put.set()
            await vfs.close()
    await blocks.close()


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which every position of a block can be told from its neighbours."""
    unit = b"".join((i * 2654435761 + seed & 0xFFFFFFFF).to_bytes(4, "little") for i in range(1024))
    return (unit * (size // len(unit) + 1))[:size]
