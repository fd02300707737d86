"""Taking names away: what may go, where it goes, and the trash."""

import errno

import pytest

from jfs.meta.client import MetaClient
from jfs.meta.inodes import AttrChange
from jfs.meta.transaction import Engine, Transaction
from jfs.meta.trash import expired_hours, hour_name, hour_of, trash_name
from jfs.meta.types import (
    FLAG_APPEND,
    FLAG_IMMUTABLE,
    ROOT,
    ROOT_INO,
    TRASH_INO,
    TYPE_FILE,
    Attr,
    Cred,
    DeletedFile,
    Dentry,
    Ino,
)
from tests.meta.volumes import START_NS, Clock, append, assert_clean, do, fails, make_file, new_volume

ALICE = Cred(uid=1000, gid=100, check=True)
BOB = Cred(uid=1001, gid=100, check=True)


async def trashed(client: MetaClient) -> dict[bytes, Ino]:
    """What the trash holds, by name, of all hours."""
    return {
        entry.name: entry.dentry.ino
        for hour in await client.readdir(ROOT, TRASH_INO, None, 100)
        for entry in await client.readdir(ROOT, hour.dentry.ino, None, 1000)
    }


async def volume_usage(client: MetaClient) -> tuple[int, int]:
    await client.flush_usage()
    return await do(client.engine, _usage)


async def _usage(tx: Transaction) -> tuple[int, int]:
    return await tx.counter("usedSpace"), await tx.counter("totalInodes")


# -- names and permissions


async def test_what_cannot_be_unlinked(engine: Engine) -> None:
    client = await new_volume(engine)
    await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)
    await fails(errno.EPERM, client.unlink(ROOT, ROOT_INO, b"d"))
    await fails(errno.ENOENT, client.unlink(ROOT, ROOT_INO, b"x"))
    await fails(errno.ENAMETOOLONG, client.unlink(ROOT, ROOT_INO, b"x" * 256))
    ino = (await make_file(client, b"f")).ino
    await fails(errno.ENOTDIR, client.unlink(ROOT, ino, b"x"))
    for flags in (FLAG_IMMUTABLE, FLAG_APPEND):
        await client.setattr(ROOT, ino, AttrChange(flags=flags))
        await fails(errno.EPERM, client.unlink(ROOT, ROOT_INO, b"f"))
        await client.setattr(ROOT, ROOT_INO, AttrChange(flags=flags))
        await client.setattr(ROOT, ino, AttrChange(flags=0))
        await fails(errno.EPERM, client.unlink(ROOT, ROOT_INO, b"f"))
        await client.setattr(ROOT, ROOT_INO, AttrChange(flags=0))
    await assert_clean(client)


async def test_what_cannot_be_rmdired(engine: Engine) -> None:
    client = await new_volume(engine)
    folder = (await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
    await make_file(client, b"f", parent=folder)
    await fails(errno.ENOTEMPTY, client.rmdir(ROOT, ROOT_INO, b"d"))
    await fails(errno.ENOTDIR, client.rmdir(ROOT, folder, b"f"))
    await fails(errno.ENOENT, client.rmdir(ROOT, ROOT_INO, b"x"))
    await fails(errno.EINVAL, client.rmdir(ROOT, folder, b"."))
    await fails(errno.ENOTEMPTY, client.rmdir(ROOT, folder, b".."))
    await fails(errno.EACCES, client.rmdir(ALICE, folder, b"x"))
    await client.unlink(ROOT, folder, b"f")
    await client.setattr(ROOT, folder, AttrChange(flags=FLAG_IMMUTABLE))
    await fails(errno.EPERM, client.rmdir(ROOT, ROOT_INO, b"d"))
    await assert_clean(client)


async def test_the_sticky_bit(engine: Engine) -> None:
    client = await new_volume(engine)
    folder = (await client.mkdir(ROOT, ROOT_INO, b"d", 0o777)).ino
    await client.setattr(ROOT, folder, AttrChange(mode=0o1777))
    for name in (b"1", b"2", b"3"):
        await client.mknod(ALICE, folder, name, 0o100644, 0)
    await client.mkdir(ALICE, folder, b"e", 0o777)
    await fails(errno.EACCES, client.unlink(BOB, folder, b"1"))
    await fails(errno.EACCES, client.rmdir(BOB, folder, b"e"))
    await client.unlink(ALICE, folder, b"1")
    await client.unlink(ROOT, folder, b"2")
    await client.setattr(ROOT, folder, AttrChange(uid=BOB.uid))
    await client.unlink(BOB, folder, b"3")


async def test_a_name_without_an_inode_can_be_removed(engine: Engine) -> None:
    client = await new_volume(engine)

    async def dangle(tx: Transaction) -> None:
        tx.put_dentry(ROOT_INO, b"lost", Dentry(TYPE_FILE, 999))

    await do(engine, dangle)
    removed = await client.unlink(ROOT, ROOT_INO, b"lost")
    assert (removed.ino, removed.attr) == (999, None)
    await fails(errno.ENOENT, client.unlink(ROOT, ROOT_INO, b"lost"))
    await assert_clean(client)


# -- without trash


async def test_a_file_goes_with_its_last_link(engine: Engine) -> None:
    client = await new_volume(engine, trash_days=0)
    before = await volume_usage(client)
    ino = (await make_file(client, b"f")).ino
    await append(client, ino, 0, 0, 5000)
    await client.setxattr(ROOT, ino, b"user.a", b"1", 0)
    await client.link(ROOT, ino, ROOT_INO, b"g")
    removed = await client.unlink(ROOT, ROOT_INO, b"f")
    assert removed.attr is not None
    assert (removed.attr.nlink, removed.deleted, removed.trashed) == (1, None, False)
    assert removed.attr.ctime_ns == (await client.getattr(ROOT_INO)).ctime_ns
    removed = await client.unlink(ROOT, ROOT_INO, b"g")
    assert removed.attr is None
    assert removed.deleted is not None
    assert removed.deleted.length == 5000
    assert await do(engine, lambda tx: tx.deleted_files(1 << 62, 10)) == [removed.deleted]
    assert await do(engine, lambda tx: tx.xattr_names(ino)) == []
    assert await do(engine, lambda tx: tx.parents(ino)) == {}
    assert await volume_usage(client) == before
    await assert_clean(client)


async def test_what_has_no_data_just_goes(engine: Engine) -> None:
    client = await new_volume(engine, trash_days=0)
    before = await volume_usage(client)
    symlink = (await client.symlink(ROOT, ROOT_INO, b"s", b"t")).ino
    await client.mknod(ROOT, ROOT_INO, b"p", 0o010644, 0)
    folder = (await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino

    assert (await client.unlink(ROOT, ROOT_INO, b"s")).deleted is None
    assert (await client.unlink(ROOT, ROOT_INO, b"p")).deleted is None
    assert (await client.rmdir(ROOT, ROOT_INO, b"d")).attr is None
    assert await do(engine, lambda tx: tx.symlink(symlink)) is None
    assert await do(engine, lambda tx: tx.dir_stat(folder)) is None
    assert (await client.getattr(ROOT_INO)).nlink == 2
    assert await volume_usage(client) == before
    await assert_clean(client)


async def test_an_open_file_lives_on_without_a_name(engine: Engine) -> None:
    client = await new_volume(engine, trash_days=0)
    ino = (await client.create(ROOT, ROOT_INO, b"f", 0o644)).ino
    removed = await client.unlink(ROOT, ROOT_INO, b"f")
    assert removed.sustained
    assert removed.deleted is None
    assert (await client.getattr(ino)).nlink == 0
    await append(client, ino, 0, 0, 10)
    assert await do(engine, lambda tx: tx.sustained(client.sid)) == [ino]
    await assert_clean(client)
    await client.close(ino)
    await fails(errno.ENOENT, client.getattr(ino))
    assert [type(item) for item in iter(client.deleted.take, None)] == [DeletedFile]
    await assert_clean(client)


# -- the trash


def test_names_in_the_trash() -> None:
    assert trash_name(1, 22, b"rb") == b"1-22-rb"
    assert trash_name(1, 22, b"x" * 255) == b"1-22-" + b"x" * 250
    assert hour_name(1_795_462_820 * 10**9) == b"2026-11-23-19"
    assert hour_of(b"2026-11-23-19") == 1_795_462_820 // 3600 * 3600
    for odd in (b"", b"x", b"2026-11-23", b"2026-13-01-00", b"\xff"):
        assert hour_of(odd) is None


async def test_a_removed_file_is_in_the_trash(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    await append(client, ino, 0, 0, 5000)
    before = await client.getattr(ino)
    removed = await client.unlink(ROOT, ROOT_INO, b"f")
    assert removed.trashed
    assert removed.attr is not None
    hour = removed.attr.parent
    assert hour == TRASH_INO + 1
    assert await trashed(client) == {b"1-%d-f" % ino: ino}
    after = await client.getattr(ino)
    assert (after.nlink, after.length, after.mtime_ns) == (before.nlink, before.length, before.mtime_ns)
    assert after.ctime_ns > before.ctime_ns
    attr = await client.getattr(hour)
    assert (attr.mode, attr.nlink, attr.parent, attr.uid) == (0o555, 2, TRASH_INO, 0)
    assert await volume_usage(client) == (8192 + 4096, 2), "the hour directory counts, and what is in it still does"
    await assert_clean(client)


async def test_hard_links_in_the_trash(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    await client.link(ROOT, ino, ROOT_INO, b"g")
    assert (await client.unlink(ROOT, ROOT_INO, b"g")).trashed
    attr = await client.getattr(ino)
    assert (attr.nlink, attr.parent) == (2, 0)
    await client.link(ROOT, ino, ROOT_INO, b"g")
    assert not (await client.unlink(ROOT, ROOT_INO, b"g")).trashed, "that entry is in the trash already"
    assert (await client.getattr(ino)).nlink == 2
    assert (await client.unlink(ROOT, ROOT_INO, b"f")).trashed
    assert set(await trashed(client)) == {b"1-%d-f" % ino, b"1-%d-g" % ino}
    await assert_clean(client)


async def test_a_removed_directory_is_in_the_trash(engine: Engine) -> None:
    client = await new_volume(engine)
    folder = (await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
    assert (await client.rmdir(ROOT, ROOT_INO, b"d")).trashed
    assert await trashed(client) == {b"1-%d-d" % folder: folder}
    hour = (await client.getattr(folder)).parent
    assert (await client.getattr(hour)).nlink == 2, "a trash directory's attributes never change"
    await assert_clean(client)
    assert await do(engine, lambda tx: tx.dir_stat(folder)) is not None, "clients may have more to add to it"
    await client.rename(ROOT, hour, b"1-%d-d" % folder, ROOT_INO, b"back", 0)
    assert (await client.getattr(ROOT_INO)).nlink == 3
    await make_file(client, b"x", parent=folder)
    await assert_clean(client)


async def test_long_names_are_cut_in_the_trash(engine: Engine) -> None:
    client = await new_volume(engine)
    for name in (b"x" * 255, b"x" * 254 + b"y"):
        await make_file(client, name)
        await client.unlink(ROOT, ROOT_INO, name)
    assert sorted(map(len, await trashed(client))) == [255, 255]
    await assert_clean(client)


async def test_the_trash_is_to_look_at(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    await make_file(client, b"g")
    hour = (await unlinked(client, b"f")).parent
    name = b"1-%d-f" % ino
    hours = [entry.name for entry in await client.readdir(ROOT, TRASH_INO, None, 10)]
    for parent in (TRASH_INO, hour):
        await fails(errno.EPERM, make_file(client, b"x", parent=parent))
        await fails(errno.EPERM, client.rename(ROOT, ROOT_INO, b"g", parent, b"x", 0))
    await fails(errno.EPERM, client.rename(ROOT, ROOT_INO, b"g", hour, name, 2))
    await fails(errno.EPERM, client.rename(ROOT, hour, name, ROOT_INO, b"g", 2))
    await fails(errno.EPERM, client.rmdir(ROOT, TRASH_INO, hours[0]))
    await fails(errno.EPERM, client.rename(ROOT, TRASH_INO, hours[0], ROOT_INO, b"x", 0))
    await fails(errno.EPERM, client.setattr(ROOT, ino, AttrChange(mode=0o600)))
    await fails(errno.EPERM, client.setattr(ROOT, hour, AttrChange(mode=0o700)))
    await fails(errno.EPERM, client.setxattr(ROOT, ino, b"user.a", b"1", 0))
    await fails(errno.EPERM, client.truncate(ROOT, ino, 5))
    await fails(errno.EPERM, client.unlink(ALICE, hour, name))
    await fails(errno.EPERM, client.rename(ALICE, hour, name, ROOT_INO, b"x", 0))
    await client.rename(ROOT, hour, name, ROOT_INO, b"back", 0)
    assert (await client.getattr(ino)).parent == ROOT_INO
    await assert_clean(client)


async def unlinked(client: MetaClient, name: bytes) -> Attr:
    removed = await client.unlink(ROOT, ROOT_INO, name)
    assert removed.attr is not None
    return removed.attr


async def test_what_is_removed_from_the_trash_is_gone(engine: Engine) -> None:
    client = await new_volume(engine)
    before = await volume_usage(client)
    ino = (await make_file(client, b"f")).ino
    folder = (await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
    await client.unlink(ROOT, ROOT_INO, b"f")
    await client.rmdir(ROOT, ROOT_INO, b"d")
    hour = (await client.getattr(ino)).parent
    assert (await client.unlink(ROOT, hour, b"1-%d-f" % ino)).deleted is not None
    assert (await client.rmdir(ROOT, hour, b"1-%d-d" % folder)).attr is None
    assert await trashed(client) == {}
    await assert_clean(client)
    hours = await client.readdir(ROOT, TRASH_INO, None, 10)
    await client.remove_trash_hour(hours[0].name)
    assert await client.readdir(ROOT, TRASH_INO, None, 10) == []
    assert await volume_usage(client) == before
    await assert_clean(client)


async def test_hours_go_when_they_are_over_and_empty(engine: Engine) -> None:
    clock = Clock()
    client = await new_volume(engine, clock)
    inos = []
    for name in (b"a", b"b", b"c"):
        inos.append((await make_file(client, name)).ino)
        await client.unlink(ROOT, ROOT_INO, name)
        clock.advance(3600)
    second = START_NS // 10**9 // 3600 * 3600 + 3600
    found = await do(engine, expired_hours, second)
    assert [name for name, _ in found] == [hour_name(START_NS)]
    assert len(await do(engine, expired_hours, second + 1)) == 2
    await fails(errno.ENOTEMPTY, client.remove_trash_hour(found[0][0]))
    await fails(errno.ENOENT, client.remove_trash_hour(b"2000-01-01-00"))
    await client.unlink(ROOT, found[0][1], b"1-%d-a" % inos[0])
    await client.remove_trash_hour(found[0][0])
    await assert_clean(client)


@pytest.mark.parametrize("trash_days", [0, 1])
async def test_the_last_name_of_an_open_file_in_the_trash(engine: Engine, trash_days: int) -> None:
    client = await new_volume(engine, trash_days=trash_days)
    ino = (await client.create(ROOT, ROOT_INO, b"f", 0o644)).ino
    removed = await client.unlink(ROOT, ROOT_INO, b"f")
    if trash_days:
        assert removed.trashed
        removed = await client.unlink(ROOT, (await client.getattr(ino)).parent, b"1-%d-f" % ino)
    assert removed.sustained
    await client.setattr(ROOT, ino, AttrChange(mode=0o600), opened=True)
    await assert_clean(client)
    await client.close(ino)
    await assert_clean(client)
