"""The block store on encrypted objects: whole objects only, nothing that does not authenticate, nothing bad in a cache."""

import re
from pathlib import Path

import pytest

from jfs.chunk.cache import open_cache
from jfs.chunk.layout import block_key
from jfs.chunk.memory_cache import MemoryCache
from jfs.chunk.options import ChunkOptions
from jfs.chunk.store import BlockStore
from jfs.errors import BadObject, StoreError
from jfs.object.encrypt import ALGORITHMS, Encrypted, Sealer
from jfs.object.file import FileStore
from jfs.object.memory import MemoryStore
from jfs.object.retry import Retry
from jfs.object.store import Buffer, ObjectStore
from tests.keys import rsa_key

BLOCK = 64 << 10
DATA = bytes((i * 7 + i // 251) & 255 for i in range(2 * BLOCK + 1234))


class Recording(MemoryStore):
    """Remembers which parts of which objects were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.gets: list[tuple[str, int, int | None]] = []

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.gets.append((key, offset, length))
        return super().get(key, offset, length)


def make(inner: ObjectStore, cache: MemoryCache | None = None, *, number: int = 0, **options: object) -> BlockStore:
    store = Encrypted(inner, Sealer(rsa_key(number), ALGORITHMS[0]))
    return BlockStore(store, ChunkOptions(block_size=BLOCK, encrypted=True, **options), cache)  # type: ignore[arg-type]


async def put(blocks: BlockStore, slice_id: int, data: bytes = DATA) -> None:
    for index in range(-(-len(data) // BLOCK)):
        await blocks.put(slice_id, index, memoryview(data)[index * BLOCK : (index + 1) * BLOCK])


def key_of(slice_id: int, index: int) -> str:
    return block_key(slice_id, index, min(BLOCK, len(DATA) - index * BLOCK))


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", ["file", "mem"])
async def test_every_range_reads_back(tmp_path: Path, compression: str, algorithm: str, kind: str) -> None:
    inner: ObjectStore = FileStore(f"{tmp_path}/") if kind == "file" else MemoryStore()
    options = ChunkOptions(block_size=BLOCK, encrypted=True, compression=compression)
    blocks = BlockStore(Encrypted(inner, Sealer(rsa_key(), algorithm)), options)
    await put(blocks, 77)
    for offset in (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 5, len(DATA) - 1):
        for wanted in (1, 100, BLOCK, BLOCK + 1, len(DATA)):
            length = min(wanted, len(DATA) - offset)
            assert await blocks.read(77, len(DATA), offset, length) == DATA[offset : offset + length]
            now = blocks.read_now(77, len(DATA), offset, length)
            assert now is None or now == DATA[offset : offset + length]
    await blocks.close()


async def test_a_staged_block_costs_one_try_and_the_uploader_is_patient() -> None:
    """As without encryption: it can be cancelled, and its waits end when they should."""
    inner = Recording()
    store = Encrypted(Retry(inner, 1), Sealer(rsa_key(), ALGORITHMS[0]))
    blocks = BlockStore(store, ChunkOptions(block_size=BLOCK, encrypted=True))
    tries = []

    def broken(key: str, data: Buffer) -> None:
        tries.append(key)
        raise StoreError("away")

    put, inner.put = inner.put, broken  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="away"):
        blocks._upload_once(key_of(1, 0), DATA[:BLOCK])
    assert tries == [key_of(1, 0)]
    inner.put = put  # type: ignore[method-assign]
    blocks._upload_once(key_of(1, 0), DATA[:BLOCK])
    assert await blocks.read(1, len(DATA), 0, BLOCK) == DATA[:BLOCK]
    await blocks.close()


async def test_compression_comes_first() -> None:
    """Encrypted bytes do not compress."""
    inner = MemoryStore()
    blocks = make(inner, compression="lz4")
    await put(blocks, 1, b"a" * BLOCK)
    assert inner.head(block_key(1, 0, BLOCK)).size < 2000
    await blocks.close()


async def test_a_file_is_never_read_past_the_decryption(tmp_path: Path) -> None:
    blocks = make(FileStore(f"{tmp_path}/"))
    await put(blocks, 1)
    assert blocks.read_now(1, len(DATA), 0, 100) is None
    assert await blocks.read(1, len(DATA), 0, 100) == DATA[:100]
    await blocks.close()


async def test_an_object_is_fetched_whole_and_once() -> None:
    inner = Recording()
    blocks = make(inner)
    await put(blocks, 1)
    for offset in (BLOCK + 5000, BLOCK + 100, BLOCK + 30000):
        assert await blocks.read(1, len(DATA), offset, 100) == DATA[offset : offset + 100]
    assert inner.gets == [(key_of(1, 1), 0, None)]
    await blocks.close()


def damaged(data: bytes, how: str) -> bytes:
    match how:
        case "flipped":
            return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]
        case "truncated":
            return data[:-100]
        case "empty":
            return b""
        case _:
            return DATA[BLOCK:]


@pytest.mark.logs(r"object chunks/0/0/1_1_65536 is bad: ")
@pytest.mark.parametrize("how", ["flipped", "truncated", "empty", "plain"])
async def test_a_bad_object_is_an_error_and_stays_out_of_the_cache(how: str, caplog: pytest.LogCaptureFixture) -> None:
    inner = MemoryStore()
    cache = MemoryCache(1 << 30)
    blocks = make(inner, cache)
    await put(blocks, 1)
    key = key_of(1, 1)
    good = inner.get(key)
    inner.put(key, damaged(good, how))
    cache.remove(key)
    for _ in range(2):
        with pytest.raises(BadObject, match=f"^{key}: "):
            await blocks.read(1, len(DATA), BLOCK + 10, 10)
    assert not cache.holds(key)
    assert len(re.findall(f"object {key} is bad: ", caplog.text)) == 2
    assert await blocks.read(1, len(DATA), 0, 100) == DATA[:100]
    inner.put(key, good)
    assert await blocks.read(1, len(DATA), BLOCK + 10, 10) == DATA[BLOCK + 10 : BLOCK + 20]
    await blocks.close()


@pytest.mark.logs(r"its key cannot be unwrapped with the volume's RSA key")
async def test_the_wrong_key_reads_nothing() -> None:
    inner = MemoryStore()
    writer = make(inner)
    await put(writer, 1)
    reader = make(inner, number=1)
    with pytest.raises(BadObject):
        await reader.read(1, len(DATA), 0, 10)
    await reader.close()


@pytest.mark.logs(r"is bad: 1234 bytes instead of 65536")
async def test_an_object_of_another_size_in_its_place() -> None:
    """The format does not bind an object to its name, so one of the same size goes unseen; other sizes do not."""
    inner = MemoryStore()
    blocks = make(inner)
    await put(blocks, 1)
    inner.put(key_of(1, 0), inner.get(key_of(1, 2)))
    with pytest.raises(BadObject):
        await blocks.read(1, len(DATA), 0, 10)
    await blocks.close()


async def test_cached_blocks_are_plain_as_the_peers_are(tmp_path: Path) -> None:
    inner = MemoryStore()
    writer = make(inner)
    await put(writer, 1)
    options = ChunkOptions(block_size=BLOCK, encrypted=True, cache_dirs=[str(tmp_path)], uuid="u", free_space_ratio=0.0)
    store = Encrypted(inner, Sealer(rsa_key(), ALGORITHMS[0]))
    cache = open_cache(options)
    assert cache is not None
    blocks = BlockStore(store, options, cache)
    assert await blocks.read(1, len(DATA), 0, 100) == DATA[:100]
    await blocks.close()
    (cached,) = (path for path in tmp_path.rglob("1_0_*") if path.is_file())
    assert cached.read_bytes()[:BLOCK] == DATA[:BLOCK]
