"""The client: sessions of work against one volume, its limits, its books, its open files."""

import errno
import os
import stat
from typing import Any

import pytest
import trio
import trio.testing

from jfs.errors import FsError, StoreError, UserError
from jfs.meta import schema
from jfs.meta.client import SLICES_AT_ONCE, ClientOptions, MetaClient
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.run import run
from jfs.meta.settings import Settings
from jfs.meta.transaction import Engine, Transaction
from jfs.meta.types import ROOT, ROOT_INO, TRASH_INO, DirStat, Ino, Quota, Slice
from jfs.meta.usage import PATIENCE, add_usage, statfs_of
from jfs.meta.volume_format import update_settings
from tests.meta.volumes import (
    Clock,
    append,
    assert_clean,
    connect,
    do,
    format_volume,
    make_file,
    new_volume,
    remove_data,
)


async def sustained(client: MetaClient, sid: int) -> list[Ino]:
    async def op(tx: Transaction) -> list[Ino]:
        return await tx.sustained(sid)

    return await do(client.engine, op)


async def dir_stat(client: MetaClient, ino: Ino) -> DirStat | None:
    async def op(tx: Transaction) -> DirStat | None:
        return await tx.dir_stat(ino)

    return await do(client.engine, op)


async def counters(client: MetaClient) -> tuple[int, int]:
    async def op(tx: Transaction) -> tuple[int, int]:
        return await tx.counter("usedSpace"), await tx.counter("totalInodes")

    return await do(client.engine, op)


def errno_of(caught: "pytest.ExceptionInfo[FsError]") -> int:
    return caught.value.errno


# -- connecting


async def test_an_empty_database_is_refused(engine: Engine) -> None:
    await engine.prepare()
    with pytest.raises(UserError, match="database is not formatted, please run `jfs format"):
        await MetaClient.connect(engine)


async def test_a_volume_with_a_change_log_is_read_only(engine: Engine) -> None:
    await format_volume(engine, change_log=True)
    with pytest.raises(UserError, match="change log"):
        await MetaClient.connect(engine)
    client = await connect(engine, read_only=True)
    assert (await client.getattr(ROOT_INO)).mode == 0o777


async def test_a_volume_with_acl_is_not_mounted_for_writing(engine: Engine) -> None:
    await format_volume(engine, enable_acl=True)
    client = await MetaClient.connect(engine)
    with pytest.raises(UserError, match="ACL"):
        await client.start_session()
    await connect(engine, read_only=True)


async def test_a_read_only_client_writes_nothing(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    await client.close_session()
    reader = await connect(engine, read_only=True, atime_mode="strictatime")
    assert reader.sid == 0
    for call in (
        reader.mkdir(ROOT, ROOT_INO, b"d", 0o755),
        reader.unlink(ROOT, ROOT_INO, b"f"),
        reader.open(ROOT, ino, os.O_WRONLY),
        reader.truncate(ROOT, ino, 1),
    ):
        with pytest.raises(FsError) as caught:
            await call
        assert errno_of(caught) == errno.EROFS
    await reader.open(ROOT, ino, os.O_RDONLY)
    await reader.readdir(ROOT, ROOT_INO, None, 10)
    await reader.close_session()


@pytest.mark.logs("1 directory quotas are set on this volume")
async def test_the_peers_directory_quotas_survive(engine: Engine) -> None:
    client = await new_volume(engine)
    folder = await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)
    quota = Quota(1 << 30, 100, 4096, 1)

    async def set_quota(tx: Any) -> None:
        if hasattr(tx, "kv"):
            tx.kv.set(schema.dir_quota_key(folder.ino), schema.encode_quota(quota))
        else:
            tx._execute(f"INSERT INTO jfs_dir_quota VALUES ({folder.ino}, {1 << 30}, 100, 4096, 1)", ())

    await do(engine, set_quota)
    again = await connect(engine)
    await make_file(again, b"f", parent=folder.ino)
    await again.flush_usage()

    async def quotas(tx: Transaction) -> dict[Ino, Quota]:
        return await tx.dir_quotas()

    assert await do(engine, quotas) == {folder.ino: quota}


# -- files


async def test_create_opens_the_file(engine: Engine) -> None:
    client = await new_volume(engine)
    entry = await client.create(ROOT, ROOT_INO, b"f", 0o100640)
    assert client.is_open(entry.ino)
    assert stat.S_IMODE(entry.attr.mode) == 0o640
    with pytest.raises(FsError) as caught:
        await client.create(ROOT, ROOT_INO, b"f", 0o100640)
    assert errno_of(caught) == errno.EEXIST
    await client.close(entry.ino)
    assert not client.is_open(entry.ino)
    await assert_clean(client)


async def test_an_unlinked_open_file_lives_until_its_last_close(engine: Engine) -> None:
    client = await new_volume(engine, trash_days=0)
    entry = await client.create(ROOT, ROOT_INO, b"f", 0o100644)
    ino = entry.ino
    await client.open(ROOT, ino, os.O_RDWR)
    await append(client, ino, 0, 0, 10)
    removed = await client.unlink(ROOT, ROOT_INO, b"f")
    assert removed.sustained
    assert await sustained(client, client.sid) == [ino]
    await append(client, ino, 0, 10, 10)
    assert (await client.getattr(ino)).length == 20
    await client.close(ino)
    assert len(await client.read_chunk(ino, 0)) == 2
    assert len(client.deleted) == 0
    await client.close(ino)
    assert await sustained(client, client.sid) == []
    assert len(await remove_data(client)) == 2
    await client.flush_usage()
    assert await counters(client) == (0, 0)
    await assert_clean(client)


async def test_rename_over_an_open_file_keeps_it(engine: Engine) -> None:
    client = await new_volume(engine, trash_days=0)
    target = await client.create(ROOT, ROOT_INO, b"f", 0o100644)
    await append(client, target.ino, 0, 0, 10)
    await make_file(client, b"g")
    renamed = await client.rename(ROOT, ROOT_INO, b"g", ROOT_INO, b"f", 0)
    assert renamed.replaced is not None
    assert renamed.replaced.sustained
    assert len(await client.read_chunk(target.ino, 0)) == 1
    await client.close(target.ino)
    assert len(await remove_data(client)) == 1
    await assert_clean(client)


async def test_the_end_of_a_session_ends_what_only_it_held(engine: Engine) -> None:
    client = await new_volume(engine, trash_days=0)
    entry = await client.create(ROOT, ROOT_INO, b"f", 0o100644)
    await append(client, entry.ino, 0, 0, 10)
    await client.unlink(ROOT, ROOT_INO, b"f")
    sid = client.sid
    await client.close_session()
    assert await sustained(client, sid) == []
    assert len(client.deleted) == 1
    other = await connect(engine)
    assert other.sid == sid + 1
    with pytest.raises(FsError) as caught:
        await other.getattr(entry.ino)
    assert errno_of(caught) == errno.ENOENT
    await assert_clean(other)


async def test_open_waits_for_a_removal_that_found_the_file_closed(engine: Engine) -> None:
    client = await new_volume(engine, trash_days=0)
    ino = (await make_file(client, b"f")).ino
    outcome: list[int] = []

    async def opener() -> None:
        try:
            await client.open(ROOT, ino, os.O_RDONLY)
        except FsError as error:
            outcome.append(error.errno)

    async with trio.open_nursery() as nursery:
        with client.open_files.removal() as removal:
            assert not removal.opened(ino)  # an unlink has decided, and has not committed yet
            nursery.start_soon(opener)
            await trio.testing.wait_all_tasks_blocked()
            assert not client.is_open(ino)
            await client.unlink(ROOT, ROOT_INO, b"f")
    assert outcome == [errno.ENOENT]
    assert not client.is_open(ino)


async def test_open_waits_for_the_end_of_an_inode_without_a_name(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name looked up before its removal leads to an inode that goes with its last close: no handle on that."""
    client = await new_volume(engine, trash_days=0)
    entry = await client.create(ROOT, ROOT_INO, b"f", 0o644)
    await client.unlink(ROOT, ROOT_INO, b"f", skip_trash=True)
    write = client.write
    going, go = trio.Event(), trio.Event()

    async def held_up(*args: Any, **options: Any) -> Any:
        going.set()
        await go.wait()
        return await write(*args, **options)

    monkeypatch.setattr(client, "write", held_up)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.close, entry.ino)
        await going.wait()

        async def refused() -> None:
            with pytest.raises(FsError) as caught:
                await client.open(ROOT, entry.ino, os.O_RDONLY)
            assert caught.value.errno == errno.ENOENT

        nursery.start_soon(refused)
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert not client.is_open(entry.ino)


async def test_hard_links_and_names(engine: Engine) -> None:
    client = await new_volume(engine)
    entry = await make_file(client, b"f")
    linked = await client.link(ROOT, entry.ino, ROOT_INO, b"g")
    assert linked.attr.nlink == 2
    await client.symlink(ROOT, ROOT_INO, b"s", b"target")
    assert await client.readlink((await client.lookup(ROOT, ROOT_INO, b"s")).ino) == b"target"
    page = await client.readdir(ROOT, ROOT_INO, None, 100)
    assert [row.name for row in page] == [b"f", b"g", b"s"]
    await client.unlink(ROOT, ROOT_INO, b"f")
    await client.rename(ROOT, ROOT_INO, b"g", ROOT_INO, b"h", 0)
    assert (await client.lookup(ROOT, ROOT_INO, b"h")).ino == entry.ino
    await assert_clean(client)


async def test_extended_attributes(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    await client.setxattr(ROOT, ino, b"user.a", b"1", 0)
    assert await client.getxattr(ino, b"user.a") == b"1"
    assert await client.listxattr(ino) == [b"user.a"]
    await client.removexattr(ROOT, ino, b"user.a")
    assert await client.listxattr(ino) == []


async def test_trash_hours_follow_the_clock(engine: Engine) -> None:
    clock = Clock()
    client = await new_volume(engine, clock)
    for name in (b"a", b"b"):
        await make_file(client, name)
        await client.unlink(ROOT, ROOT_INO, name)
        clock.advance(3600)
    hours = await client.readdir(ROOT, TRASH_INO, None, 10)
    assert len(hours) == 2
    await assert_clean(client)


async def test_access_times_by_mode(engine: Engine) -> None:
    clock = Clock()
    client = await new_volume(engine, clock)
    ino = (await make_file(client, b"f")).ino
    start = (await client.getattr(ino)).atime_ns
    clock.advance(25 * 3600)
    await client.open(ROOT, ino, os.O_RDONLY)
    assert (await client.getattr(ino)).atime_ns == start
    relative = await connect(engine, clock, atime_mode="relatime")
    await relative.open(ROOT, ino, os.O_RDONLY)
    assert (await client.getattr(ino)).atime_ns > start


async def test_a_directory_of_the_volume_as_root(engine: Engine) -> None:
    await format_volume(engine)
    client = await connect(engine, subdir="a/b")
    assert client.root != ROOT_INO
    folder = await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)
    entry = await make_file(client, b"f")
    assert (await client.lookup(ROOT, ROOT_INO, b"f")).ino == entry.ino
    assert (await client.lookup(ROOT, ROOT_INO, b"..")).ino == ROOT_INO
    assert (await client.lookup(ROOT, folder.ino, b"..")).ino == ROOT_INO
    await client.rename(ROOT, ROOT_INO, b"f", folder.ino, b"f", 0)
    whole = await connect(engine)
    below = await whole.lookup(ROOT, (await whole.lookup(ROOT, ROOT_INO, b"a")).ino, b"b")
    assert below.ino == client.root
    assert below.attr.mode == 0o777
    again = await connect(engine, subdir="/a/b/")
    assert again.root == client.root
    with pytest.raises(UserError, match="subdir x"):
        await connect(engine, subdir="x", read_only=True)
    await client.flush_usage()
    await assert_clean(whole)


# -- limits and books


async def test_capacity_is_never_overshot(engine: Engine) -> None:
    client = await new_volume(engine, capacity=40960)
    ino = (await make_file(client, b"f")).ino
    await append(client, ino, 0, 0, 40960)
    with pytest.raises(FsError) as caught:
        await append(client, ino, 0, 40960, 1)
    assert errno_of(caught) == errno.ENOSPC
    for call in (make_file(client, b"g"), client.truncate(ROOT, ino, 40961)):
        with pytest.raises(FsError) as caught:
            await call
        assert errno_of(caught) == errno.ENOSPC
    assert len(await client.read_chunk(ino, 0)) == 1
    await client.close_session()
    fresh = await connect(engine)
    with pytest.raises(FsError) as caught:
        await make_file(fresh, b"g")
    assert errno_of(caught) == errno.ENOSPC
    await fresh.truncate(ROOT, ino, 4096)
    await make_file(fresh, b"g")
    assert (fresh.usage.reserved_space, fresh.usage.reserved_inodes) == (0, 0)


async def test_the_number_of_inodes_is_limited(engine: Engine) -> None:
    client = await new_volume(engine, inodes=2)
    await make_file(client, b"a")
    await client.flush_usage()
    await make_file(client, b"b")
    with pytest.raises(FsError) as caught:
        await client.mkdir(ROOT, ROOT_INO, b"c", 0o755)
    assert errno_of(caught) == errno.ENOSPC
    await client.link(ROOT, (await client.lookup(ROOT, ROOT_INO, b"a")).ino, ROOT_INO, b"l")
    assert (await client.statfs()).available_inodes == 0


async def test_books_are_flushed_and_recounted(engine: Engine) -> None:
    client = await new_volume(engine)
    folder = await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)
    ino = (await make_file(client, b"f", parent=folder.ino)).ino
    await append(client, ino, 0, 0, 5000)
    await client.flush_usage()
    assert await counters(client) == (4096 + 8192, 2)
    assert await dir_stat(client, folder.ino) == DirStat(5000, 8192, 1)
    assert await dir_stat(client, ROOT_INO) == DirStat(0, 4096, 1)

    async def spoil(tx: Transaction) -> None:
        tx.put_dir_stat(folder.ino, DirStat(0, 0, 0))
        tx.delete_dir_stat(ROOT_INO)

    await do(engine, spoil)
    await client.truncate(ROOT, ino, 10)
    await make_file(client, b"g")
    await client.flush_usage()
    assert await dir_stat(client, ROOT_INO) == DirStat(0, 8192, 2)  # was missing: counted
    assert await dir_stat(client, folder.ino) == DirStat(0, 0, 0)  # came out negative: others may have more to add
    for _ in range(PATIENCE):
        await client.flush_usage()
    assert await dir_stat(client, folder.ino) == DirStat(10, 4096, 1)  # none had: counted
    await assert_clean(client)


@pytest.mark.parametrize("closing", [False, True])
async def test_what_clients_book_out_of_order_adds_up(engine: Engine, closing: bool) -> None:
    first = await new_volume(engine, trash_days=0)
    second = await connect(engine)
    ino = (await make_file(first, b"f")).ino
    await append(second, ino, 0, 0, 5000)
    await first.unlink(ROOT, ROOT_INO, b"f")
    if closing:
        await first.close_session()
    else:
        await first.flush_usage()
    await second.flush_usage()
    await first.flush_usage()
    assert await dir_stat(second, ROOT_INO) == DirStat(0, 0, 0)
    await assert_clean(second)


async def test_books_of_a_directory_that_is_gone(engine: Engine) -> None:
    client = await new_volume(engine, trash_days=0)
    folder = await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)
    await make_file(client, b"f", parent=folder.ino)
    await client.unlink(ROOT, folder.ino, b"f")
    await client.rmdir(ROOT, ROOT_INO, b"d")
    await client.flush_usage()
    assert await dir_stat(client, folder.ino) is None
    assert await counters(client) == (0, 0)


def test_statfs_numbers() -> None:
    settings = Settings.fresh("vol", bucket="/x/")
    shown = statfs_of(settings, 0, 0)
    assert (shown.total_space, shown.available_space) == (1 << 50, 1 << 50)
    assert (shown.used_inodes, shown.available_inodes) == (0, 10 << 20)
    assert statfs_of(settings, 1 << 50, 0).total_space == 1 << 51
    assert statfs_of(settings, 0, (40 << 20) + 1).available_inodes == 20 << 20
    settings.capacity, settings.inodes = 1 << 30, 100
    shown = statfs_of(settings, 1 << 31, 120)
    assert (shown.total_space, shown.available_space, shown.available_inodes) == (1 << 31, 0, 0)
    shown = statfs_of(settings, -4096, -1)
    assert (shown.total_space, shown.used_space, shown.available_inodes) == (1 << 30, 0, 100)


async def test_ids_are_drawn_in_batches(engine: Engine) -> None:
    client = await new_volume(engine)
    other = await connect(engine)
    first = [await client.new_slice_id() for _ in range(5000)]
    second = [await other.new_slice_id() for _ in range(10)]
    assert first[:3] == [1, 2, 3]
    assert len(set(first + second)) == 5010
    assert (await make_file(client, b"a")).ino == 2
    assert (await make_file(other, b"b")).ino == 1026


# -- settings


async def test_update_settings_keeps_what_data_depends_on(engine: Engine) -> None:
    settings = await format_volume(engine, trash_days=0)
    client = await connect(engine)
    changed = Settings.parse(settings.text())
    changed.capacity = 1 << 30
    changed.trash_days = 2
    await run(engine, update_settings, changed, 5)
    assert (await client.getattr(TRASH_INO)).mode == 0o555
    changed.block_size = 1024
    with pytest.raises(UserError, match="cannot update volume block size from 4096 to 1024"):
        await run(engine, update_settings, changed, 5)


async def test_usage_of_others_arrives(engine: Engine) -> None:
    client = await new_volume(engine)
    await run(engine, add_usage, 1 << 20, 3)
    await client.usage.load(engine)
    assert (await client.statfs()).used_space == 1 << 20
    assert ClientOptions().atime_mode == "noatime"
    assert Slice(0, 0, 0, 0, 0).id == 0


# -- conflicts


async def test_a_lost_race_changes_the_books_once() -> None:
    engine = MemoryEngine()
    client = await new_volume(engine, trash_days=0, capacity=1 << 30)
    for number in range(3):
        engine.fail_commits(1, 2)
        await make_file(client, b"%d" % number)
    ino = (await client.lookup(ROOT, ROOT_INO, b"0")).ino
    engine.fail_commits(1, 2)
    await append(client, ino, 0, 0, 5000)
    engine.fail_commits(1, 2)
    await client.flush_usage()
    assert await counters(client) == (4 * 4096, 3)
    assert len(await client.read_chunk(ino, 0)) == 1
    assert (client.usage.reserved_space, client.usage.reserved_inodes) == (0, 0)
    engine.fail_commits(1)
    await client.unlink(ROOT, ROOT_INO, b"0")
    engine.fail_commits(1, 2)
    assert len(await remove_data(client)) == 1
    await assert_clean(client)


async def test_many_clients_make_names_in_one_directory(engine: Engine) -> None:
    client = await new_volume(engine)
    others = [await connect(engine) for _ in range(3)]

    async def work(worker: MetaClient, number: int) -> None:
        for index in range(20):
            name = b"%d-%d" % (number, index)
            await make_file(worker, name)
            await trio.lowlevel.checkpoint()
            if index % 3 == 0:
                await worker.unlink(ROOT, ROOT_INO, name)
        await worker.flush_usage()

    async with trio.open_nursery() as nursery:
        for number, worker in enumerate([client, *others]):
            nursery.start_soon(work, worker, number)
    assert len(await client.readdir(ROOT, ROOT_INO, None, 1000)) == 4 * 13
    for worker in (*others, client):
        await worker.close_session()
    await assert_clean(client)


async def test_slice_ids_are_durable_before_the_first_is_used(engine: Engine) -> None:
    """Blocks are named after them; a power cut must not have them drawn again."""
    client = await new_volume(engine)
    told: list[int] = []

    async def make_durable() -> None:
        told.append(await client.write(_slice_counter))
        if len(told) == 1:
            raise StoreError("blocks of others were lost")

    client.make_durable = make_durable
    drawn = [await client.new_slice_id() for _ in range(3)]
    assert len(told) == 2
    assert max(drawn) < told[-1]
    drawn += [await client.new_slice_id() for _ in range(SLICES_AT_ONCE)]
    assert len(told) == 3
    assert max(drawn) < told[-1]


async def _slice_counter(tx: Transaction) -> int:
    return await tx.counter("nextChunk")


async def test_a_session_knows_whether_there_were_others(engine: Engine) -> None:
    client = await new_volume(engine)
    assert not client.had_company
    second = await connect(engine)
    assert second.had_company
    await client.close_session()
    await second.close_session()
    third = await connect(engine)
    assert not third.had_company
    await third.close_session()
