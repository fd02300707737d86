"""The memory engine's own promises, and key-value records that no verb writes: locks, quotas, clones, corrupt ones."""

import pytest

from jfs.errors import Conflict, CorruptRecord
from jfs.meta import schema
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.types import TYPE_FILE, Attr, Dentry, Flock, Plock, Quota, SliceRef


async def plant(engine: MemoryEngine, **values: tuple[bytes, bytes]) -> None:
    """Write raw records, as another client could."""
    async with engine.transaction(write=True) as tx:
        for key, value in values.values():
            tx.kv.set(key, value)


async def test_chosen_commits_lose() -> None:
    engine = MemoryEngine()
    engine.fail_commits(2, 3)
    outcomes = []
    for number in range(1, 5):
        try:
            async with engine.transaction(write=True) as tx:
                tx.put_counter("nextInode", number)
            outcomes.append("committed")
        except Conflict:
            outcomes.append("conflict")
    assert outcomes == ["committed", "conflict", "conflict", "committed"]
    async with engine.transaction(write=False) as tx:
        assert await tx.counter("nextInode") == 4


async def test_reading_transactions_do_not_count_as_commits() -> None:
    engine = MemoryEngine()
    engine.fail_commits(1)
    async with engine.transaction(write=False) as tx:
        await tx.attr(1)
    async with engine.transaction(write=True) as tx:
        await tx.attr(1)
    assert engine.commits == 0


async def test_a_reading_transaction_refuses_writes() -> None:
    async with MemoryEngine().transaction(write=False) as tx:
        with pytest.raises(RuntimeError, match="opened for reading"):
            tx.put_attr(1, Attr(TYPE_FILE))
        with pytest.raises(RuntimeError, match="opened for reading"):
            tx.guard_attr(1)


async def test_writes_of_different_keys_do_not_conflict() -> None:
    engine = MemoryEngine()
    async with engine.transaction(write=True) as slow:
        slow.put_attr(5, Attr(TYPE_FILE))
        async with engine.transaction(write=True) as quick:
            quick.put_attr(6, Attr(TYPE_FILE))
    async with engine.transaction(write=False) as tx:
        assert len(await tx.attrs([5, 6])) == 2


async def test_a_read_without_a_guard_does_not_conflict() -> None:
    """The law promises no more: an operation that forgets a guard must be caught by a test that reorders commits."""
    engine = MemoryEngine()
    async with engine.transaction(write=True) as slow:
        await slow.attr(5)
        slow.put_attr(6, Attr(TYPE_FILE))
        async with engine.transaction(write=True) as quick:
            quick.put_attr(5, Attr(TYPE_FILE))


async def test_guards_leave_no_key_behind() -> None:
    engine = MemoryEngine()
    async with engine.transaction(write=True) as tx:
        tx.guard_names(1)
        tx.guard_name(1, b"n")
        tx.guard_attr(1)
    assert engine.store.keys == []


async def test_versions_that_nobody_can_read_are_forgotten() -> None:
    engine = MemoryEngine()
    for number in range(10):
        async with engine.transaction(write=True) as tx:
            tx.put_counter("nextInode", number)
            tx.put_dentry(1, b"n", Dentry(TYPE_FILE, number))
    assert len(engine.store.versions[schema.counter_key("nextInode")]) == 1
    async with engine.transaction(write=True) as tx:
        tx.delete_dentry(1, b"n")
    assert engine.store.keys == [schema.counter_key("nextInode")]


async def test_versions_that_somebody_reads_are_kept() -> None:
    engine = MemoryEngine()
    async with engine.transaction(write=True) as tx:
        tx.put_counter("nextInode", 1)
    async with engine.transaction(write=False) as reader:
        for number in range(2, 6):
            async with engine.transaction(write=True) as tx:
                tx.put_counter("nextInode", number)
        assert await reader.counter("nextInode") == 1


async def test_the_locks_of_a_session_are_released() -> None:
    engine = MemoryEngine()
    record = schema.PLOCK_RECORD.pack(1, 77, 0, 99)
    mine, other = Flock(5, 1, 2**64 - 1, b"W"), Flock(5, 2, 8, b"R")
    range_mine, range_other = Plock(6, 1, 7, record * 2), Plock(6, 2, 7, record)
    await plant(
        engine,
        shared=(schema.flock_key(5), schema.encode_flocks([mine, other])),
        alone=(schema.flock_key(7), schema.encode_flocks([Flock(7, 1, 3, b"R")])),
        ranges=(schema.plock_key(6), schema.encode_plocks([range_mine, range_other])),
        alone_range=(schema.plock_key(8), schema.encode_plocks([Plock(8, 1, 7, record)])),
    )
    async with engine.transaction(write=True) as tx:
        assert await tx.flocks(1) == [mine, Flock(7, 1, 3, b"R")]
        assert await tx.plocks(1) == [range_mine, Plock(8, 1, 7, record)]
        await tx.release_locks(1)
    async with engine.transaction(write=False) as tx:
        assert await tx.flocks(1) == []
        assert await tx.plocks(1) == []
        assert await tx.flocks(2) == [other]
        assert await tx.plocks(2) == [range_other]
    assert engine.store.keys == [schema.flock_key(5), schema.plock_key(6)]


async def test_quotas_and_clones_being_built() -> None:
    engine = MemoryEngine()
    await plant(
        engine,
        quota=(schema.dir_quota_key(5), schema.encode_quota(Quota(-1, 5, 4096, 1))),
        user=(schema.user_quota_key(5), schema.encode_quota(Quota(1, 2, 3, 4))),
        young=(schema.detached_key(7), schema.encode_be64(200)),
        old=(schema.detached_key(8), schema.encode_be64(100)),
    )
    async with engine.transaction(write=True) as tx:
        assert await tx.dir_quotas() == {5: Quota(-1, 5, 4096, 1)}
        assert await tx.detached(200) == [8]
        tx.delete_dir_quota(5)
        tx.delete_detached(8)
        assert await tx.dir_quotas() == {}
        assert await tx.detached(201) == [7]


async def test_hard_link_counts_are_listed_as_stored() -> None:
    engine = MemoryEngine()
    async with engine.transaction(write=True) as tx:
        await tx.add_parent(5, 1, 2)
        await tx.add_parent(5, 2, 1)
        await tx.add_parent(5, 2, -1)
        assert await tx.all_parents(None, 10) == ([(5, 1, 2), (5, 2, 0)], None)
        assert await tx.parents(5) == {1: 2}


async def test_a_slice_without_a_count_has_one_reference() -> None:
    engine = MemoryEngine()
    async with engine.transaction(write=True) as tx:
        tx.new_slice(SliceRef(5, 6))
        assert await tx.slice_references(SliceRef(5, 6)) == 1
        assert await tx.slice_counts(None, 10) == ([], None)
        await tx.add_slice_references(SliceRef(5, 6), -1)
    assert engine.store.get(schema.slice_key(SliceRef(5, 6)), engine.store.now) == schema.encode_le64(-1)


async def test_a_long_scan_goes_over_several_pages() -> None:
    engine = MemoryEngine()
    async with engine.transaction(write=True) as tx:
        for number in range(2500):
            tx.put_dentry(1, b"%d" % number, Dentry(TYPE_FILE, number))
        tx.put_attr(2, Attr(TYPE_FILE))
    async with engine.transaction(write=False) as tx:
        assert await tx.all_attrs(None, 10) == ([(2, Attr(TYPE_FILE))], None)


@pytest.mark.parametrize("size", [1, 23, 25])
async def test_a_broken_chunk_is_neither_read_nor_appended_to(size: int) -> None:
    engine = MemoryEngine()
    await plant(engine, chunk=(schema.chunk_key(5, 3), bytes(size)))
    async with engine.transaction(write=True) as tx:
        with pytest.raises(CorruptRecord, match="chunk 5 3"):
            await tx.slices(5, 3)
        with pytest.raises(CorruptRecord, match="chunk 5 3"):
            await tx.append_slices(5, 3, [])
