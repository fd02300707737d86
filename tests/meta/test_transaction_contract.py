"""The contract of `jfs.meta.transaction` on every engine: each verb, and the isolation law."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from jfs.errors import Conflict
from jfs.meta.transaction import Engine, Transaction
from jfs.meta.types import (
    MAX_FILE_SIZE,
    TRASH_INO,
    TYPE_CHAR,
    TYPE_DIR,
    TYPE_FILE,
    Attr,
    DelayedSlices,
    DeletedFile,
    Dentry,
    DirEntry,
    DirStat,
    Entry,
    Session,
    Slice,
    SliceRef,
)

Operation = Callable[[Transaction], Awaitable[None]]

FILE = Attr(TYPE_FILE, 0o644, 1000, 1001, 10**18 + 1, 10**18 + 2, 10**18 + 3, 1, 5, 0, 1)
ATTRS = [
    FILE,
    Attr(TYPE_DIR, 0o1777, 0, 0, 0, 0, 0, 2, 4096, 0, TRASH_INO, flags=35),
    Attr(TYPE_CHAR, 0o7777, 2**32 - 1, 2**32 - 1, 1, 999, 1001, 2**32 - 1, 0, 0x103, 0),
    Attr(TYPE_FILE, 0, 0, 0, 1_999_999_999, 4_999_000_001, 0, 0, MAX_FILE_SIZE, 0, 1, 0, 7, 8, 3),
    Attr(TYPE_FILE, 0, atime_ns=-1, mtime_ns=-1_500_000_001, ctime_ns=-2_000_000_000, parent=1),
]


async def commit(engine: Engine, *operations: Operation) -> None:
    async with engine.transaction(write=True) as tx:
        for operation in operations:
            await operation(tx)


# -- the isolation law


async def wins(engine: Engine, operation: Operation) -> bool:
    """Whether the operation could be committed."""
    try:
        await commit(engine, operation)
    except Conflict:
        return False
    return True


async def race(engine: Engine, slow: Operation, quick: Operation) -> tuple[bool, bool]:
    """Run `quick` in whole between what `slow` does and its commit; which of them were committed."""
    quick_won = False
    try:
        async with engine.transaction(write=True) as tx:
            await slow(tx)
            quick_won = await wins(engine, quick)
    except Conflict:
        return False, quick_won
    return True, quick_won


async def test_a_transaction_reads_its_own_writes(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        tx.put_attr(5, FILE)
        tx.put_dentry(1, b"b", Dentry(TYPE_FILE, 5))
        assert await tx.attr(5) == FILE
        assert await tx.lookup(1, b"b") == Entry(5, FILE)
        assert [entry.name for entry in await tx.entries(1, None, 10)] == [b"b"]
        tx.delete_dentry(1, b"b")
        assert await tx.entries(1, None, 10) == []
        assert await tx.add_counter("nextInode", 3) == 3
        assert await tx.counter("nextInode") == 3


async def test_a_transaction_whose_body_raises_changes_nothing(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError):
        async with engine.transaction(write=True) as tx:
            tx.put_attr(5, FILE)
            raise ZeroDivisionError
    async with engine.transaction(write=False) as tx:
        assert await tx.attr(5) is None


async def test_a_transaction_reads_one_snapshot(engine: Engine) -> None:
    async def before(tx: Transaction) -> None:
        tx.put_attr(5, FILE)
        tx.put_dentry(1, b"old", Dentry(TYPE_FILE, 5))

    async def after(tx: Transaction) -> None:
        tx.delete_attr(5)
        tx.delete_dentry(1, b"old")
        tx.put_dentry(1, b"new", Dentry(TYPE_FILE, 6))

    await commit(engine, before)
    async with engine.transaction(write=False) as reader:
        assert await reader.attr(5) == FILE
        assert [name for name, _ in await reader.dentries(1, None, 10)] == [b"old"]
        await commit(engine, after)
        assert await reader.attr(5) == FILE
        assert [name for name, _ in await reader.dentries(1, None, 10)] == [b"old"]
    async with engine.transaction(write=False) as reader:
        assert await reader.attr(5) is None
        assert [name for name, _ in await reader.dentries(1, None, 10)] == [b"new"]


async def test_what_was_read_before_a_change_is_not_mixed_with_what_comes_after(engine: Engine) -> None:
    """An engine may have read the first key without a snapshot: then it cannot go on."""
    async with engine.transaction(write=True) as tx:
        tx.put_attr(5, FILE)
        tx.put_dentry(1, b"old", Dentry(TYPE_FILE, 5))
    try:
        async with engine.transaction(write=False) as reader:
            assert await reader.attr(5) == FILE
            async with engine.transaction(write=True) as tx:
                tx.delete_attr(5)
                tx.delete_dentry(1, b"old")
            found = await reader.dentry(1, b"old")
    except Conflict:
        return
    assert found == Dentry(TYPE_FILE, 5)


async def test_no_update_is_lost(engine: Engine) -> None:
    async def increment(tx: Transaction) -> None:
        await tx.add_counter("nextInode", 1)

    assert sum(await race(engine, increment, increment)) == 1
    async with engine.transaction(write=False) as tx:
        assert await tx.counter("nextInode") == 1


async def test_of_two_that_add_one_name_one_wins(engine: Engine) -> None:
    def add(ino: int) -> Operation:
        async def operation(tx: Transaction) -> None:
            assert await tx.dentry(1, b"n") is None
            tx.put_dentry(1, b"n", Dentry(TYPE_FILE, ino))

        return operation

    slow, quick = await race(engine, add(5), add(6))
    assert slow != quick
    async with engine.transaction(write=False) as tx:
        assert await tx.dentry(1, b"n") == Dentry(TYPE_FILE, 5 if slow else 6)


async def create(tx: Transaction) -> None:
    """Add a name without writing the directory's attr."""
    assert await tx.attr(2) is not None
    tx.guard_attr(2)
    tx.guard_name(2, b"n")
    tx.put_dentry(2, b"n", Dentry(TYPE_FILE, 5))


async def remove_directory(tx: Transaction) -> None:
    assert await tx.dentries(2, None, 1) == []
    tx.guard_names(2)
    tx.delete_attr(2)


async def touch(tx: Transaction) -> None:
    tx.put_attr(2, FILE)


async def guard_names(tx: Transaction) -> None:
    """What a removal does that leaves the attr alone (it goes to the trash)."""
    assert await tx.dentries(2, None, 1) == []
    tx.guard_names(2)
    tx.put_dentry(3, b"moved", Dentry(TYPE_DIR, 2))


async def guard_name(tx: Transaction) -> None:
    tx.guard_name(2, b"n")
    tx.put_dentry(2, b"n", Dentry(TYPE_FILE, 5))


@pytest.mark.parametrize(
    ("slow", "quick"),
    [
        (create, touch),
        (create, remove_directory),
        (remove_directory, create),
        (guard_name, guard_names),
        (guard_names, guard_name),
    ],
)
async def test_a_guard_turns_a_read_into_a_conflict(engine: Engine, slow: Operation, quick: Operation) -> None:
    await commit(engine, touch)
    assert sum(await race(engine, slow, quick)) == 1
    async with engine.transaction(write=False) as tx:
        assert await tx.attr(2) is not None or await tx.dentries(2, None, 1) == []


async def test_a_conflict_changes_nothing(engine: Engine) -> None:
    async def slow(tx: Transaction) -> None:
        tx.put_attr(7, FILE)
        await tx.add_counter("nextInode", 1)

    async def quick(tx: Transaction) -> None:
        tx.put_attr(8, FILE)
        await tx.add_counter("nextInode", 1)

    slow_won, quick_won = await race(engine, slow, quick)
    async with engine.transaction(write=False) as tx:
        assert (await tx.attr(7) is not None, await tx.attr(8) is not None) == (slow_won, quick_won)
    assert await wins(engine, slow), "what lost a race may simply run again"


async def test_readers_never_conflict_with_a_writer(engine: Engine) -> None:
    async with engine.transaction(write=True) as writer:
        writer.put_attr(5, FILE)
        async with engine.transaction(write=False) as reader:
            assert await reader.attr(5) is None


async def test_charges_are_summed_and_stored_nowhere(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        tx.charge(4096, 1)
        tx.charge(-8192, 1)
        tx.charge_dir(1, 5, 4096, 1)
        tx.charge_dir(1, -2, 0, 0)
        tx.charge_dir(2, 1, 0, 0)
    assert (tx.charges.space, tx.charges.inodes) == (-4096, 2)
    assert tx.charges.dirs == {1: (3, 4096, 1), 2: (1, 0, 0)}
    async with engine.transaction(write=False) as tx:
        assert await tx.counter("usedSpace") == 0
        assert await tx.dir_stat(1) is None


async def test_the_engine_can_be_made_durable(engine: Engine) -> None:
    await commit(engine, touch)
    await engine.sync()
    assert engine.wants_checkpoint() is False
    await engine.checkpoint()
    await engine.prepare()
    async with engine.transaction(write=False) as tx:
        assert await tx.attr(2) == FILE


# -- inodes


@pytest.mark.parametrize("attr", ATTRS)
async def test_attrs_come_back_as_put(engine: Engine, attr: Attr) -> None:
    async def put(tx: Transaction) -> None:
        tx.put_attr(TRASH_INO + 5, attr)

    await commit(engine, put)
    async with engine.transaction(write=False) as tx:
        assert await tx.attr(TRASH_INO + 5) == attr


async def test_attrs_are_the_callers_own(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        mine = Attr(TYPE_FILE, length=1)
        tx.put_attr(5, mine)
        mine.length = 2
        read = await tx.attr(5)
        assert read is not None
        assert read.length == 1
        read.length = 3
        assert (await tx.attrs([5]))[5].length == 1


async def test_attrs_of_many(engine: Engine) -> None:
    async def put(tx: Transaction) -> None:
        for ino in range(10, 1510):
            tx.put_attr(ino, Attr(TYPE_FILE, length=ino))

    await commit(engine, put)
    async with engine.transaction(write=False) as tx:
        found = await tx.attrs([*range(1500, 1520), 10])
        assert {ino: attr.length for ino, attr in found.items()} == {ino: ino for ino in (10, *range(1500, 1510))}
        assert len(await tx.attrs(range(2000))) == 1500
        assert await tx.attrs([]) == {}


async def test_a_deleted_attr_is_gone(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        tx.put_attr(5, FILE)
        tx.delete_attr(5)
        tx.delete_attr(6)
        assert await tx.attr(5) is None


# -- names

NAMES = [b"\x01", b" ", b"A", b"a", b"a\xff", b"aa", b"b", b"\xc3\xa9", b"\xff", b"\xff\xff", b"n" * 255]


async def put_names(tx: Transaction) -> None:
    for ino, name in enumerate(NAMES, 10):
        tx.put_dentry(1, name, Dentry(TYPE_FILE, ino))
        tx.put_attr(ino, Attr(TYPE_FILE, length=ino))
    tx.put_dentry(2, b"other", Dentry(TYPE_DIR, 9))
    tx.put_dentry(257, b"other", Dentry(TYPE_DIR, 9))


async def test_names_are_listed_in_byte_order_page_by_page(engine: Engine) -> None:
    await commit(engine, put_names)
    async with engine.transaction(write=False) as tx:
        for limit in (1, 3, 100):
            listed: list[DirEntry] = []
            after = None
            while page := await tx.entries(1, after, limit):
                assert len(page) <= limit
                listed += page
                after = page[-1].name
            assert [entry.name for entry in listed] == sorted(NAMES)
            for entry in listed:
                assert entry.attr == Attr(TYPE_FILE, length=entry.dentry.ino)
        assert [name for name, _ in await tx.dentries(1, b"a", 3)] == [b"aa", b"a\xff", b"b"]
        assert await tx.dentries(3, None, 10) == []


async def test_every_name_is_found(engine: Engine) -> None:
    await commit(engine, put_names)
    async with engine.transaction(write=False) as tx:
        for ino, name in enumerate(NAMES, 10):
            assert await tx.dentry(1, name) == Dentry(TYPE_FILE, ino)
            assert await tx.lookup(1, name) == Entry(ino, Attr(TYPE_FILE, length=ino))
        assert await tx.dentry(1, b"other") is None
        assert await tx.lookup(3, b"a") is None


async def test_a_name_without_an_inode_is_listed_without_attr(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        tx.put_dentry(1, b"dangling", Dentry(TYPE_FILE, 99))
        assert await tx.lookup(1, b"dangling") is None
        assert await tx.dentry(1, b"dangling") == Dentry(TYPE_FILE, 99)
        assert await tx.entries(1, None, 9) == [DirEntry(b"dangling", Dentry(TYPE_FILE, 99), None)]


async def test_a_name_may_be_pointed_elsewhere_and_deleted(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        tx.put_dentry(1, b"n", Dentry(TYPE_FILE, 5))
        tx.put_dentry(1, b"n", Dentry(TYPE_DIR, 6))
        assert await tx.dentries(1, None, 9) == [(b"n", Dentry(TYPE_DIR, 6))]
        tx.delete_dentry(1, b"n")
        tx.delete_dentry(1, b"never was")
        assert await tx.dentries(1, None, 9) == []


async def test_parents_of_a_hard_link(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        for parent, name in ((1, b"a"), (2, b"b"), (2, b"c")):
            tx.put_dentry(parent, name, Dentry(TYPE_FILE, 9))
            await tx.add_parent(9, parent, 1)
        assert await tx.parents(9) == {1: 1, 2: 2}
        tx.delete_dentry(1, b"a")
        await tx.add_parent(9, 1, -1)
        assert await tx.parents(9) == {2: 2}
        tx.delete_dentry(2, b"b")
        tx.delete_dentry(2, b"c")
        await tx.delete_parents(9)
        assert await tx.parents(9) == {}


async def test_symlinks(engine: Engine) -> None:
    target = b"../\xff\x00t" * 500
    async with engine.transaction(write=True) as tx:
        tx.put_symlink(5, target)
        assert await tx.symlink(5) == target
        assert await tx.symlink(6) is None
        tx.delete_symlink(5)
        assert await tx.symlink(5) is None


# -- extended attributes


async def test_xattrs(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        tx.put_xattr(5, b"user.b", b"1")
        tx.put_xattr(5, "user.é".encode(), bytes(65536))
        tx.put_xattr(5, b"user.b", b"2\x00\xff")
        tx.put_xattr(6, b"user.other", b"3")
    async with engine.transaction(write=True) as tx:
        assert await tx.xattr(5, b"user.b") == b"2\x00\xff"
        assert await tx.xattr(5, "user.é".encode()) == bytes(65536)
        assert await tx.xattr(5, b"user.other") is None
        assert sorted(await tx.xattr_names(5)) == [b"user.b", "user.é".encode()]
        tx.delete_xattr(5, b"user.b")
        assert await tx.xattr_names(5) == ["user.é".encode()]
        await tx.delete_xattrs(5)
        assert await tx.xattr_names(5) == []
        assert await tx.xattr_names(6) == [b"user.other"]


# -- chunks and slices


def piece(n: int) -> Slice:
    return Slice(n * 100, n, 100, 0, 100)


async def test_slices_are_appended_in_order(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        assert await tx.slices(5, 0) == []
        assert await tx.append_slices(5, 0, [piece(1)]) == 1
        assert await tx.append_slices(5, 0, [piece(2), Slice(2**26 - 1, 2**63 - 1, 2**32 - 1, 2**31, 1)]) == 3
    async with engine.transaction(write=True) as tx:
        assert await tx.append_slices(5, 0, [Slice(0, 0, 0, 0, 10)]) == 4
        assert await tx.slices(5, 0) == [
            piece(1),
            piece(2),
            Slice(2**26 - 1, 2**63 - 1, 2**32 - 1, 2**31, 1),
            Slice(0, 0, 0, 0, 10),
        ]


async def test_chunks_of_an_inode(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        for index in (300, 2, 0, 2**31 - 1):
            await tx.append_slices(5, index, [piece(index % 1000)])
        await tx.append_slices(6, 1, [piece(9)])
        assert await tx.chunks(5) == [(index, [piece(index % 1000)]) for index in (0, 2, 300, 2**31 - 1)]
        assert await tx.chunk_indexes(5, 0, 300) == [0, 2]
        assert await tx.chunk_indexes(5, 2, 301) == [2, 300]
        assert await tx.chunk_indexes(5, 3, 3) == []
        tx.put_slices(5, 2, [piece(7), piece(8)])
        tx.delete_chunk(5, 0)
        tx.delete_chunk(5, 17)
        assert await tx.slices(5, 0) == []
        assert await tx.chunks(5) == [(2, [piece(7), piece(8)]), (300, [piece(300)]), (2**31 - 1, [piece(647)])]


async def test_a_slice_dies_with_its_last_reference(engine: Engine) -> None:
    ref, kept = SliceRef(77, 4096), SliceRef(78, 5)
    async with engine.transaction(write=True) as tx:
        tx.new_slice(ref)
        tx.new_slice(kept)
        assert await tx.slice_references(ref) == 1
        assert await tx.add_slice_references(ref, 2) == 3
        assert await tx.add_slice_references(kept, 1) == 2
    async with engine.transaction(write=True) as tx:
        assert await tx.slice_counts(None, 100) == ([(ref, 3), (kept, 2)], None)
        assert await tx.add_slice_references(ref, -2) == 1
        assert await tx.dead_slices(10) == []
        assert await tx.add_slice_references(ref, -1) == 0
        assert await tx.slice_references(ref) == 0
        assert await tx.dead_slices(10) == [ref]
        tx.forget_slice(ref)
        assert await tx.dead_slices(10) == []


async def test_dead_slices_are_limited(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        for number in range(1, 8):
            tx.new_slice(SliceRef(number, 1))
            await tx.add_slice_references(SliceRef(number, 1), -1)
        assert len(await tx.dead_slices(3)) == 3


async def test_fingerprints_of_slices(engine: Engine) -> None:
    refs = [SliceRef(1, 7), SliceRef(2, 2**26), SliceRef(2**63 - 1, 2**32 - 1), SliceRef(256, 1)]
    async with engine.transaction(write=True) as tx:
        for ref in refs[:3]:
            tx.put_fingerprint(ref, b"%016d" % (ref.id % 1000))
        tx.put_fingerprinting(b"a kind")  # is no slice's
        assert await tx.fingerprints(refs) == {ref: b"%016d" % (ref.id % 1000) for ref in refs[:3]}
        assert await tx.fingerprints([SliceRef(1, 8)]) == {}
        assert await tx.fingerprints([]) == {}
    async with engine.transaction(write=True) as tx:
        page, cursor = await tx.all_fingerprints(None, 2)
        assert page == refs[:2]
        assert cursor is not None
        assert await tx.all_fingerprints(cursor, 2) == ([refs[2]], None)
        tx.put_fingerprint(refs[0], b"another")
        tx.delete_fingerprint(refs[1])
        tx.delete_fingerprint(refs[3])
        assert await tx.fingerprints(refs) == {refs[0]: b"another", refs[2]: b"%016d" % (refs[2].id % 1000)}


async def test_the_kind_of_fingerprints(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        assert await tx.fingerprinting() is None
        tx.put_fingerprinting(b"one")
        tx.put_fingerprinting(b"two")
        tx.put_settings(b"{}")
        assert await tx.settings() == b"{}"
        assert await tx.fingerprinting() == b"two"
    async with engine.transaction(write=True) as tx:
        tx.put_fingerprinting(None)
        tx.put_fingerprinting(None)
        assert await tx.fingerprinting() is None
        assert await tx.settings() == b"{}"
        assert await tx.all_fingerprints(None, 10) == ([], None)


async def test_delayed_slices(engine: Engine) -> None:
    late = DelayedSlices(30, 300, [SliceRef(7, 70)])
    early = DelayedSlices(40, 100, [SliceRef(2**63 - 1, 2**32 - 1), SliceRef(8, 80)])
    middle = DelayedSlices(20, 200, [SliceRef(1, 10)])
    async with engine.transaction(write=True) as tx:
        for delayed in (late, early, middle):
            tx.put_delayed_slices(delayed)
    async with engine.transaction(write=True) as tx:
        assert await tx.delayed_slices(301, 10) == [early, middle, late]
        assert await tx.delayed_slices(300, 10) == [early, middle]
        assert await tx.delayed_slices(301, 1) == [early]
        tx.delete_delayed_slices(early)
        assert await tx.delayed_slices(301, 10) == [middle, late]


async def test_deleted_files(engine: Engine) -> None:
    files = [DeletedFile(5, MAX_FILE_SIZE, 100), DeletedFile(6, 0, 200), DeletedFile(7, 8, 100)]
    async with engine.transaction(write=True) as tx:
        for deleted in files:
            tx.put_deleted_file(deleted)
    async with engine.transaction(write=True) as tx:
        assert sorted(await tx.deleted_files(201, 10), key=lambda deleted: deleted.ino) == files
        assert sorted(deleted.ino for deleted in await tx.deleted_files(200, 10)) == [5, 7]
        assert len(await tx.deleted_files(201, 2)) == 2
        tx.forget_deleted_file(files[0])
        assert [deleted.ino for deleted in await tx.deleted_files(200, 10)] == [7]


# -- counters and settings


@pytest.mark.parametrize("name", ["nextInode", "usedSpace", "lastCleanupSessions", "nextCleanupSlices"])
async def test_counters(engine: Engine, name: str) -> None:
    async with engine.transaction(write=True) as tx:
        assert await tx.counter(name) == 0
        assert await tx.add_counter(name, 0) == 0
        assert await tx.add_counter(name, 1024) == 1024
        assert await tx.add_counter(name, -2000) == -976
        tx.put_counter(name, 2**62)
    async with engine.transaction(write=True) as tx:
        assert await tx.counter(name) == 2**62
        tx.put_counter(name, 3)
        assert await tx.add_counter(name, 1) == 4


async def test_a_counter_goes_round(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        tx.put_counter("usedSpace", 2**63 - 2)
        assert await tx.add_counter("usedSpace", 2**57) == -(2**63) + 2**57 - 2
    async with engine.transaction(write=True) as tx:
        assert await tx.add_counter("usedSpace", 3 * 2**64 - 2**57) == 2**63 - 2


async def test_settings(engine: Engine) -> None:
    text = '{\n"Name": "vol-é"\n}'.encode()
    async with engine.transaction(write=True) as tx:
        assert await tx.settings() is None
        tx.put_settings(b"{}")
        tx.put_settings(text)
    async with engine.transaction(write=False) as tx:
        assert await tx.settings() == text


# -- sessions


async def test_sessions(engine: Engine) -> None:
    one, two = Session(1, 1000, b'{"HostName":"a"}'), Session(300, 2000, b"{}")
    async with engine.transaction(write=True) as tx:
        tx.put_session(two)
        tx.put_session(one)
        tx.put_session(Session(1, 1060, one.info))
    async with engine.transaction(write=True) as tx:
        assert await tx.session(1) == Session(1, 1060, one.info)
        assert await tx.session(2) is None
        assert await tx.sessions() == [Session(1, 1060, one.info), two]
        tx.delete_session(1)
        tx.delete_session(17)
        assert await tx.sessions() == [two]


async def test_sustained_inodes(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        for sid, ino in ((255, 5), (255, 2**40), (256, 5), (255, 5)):
            tx.put_sustained(sid, ino)
        assert sorted(await tx.sustained(255)) == [5, 2**40]
        tx.delete_sustained(255, 5)
        assert await tx.sustained(255) == [2**40]
        assert await tx.sustained(256) == [5]
        assert await tx.sustained(1) == []


async def test_without_locks_there_is_nothing_to_release(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        assert await tx.flocks(1) == []
        assert await tx.plocks(1) == []
        await tx.release_locks(1)


# -- directory statistics, quotas, clones being built


async def test_dir_stats(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        assert await tx.dir_stat(1) is None
        tx.put_dir_stat(1, DirStat(1, 2, 3))
        tx.put_dir_stat(1, DirStat(-4, 2**50, 6))
        assert await tx.dir_stat(1) == DirStat(-4, 2**50, 6)
        tx.delete_dir_stat(1)
        tx.delete_dir_stat(2)
        assert await tx.dir_stat(1) is None


async def test_deleting_what_is_not_there_is_harmless(engine: Engine) -> None:
    async with engine.transaction(write=True) as tx:
        tx.delete_dir_quota(5)
        tx.delete_detached(5)
        tx.delete_symlink(5)
        tx.delete_xattr(5, b"x")
        assert await tx.dir_quotas() == {}
        assert await tx.detached(2**40) == []


# -- the whole volume


async def everything(read: Callable[[bytes | None, int], Awaitable[tuple[Sequence[Any], bytes | None]]]) -> list[Any]:
    """All pages of a listing, seven rows each."""
    rows, cursor = await read(None, 7)
    found = list(rows)
    while cursor is not None:
        rows, cursor = await read(cursor, 7)
        assert len(rows) <= 7
        found += rows
    return found


async def fill(tx: Transaction) -> None:
    for ino in range(2, 27):
        tx.put_attr(ino, Attr(TYPE_FILE, length=ino))
        tx.put_dentry(ino % 3 + 1, b"n%d" % ino, Dentry(TYPE_FILE, ino))
        await tx.append_slices(ino, ino % 2, [piece(ino)])
        tx.put_dir_stat(ino, DirStat(ino, 1, 2))
        tx.new_slice(SliceRef(ino, 100))
        await tx.add_slice_references(SliceRef(ino, 100), 1)
        tx.put_xattr(ino, b"user.x", b"I")
        tx.put_symlink(ino, b"D")


async def test_all_records_are_seen_page_by_page(engine: Engine) -> None:
    await commit(engine, fill)
    inos = range(2, 27)
    async with engine.transaction(write=False) as tx:
        attrs = await everything(tx.all_attrs)
        assert sorted(attrs, key=lambda row: row[0]) == [(ino, Attr(TYPE_FILE, length=ino)) for ino in inos]
        dentries = await everything(tx.all_dentries)
        assert sorted(dentries, key=lambda row: row[2].ino) == [
            (ino % 3 + 1, b"n%d" % ino, Dentry(TYPE_FILE, ino)) for ino in inos
        ]
        assert sorted(await everything(tx.all_chunks)) == [(ino, ino % 2, [piece(ino)]) for ino in inos]
        stats = await everything(tx.all_dir_stats)
        assert sorted(stats, key=lambda row: row[0]) == [(ino, DirStat(ino, 1, 2)) for ino in inos]
        counts = await everything(tx.slice_counts)
        assert sorted(counts, key=lambda row: row[0].id) == [(SliceRef(ino, 100), 2) for ino in inos]
        assert await everything(tx.all_parents) == []


async def test_an_empty_volume_has_no_pages(engine: Engine) -> None:
    async with engine.transaction(write=False) as tx:
        for read in (tx.all_attrs, tx.all_dentries, tx.all_chunks, tx.all_dir_stats, tx.all_parents, tx.slice_counts):
            assert await read(None, 10) == ([], None)
