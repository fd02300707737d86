"""Reads that the client answers without a transaction: which they are, and that they are as fresh as any."""

import errno
import os
import sqlite3
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path

import pytest

from jfs.errors import FsError
from jfs.meta import memo as memo_module
from jfs.meta import run as run_module
from jfs.meta.client import MetaClient
from jfs.meta.inodes import AttrChange
from jfs.meta.memo import MOST_RECORDS, Memo
from jfs.meta.run import run, run_inline
from jfs.meta.sql.sqlite3 import Sqlite3Engine, Sqlite3Transaction
from jfs.meta.sql.wal_index import WalIndex
from jfs.meta.transaction import Engine, Place, Transaction
from jfs.meta.types import ROOT, ROOT_INO, TYPE_DIR, Attr, Entry, Ino, Slice
from tests.meta.volumes import append, connect, fails, make_file, new_volume


class Counting(Sqlite3Engine):
    """Counts the transactions that only read."""

    reads = 0

    def transaction(self, *, write: bool) -> Sqlite3Transaction:
        self.reads += not write
        return super().transaction(write=write)


@pytest.fixture
def engine(tmp_path: Path) -> Generator[Counting, None, None]:
    made = Counting(str(tmp_path / "meta.db"), create=True)
    yield made
    run_inline(made.close())


@pytest.fixture
def other(engine: Counting) -> Generator[sqlite3.Connection, None, None]:
    """Somebody else's connection to the same database."""
    connection = sqlite3.connect(engine.path, isolation_level=None)
    yield connection
    connection.close()


async def chmod(client: MetaClient, ino: Ino, mode: int) -> None:
    await client.setattr(ROOT, ino, AttrChange(mode=mode))


# -- what takes no transaction


async def test_the_same_read_again(engine: Counting) -> None:
    client = await new_volume(engine)
    file = await make_file(client, b"file")
    record = await append(client, file.ino, 0, 0, 4096)
    reads: list[Callable[[], Awaitable[object]]] = [
        lambda: client.lookup(ROOT, ROOT_INO, b"file"),
        lambda: client.getattr(ROOT_INO),
        lambda: client.read_chunk(file.ino, 0),
        lambda: client.read_chunk(file.ino, 1),
        lambda: client.lookup(ROOT, ROOT_INO, b"."),
        lambda: client.lookup(ROOT, ROOT_INO, b".."),
    ]
    first = [await read() for read in reads]
    assert isinstance(first[0], Entry)
    assert first[2:4] == [[record], []]
    count = engine.reads
    assert [await read() for read in reads] == first
    assert engine.reads == count


async def test_a_lookup_is_enough_for_attributes_and_open(engine: Counting) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    entry = await client.lookup(ROOT, ROOT_INO, b"file")
    count = engine.reads
    assert await client.getattr(ino) == entry.attr
    assert await client.open(ROOT, ino, os.O_RDWR) == entry.attr
    assert engine.reads == count
    await client.close(ino)


async def test_open_checks_what_it_knows(engine: Counting) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    await client.setattr(ROOT, ino, AttrChange(flags=1))
    for _ in range(2):
        await fails(errno.EPERM, client.open(ROOT, ino, os.O_WRONLY))
        assert not client.is_open(ino)


async def test_a_name_that_is_not_there(engine: Counting) -> None:
    client = await new_volume(engine)
    await fails(errno.ENOENT, client.lookup(ROOT, ROOT_INO, b"none"))
    count = engine.reads
    raised = []
    for _ in range(2):
        with pytest.raises(FsError) as caught:
            await client.lookup(ROOT, ROOT_INO, b"none")
        assert caught.value.errno == errno.ENOENT
        raised.append(caught.value)
    assert engine.reads == count
    assert raised[0] is not raised[1], "an exception collects what it has gone through"
    ino = (await make_file(client, b"none")).ino
    assert (await client.lookup(ROOT, ROOT_INO, b"none")).ino == ino


async def test_other_failures_are_not_kept(engine: Counting) -> None:
    client = await new_volume(engine)
    for _ in range(2):
        count = engine.reads
        await fails(errno.ENAMETOOLONG, client.lookup(ROOT, ROOT_INO, b"x" * 256))
        await fails(errno.ENOENT, client.getattr(77))
        await fails(errno.ENOENT, client.read_chunk(77, 0))
        assert engine.reads == count + 3


async def test_what_callers_do_to_results_is_theirs(engine: Counting) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    record = await append(client, ino, 0, 0, 4096)
    (await client.getattr(ino)).length = 1
    assert (await client.getattr(ino)).length == 4096
    for _ in range(3):
        looked_up = await client.lookup(ROOT, ROOT_INO, b"file")
        got = await client.getattr(ino)
        opened = await client.open(ROOT, ino, os.O_RDONLY)
        records = await client.read_chunk(ino, 0)
        for attr in (looked_up.attr, got, opened):
            assert attr.length == 4096
            attr.length = 1
        assert records == [record]
        records.clear()
    for _ in range(3):
        await client.close(ino)


async def test_what_is_kept_is_bounded(engine: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo_module, "MOST", 10)
    client = await new_volume(engine)
    inos = [(await make_file(client, b"%d" % number)).ino for number in range(25)]
    for ino in inos:
        await client.lookup(ROOT, ROOT_INO, b"%d" % inos.index(ino))
        await client.read_chunk(ino, 0)
        assert client._memo is not None
        assert 1 <= len(client._memo._known) <= 11
    assert [(await client.getattr(ino)) for ino in inos] == [await client.getattr(ino, fresh=True) for ino in inos]


async def test_long_lists_of_records_are_not_kept(engine: Counting) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    for number in range(MOST_RECORDS + 1):
        await append(client, ino, 0, number * 4096, 4096)
        again = await client.read_chunk(ino, 0)
        count = engine.reads
        assert await client.read_chunk(ino, 0) == again
        assert engine.reads == count + (number == MOST_RECORDS)


# -- own commits


async def test_own_changes_end_only_what_they_change(engine: Counting) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    record = await append(client, ino, 0, 0, 4096)
    known: list[Callable[[], Awaitable[object]]] = [
        lambda: client.lookup(ROOT, ROOT_INO, b"file"),
        lambda: client.getattr(ino),
        lambda: client.read_chunk(ino, 0),
        lambda: client.read_chunk(ino, 1),
    ]
    first = [await read() for read in known]
    for number in range(20):
        made = await make_file(client, b"other %d" % number)
        await append(client, made.ino, 0, 0, 4096)
        await chmod(client, made.ino, 0o600 + number)
        await client.rename(ROOT, ROOT_INO, b"other %d" % number, ROOT_INO, b"moved", 0)
        count = engine.reads
        assert [await read() for read in known] == first
        assert engine.reads == count
    await append(client, ino, 0, 4096, 4096)
    records = await client.read_chunk(ino, 0)
    assert records[0] == record
    assert len(records) == 2
    assert engine.reads == count + 1


async def test_a_file_that_is_gone_has_no_chunks(engine: Counting) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    assert await client.read_chunk(ino, 3) == []
    await client.unlink(ROOT, ROOT_INO, b"file", skip_trash=True)
    await fails(errno.ENOENT, client.read_chunk(ino, 3))


async def test_what_is_above_a_directory_that_moves(engine: Counting) -> None:
    client = await new_volume(engine)
    first, second, moving = [
        (await client.mkdir(ROOT, ROOT_INO, name, 0o755)).ino for name in (b"first", b"second", b"moving")
    ]
    for target in (first, second, first):
        source = (await client.lookup(ROOT, moving, b"..")).ino
        assert await client.lookup(ROOT, moving, b".") == Entry(moving, await client.getattr(moving))
        await client.rename(ROOT, source, b"moving", target, b"moving", 0)
        await client.getattr(source)
        assert (await client.lookup(ROOT, moving, b"..")).ino == target


@pytest.mark.parametrize("moment", ["in the transaction", "behind its commit", "with a checkpoint"])
async def test_the_commit_of_another_beside_ones_own(
    engine: Counting, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Nothing outlives it, however close the two are."""
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    unrelated = (await make_file(client, b"unrelated")).ino
    index = engine.index
    assert index is not None
    real = index.committed

    def change(mode: int) -> None:
        other.execute("UPDATE jfs_node SET mode=? WHERE inode=?", (mode, ino))
        if moment == "with a checkpoint":
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            other.execute("UPDATE jfs_node SET mode=mode WHERE inode=?", (ino,))

    for mode in range(0o600, 0o620):

        def committed(before: bytes, changed: list[Place], mode: int = mode) -> None:
            change(mode)
            real(before, changed)

        await client.getattr(ino)
        with monkeypatch.context() as patch:
            if moment == "in the transaction":
                # the lock is taken: it comes right before
                change(mode)
            else:
                patch.setattr(WalIndex, "committed", lambda _, before, changed, do=committed: do(before, changed))
            await chmod(client, unrelated, mode)
        assert (await client.getattr(ino)).mode == mode


# -- freshness


async def test_own_changes_are_seen(engine: Counting) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    second = await connect(engine)
    for mode in range(0o600, 0o640):
        await chmod(client, ino, mode)
        for reader in (client, second):
            assert (await reader.getattr(ino)).mode == mode
            assert (await reader.lookup(ROOT, ROOT_INO, b"file")).attr.mode == mode
    await client.rename(ROOT, ROOT_INO, b"file", ROOT_INO, b"moved", 0)
    for reader in (client, second):
        await fails(errno.ENOENT, reader.lookup(ROOT, ROOT_INO, b"file"))
        assert (await reader.lookup(ROOT, ROOT_INO, b"moved")).ino == ino
    await client.unlink(ROOT, ROOT_INO, b"moved", skip_trash=True)
    for reader in (client, second):
        await fails(errno.ENOENT, reader.open(ROOT, ino, os.O_RDONLY))


async def test_changes_of_others_are_seen(engine: Counting, other: sqlite3.Connection) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    for mode in range(0o600, 0o640):
        other.execute("UPDATE jfs_node SET mode=? WHERE inode=?", (mode, ino))
        assert (await client.getattr(ino)).mode == mode
        other.execute("UPDATE jfs_edge SET name=?", (b"name %d" % mode,))
        assert (await client.lookup(ROOT, ROOT_INO, b"name %d" % mode)).ino == ino
        await fails(errno.ENOENT, client.lookup(ROOT, ROOT_INO, b"name %d" % (mode - 1)))
        record = Slice(0, mode, 4096, 0, 4096)
        other.execute("INSERT OR REPLACE INTO jfs_chunk (inode, indx, slices) VALUES (?, 0, ?)", (ino, _bytes(record)))
        assert await client.read_chunk(ino, 0) == [record]


async def test_a_commit_ends_all_that_is_known(engine: Counting, other: sqlite3.Connection) -> None:
    """Whichever read comes first after it."""
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    reads: list[Callable[[], Awaitable[object]]] = [
        lambda: client.getattr(ino),
        lambda: client.lookup(ROOT, ROOT_INO, b"file"),
        lambda: client.read_chunk(ino, 0),
        lambda: client.open(ROOT, ino, os.O_RDONLY),
    ]
    for number, first in enumerate([lambda: client.getattr(ROOT_INO), *reads], 1):
        before = [await read() for read in reads]
        record = _bytes(Slice(0, number, 4096, 0, 4096))
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE jfs_node SET mode=? WHERE inode=?", (number, ino))
        other.execute("INSERT OR REPLACE INTO jfs_chunk (inode, indx, slices) VALUES (?, 0, ?)", (ino, record))
        other.execute("COMMIT")
        await first()
        after = [await read() for read in reads]
        assert not any(was == found for was, found in zip(before, after, strict=True))


def _bytes(record: Slice) -> bytes:
    from jfs.meta.schema import encode_slices

    return encode_slices([record])


@pytest.mark.parametrize("kind", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
async def test_changes_are_seen_across_checkpoints(engine: Counting, other: sqlite3.Connection, kind: str) -> None:
    """The log starts anew, from frame 1 with other salts, while what is known is of its end, or of its middle."""
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    other.execute("PRAGMA wal_autocheckpoint=0")
    for mode in range(0o600, 0o640):
        assert other.execute(f"PRAGMA wal_checkpoint({kind})").fetchone()[0] == 0
        before = await client.getattr(ino)
        assert await client.getattr(ino) == before
        other.execute("UPDATE jfs_node SET mode=? WHERE inode=?", (mode, ino))
        assert (await client.getattr(ino)).mode == mode
        await engine.checkpoint()
        assert (await client.getattr(ino)).mode == mode


async def test_a_writer_that_has_not_committed_changes_nothing(engine: Counting) -> None:
    """Own transactions read what they have written themselves; others, this client's among them, what was before."""
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    await chmod(client, ino, 0o600)
    known = await client.getattr(ino)
    async with engine.transaction(write=True) as tx:
        tx.put_attr(ino, Attr(known.type, 0o777, parent=1))
        count = engine.reads
        assert await client.getattr(ino) == known
        assert engine.reads == count
        assert (await run(engine, _attr, ino, write=False))[0] == known
        assert await client.lookup(ROOT, ROOT_INO, b"file") == Entry(ino, known)
    assert (await client.getattr(ino)).mode == 0o777
    with pytest.raises(FsError):
        async with engine.transaction(write=True) as tx:
            tx.put_attr(ino, Attr(known.type, 0o111, parent=1))
            raise FsError(errno.EIO)
    assert (await client.getattr(ino)).mode == 0o777


async def _attr(tx: Transaction, ino: Ino) -> Attr | None:
    return await tx.attr(ino)


async def test_an_old_snapshot_stays_out(engine: Counting) -> None:
    """A transaction that goes on reads what was; those of the client's reads are their own."""
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    async with engine.transaction(write=False) as old:
        was = await old.attr(ino)
        await chmod(client, ino, 0o711)
        assert await old.attr(ino) == was
        assert (await client.getattr(ino)).mode == 0o711
        assert await old.attr(ino) == was
    assert (await client.getattr(ino)).mode == 0o711


# -- a commit that comes in the middle of a read


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_commit_beside_a_read(
    engine: Counting, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Between the two looks and the transaction: what was read may or may not have it, and is not kept."""
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    modes = iter(range(0o600, 0o700))
    latest = 0

    def commit() -> None:
        nonlocal latest
        latest = next(modes)
        other.execute("UPDATE jfs_node SET mode=? WHERE inode=?", (latest, ino))
        other.execute("UPDATE jfs_edge SET name=?", (b"%d" % latest,))

    async def disturbed(*args: object) -> object:
        if when == "before":
            commit()
        try:
            return await run_module.read(*args)  # type: ignore[arg-type]
        finally:
            if when == "after":
                commit()

    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(memo_module, "read", disturbed)
            commit()
            was = latest
            assert (await client.getattr(ino)).mode == (latest if when == "before" else was)
            assert latest == was + 1
            with pytest.raises(FsError):
                await client.lookup(ROOT, ROOT_INO, b"%d" % (latest + 1 - (when == "before")))
            await client.read_chunk(ino, 0)
        assert (await client.getattr(ino)).mode == latest
        assert (await client.lookup(ROOT, ROOT_INO, b"%d" % latest)).ino == ino


class Scripted:
    """A watch that shows what it is told to."""

    def __init__(self, *shown: bytes) -> None:
        self.followers: list[Callable[[bytes, bytes, list[Place]], None]] = []
        self.shown = list(shown)

    def look(self) -> bytes:
        return self.shown.pop(0) if len(self.shown) > 1 else self.shown[0]

    def settled(self, seen: bytes) -> bool:
        return not seen.startswith(b"?")


async def _reads(engine: Engine, *shown: bytes) -> list[int]:
    """How many transactions each of four reads took."""
    assert isinstance(engine, Counting)
    memo = Memo(engine, Scripted(*shown))
    taken = []
    for _ in range(4):
        count = engine.reads
        assert (await memo.getattr(ROOT_INO)).type == TYPE_DIR
        taken.append(engine.reads - count)
    return taken


async def test_looks_decide(engine: Counting) -> None:
    await new_volume(engine)
    assert await _reads(engine, b"a") == [1, 0, 0, 0]
    assert await _reads(engine, b"a", b"a", b"a", b"b") == [1, 0, 1, 0]
    assert await _reads(engine, b"a", b"b") == [1, 1, 0, 0], "it changed while the first was made"
    assert await _reads(engine, b"?") == [1, 1, 1, 1]
    assert await _reads(engine, b"?", b"a") == [1, 1, 0, 0]
    assert await _reads(engine, b"a", b"?", b"?", b"a") == [1, 1, 1, 0]


async def test_a_read_that_had_to_wait_while_others_went_on(engine: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its look is of before the others' commit and reads: though the engine looks as it did, it is not theirs."""
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    watch = Scripted(b"a")
    memo = Memo(engine, watch)

    async def slow(*args: object) -> object:
        monkeypatch.undo()
        old = await run_module.read(*args)  # type: ignore[arg-type]
        watch.shown = [b"b"]
        await chmod(client, ino, 0o751)
        assert (await memo.getattr(ino)).mode == 0o751
        watch.shown = [b"a"]
        assert (await memo.getattr(ROOT_INO)).type == TYPE_DIR
        return old

    monkeypatch.setattr(memo_module, "read", slow)
    assert (await memo.getattr(ino)).mode != 0o751
    assert (await memo.getattr(ino)).mode == 0o751


# -- where there is nothing to look at


async def test_without_a_watch_each_read_is_a_transaction(engine: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "watch", lambda: None)
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    count = engine.reads
    for _ in range(2):
        await client.lookup(ROOT, ROOT_INO, b"file")
        await client.getattr(ino)
        await client.read_chunk(ino, 0)
        await client.open(ROOT, ino, os.O_RDONLY)
    assert engine.reads == count + 8
    await client.close(ino)
    await client.close(ino)


async def test_nothing_is_known_once_the_engine_is_closed(engine: Counting, other: sqlite3.Connection) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"file")).ino
    assert await client.getattr(ino) == await client.getattr(ino)
    await engine.close()
    other.execute("UPDATE jfs_node SET mode=0 WHERE inode=?", (ino,))
    assert (await client.getattr(ino)).mode == 0
    again = await connect(engine)
    assert (await again.getattr(ino)).mode == 0
    other.execute("UPDATE jfs_node SET mode=1 WHERE inode=?", (ino,))
    assert (await client.getattr(ino)).mode == 1
    assert (await again.getattr(ino)).mode == 1
