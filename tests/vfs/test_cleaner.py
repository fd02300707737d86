"""Background deletion of blocks."""

from pathlib import Path

from jfs.chunk.options import ChunkOptions
from jfs.chunk.store import BlockStore
from jfs.meta.client import ClientOptions, MetaClient
from jfs.meta.engines import open_engine
from jfs.meta.run import run
from jfs.meta.settings import Settings
from jfs.meta.types import SliceRef
from jfs.meta.volume_format import create_volume
from jfs.object.memory import MemoryStore
from jfs.vfs.cleaner import Cleaner
from jfs.vfs.durability import Durability


async def test_a_slice_that_was_queued_twice_is_removed_once(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite3://{tmp_path}/meta.db", create=True)
    await engine.prepare()
    await run(engine, create_volume, Settings.fresh("vol", bucket=str(tmp_path)), 1)
    meta = await MetaClient.connect(engine, ClientOptions(max_deletes=4))
    objects = MemoryStore()
    blocks = BlockStore(objects, ChunkOptions(block_size=1 << 16), None)
    await blocks.put(7, 0, b"seven")
    assert [info.key for info in objects.list("chunks/")] == ["chunks/0/0/7_0_5"]
    cleaner = Cleaner(meta, blocks, Durability(meta, blocks))
    for _ in range(2):
        assert meta.deleted.put(SliceRef(7, 5))
    await cleaner.work_off()
    assert list(objects.list("chunks/")) == []
    assert cleaner.removed == 1
    await blocks.close()
    await engine.close()
