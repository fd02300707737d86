"""A cache folder shared with the real JuiceFS: each reads the blocks that the other put there."""

import os
from pathlib import Path

from jfs.chunk.cache import DiskCache
from jfs.chunk.layout import parse_name
from jfs.chunk.options import ChunkOptions
from tests.deadline import eventually
from tests.mounts import PEER, Volume, format_volume

BLOCK_KIB = 64


def object_keys(volume: Volume) -> list[str]:
    return [str(path.relative_to(volume.store / volume.name)) for path in volume.objects]


def open_shared(volume: Volume) -> DiskCache:
    uuid = (volume.store / volume.name / "juicefs_uuid").read_text()
    return DiskCache(
        ChunkOptions(
            block_size=BLOCK_KIB << 10, uuid=uuid, cache_dirs=[str(volume.folder / "cache")], free_space_ratio=0.0
        )
    )


def object_bytes(volume: Volume, key: str) -> bytes:
    return (volume.store / volume.name / key).read_bytes()


def make_volume(folder: Path) -> tuple[Volume, dict[str, bytes]]:
    """A volume of the peer with a few files, and what is in them."""
    volume = format_volume(PEER, folder, "vol", "--block-size", str(BLOCK_KIB), "--trash-days", "0")
    files = {"big": os.urandom(700_000), **{f"s{size}": os.urandom(size) for size in (1, 32768, 32769, 65535, 100_000)}}
    with volume.mounted(PEER, "--free-space-ratio", "0.01") as mount:
        for name, data in files.items():
            (mount.path / name).write_bytes(data)
    return volume, files


def test_jfs_reads_what_the_peer_cached(tmp_path: Path) -> None:
    volume, files = make_volume(tmp_path)
    cached = tmp_path / "cache"
    with volume.mounted(PEER, "--free-space-ratio", "0.01") as mount:
        for name, data in files.items():
            assert (mount.path / name).read_bytes() == data
        keys = object_keys(volume)
        eventually(lambda: sum(path.is_file() for path in cached.rglob("raw/chunks/*/*/*")) == len(keys))
    cache = open_shared(volume)
    try:
        for key in keys:
            name = parse_name(key)
            assert name is not None
            assert cache.get(key, name.size, 0, name.size) == object_bytes(volume, key)
            assert cache.get_now(key, name.size, 0, name.size) == object_bytes(volume, key)
    finally:
        cache.close()


def test_the_peer_reads_what_jfs_cached(tmp_path: Path) -> None:
    volume, files = make_volume(tmp_path)
    for stale in (tmp_path / "cache").rglob("raw/chunks/*/*/*"):
        stale.unlink()
    cache = open_shared(volume)
    for key in object_keys(volume):
        cache.add(key, object_bytes(volume, key))
        cache.wait_written()
    cache.close()
    os.rename(volume.store / volume.name / "chunks", tmp_path / "hidden")
    with volume.mounted(PEER, "--free-space-ratio", "0.01", "--io-retries", "1") as mount:
        for name, data in files.items():
            assert (mount.path / name).read_bytes() == data
