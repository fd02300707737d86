"""Several buckets as one."""

from pathlib import Path

import pytest

from jfs.errors import UserError
from jfs.object.current import Current
from jfs.object.memory import MemoryStore
from jfs.object.shard import Sharded, shard_buckets, shard_of
from jfs.object.stores import StoreOptions, open_store


def test_the_hash_is_the_peers() -> None:
    """Seen: of four shards, the peer put this object into number 1.  The hash is FNV-1a's of its published tests."""
    assert shard_of("vol1/juicefs_uuid", 4) == 1
    assert shard_of("", 1 << 32) == 0x811C9DC5
    assert shard_of("a", 1 << 32) == 0xE40C292C
    assert shard_of("foobar", 1 << 32) == 0xBF9CF968


def test_names() -> None:
    assert shard_buckets("http://h/b-%d", 3) == ["http://h/b-0", "http://h/b-1", "http://h/b-2"]


@pytest.mark.parametrize("pattern", ["b", "b-%d-%d", "b-%s", "b%20-%d"])
def test_bad_patterns(pattern: str) -> None:
    with pytest.raises(UserError, match="must contain one %d"):
        shard_buckets(pattern, 2)


def test_objects_are_spread_and_found() -> None:
    parts = [MemoryStore(str(number)) for number in range(4)]
    store = Sharded(parts)
    keys = sorted(f"v/chunks/0/{number}" for number in range(400))
    for key in keys:
        store.put(key, key.encode())
    assert [info.key for info in store.list()] == keys
    assert [store.get(key) for key in keys] == [key.encode() for key in keys]
    for part in parts:
        assert 50 < len(list(part.list())) < 150
    assert store.describe() == "shard4://mem://0/"


def test_one_shard_is_none(tmp_path: Path) -> None:
    for shards in (0, 1):
        store = open_store("file", f"{tmp_path}/", StoreOptions(shards=shards))
        assert store.describe() == f"file://{tmp_path}/"


def test_a_store_exchanged_in_use() -> None:
    old, new = MemoryStore("old"), MemoryStore("new")
    store = Current(old)
    store.put("k", b"1")
    store.exchange(new)
    store.put("k", b"2")
    assert (old.get("k"), new.get("k"), store.get("k")) == (b"1", b"2", b"2")


def test_options_do_not_show_their_secrets() -> None:
    shown = repr(StoreOptions(access_key="AKID", secret_key="s3cret", session_token="t0ken"))
    assert "AKID" in shown
    assert "s3cret" not in shown
    assert "t0ken" not in shown
