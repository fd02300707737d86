"""Cache folders shared with the real JuiceFS: each finds the blocks that the other put there, in one folder or several."""

import os
from pathlib import Path

import pytest

from jfs.chunk.cache import DiskCache, parse_cache_dirs
from jfs.chunk.layout import parse_name
from jfs.chunk.options import ChunkOptions
from tests.deadline import eventually
from tests.mounts import JFS, PEER, Client, Volume, format_volume

BLOCK_KIB = 64

Files = dict[str, bytes]


@pytest.fixture(params=["cache", "cache-1:cache-2:cache-3", "cache-*"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A value of --cache-dir."""
    if "*" in request.param:
        for number in range(3):
            (tmp_path / f"cache-{number}").mkdir()
    return ":".join(f"{tmp_path}/{name}" for name in request.param.split(":"))


def object_keys(volume: Volume) -> list[str]:
    return [str(path.relative_to(volume.store / volume.name)) for path in volume.objects]


def open_shared(volume: Volume, folders: str) -> DiskCache:
    uuid = (volume.store / volume.name / "juicefs_uuid").read_text()
    return DiskCache(
        ChunkOptions(block_size=BLOCK_KIB << 10, uuid=uuid, cache_dirs=parse_cache_dirs(folders), free_space_ratio=0.0)
    )


def object_bytes(volume: Volume, key: str) -> bytes:
    return (volume.store / volume.name / key).read_bytes()


def flags(folders: str) -> tuple[str, ...]:
    return ("--cache-dir", folders, "--free-space-ratio", "0.01", "--io-retries", "1")


def make_volume(folder: Path, *more: str) -> tuple[Volume, Files]:
    """A volume of the peer with a few files, and what is in them."""
    volume = format_volume(PEER, folder, "vol", "--block-size", str(BLOCK_KIB), "--trash-days", "0", *more)
    files = {
        "big": os.urandom(7_000_000),
        **{f"s{size}": os.urandom(size) for size in (1, 32768, 32769, 65535, 100_000)},
    }
    with volume.mounted(PEER, "--cache-dir", str(folder / "unshared")) as mount:
        for name, data in files.items():
            (mount.path / name).write_bytes(data)
    return volume, files


def read_all(volume: Volume, client: Client, folders: str, files: Files) -> None:
    """Mount and read; return once every block is in a cache folder."""
    keys = object_keys(volume)
    with volume.mounted(client, *flags(folders)) as mount:
        for name, data in files.items():
            assert (mount.path / name).read_bytes() == data
        eventually(lambda: _count(folders) == len(keys), 20, "every block in the cache")


def _count(folders: str) -> int:
    return sum(
        path.is_file() and path.suffix != ".tmp"
        for folder in parse_cache_dirs(folders)
        for path in Path(folder).rglob("raw/chunks/*/*/*")
    )


def test_jfs_reads_what_the_peer_cached(tmp_path: Path, folders: str) -> None:
    volume, files = make_volume(tmp_path)
    read_all(volume, PEER, folders, files)
    cache = open_shared(volume, folders)
    try:
        for key in object_keys(volume):
            name, home = parse_name(key), cache.home(key)
            assert name is not None
            assert home is not None
            assert os.path.exists(home.path(key)), "where the ring says"
            assert cache.get(key, name.size, 0, name.size) == object_bytes(volume, key)
            assert cache.get_now(key, name.size, 0, name.size) == object_bytes(volume, key)
    finally:
        cache.close()


def test_the_peer_reads_what_jfs_cached(tmp_path: Path, folders: str) -> None:
    volume, files = make_volume(tmp_path)
    cache = open_shared(volume, folders)
    for key in object_keys(volume):
        cache.add(key, object_bytes(volume, key))
        cache.wait_written()
    cache.close()
    os.rename(volume.store / volume.name / "chunks", tmp_path / "hidden")
    with volume.mounted(PEER, *flags(folders)) as mount:
        for name, data in files.items():
            assert (mount.path / name).read_bytes() == data


@pytest.mark.parametrize(("first", "second"), [(JFS, PEER), (PEER, JFS)], ids=["jfs-juicefs", "juicefs-jfs"])
def test_a_mount_of_one_warms_a_mount_of_the_other(tmp_path: Path, folders: str, first: Client, second: Client) -> None:
    volume, files = make_volume(tmp_path, "--compress", "lz4")  # so that jfs reads no object past the cache
    read_all(volume, first, folders, files)
    os.rename(volume.store / volume.name / "chunks", tmp_path / "hidden")
    with volume.mounted(second, *flags(folders)) as mount:
        for name, data in files.items():
            assert (mount.path / name).read_bytes() == data
