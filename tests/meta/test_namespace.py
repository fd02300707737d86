"""Names: what may be added, what it starts with, and how names are resolved and listed."""

import errno
from functools import partial

import pytest

from jfs.meta.client import MetaClient
from jfs.meta.inodes import AttrChange
from jfs.meta.namespace import mknod
from jfs.meta.transaction import Engine, Transaction
from jfs.meta.types import (
    FLAG_APPEND,
    FLAG_IMMUTABLE,
    FLAG_SKIP_TRASH,
    ROOT,
    ROOT_INO,
    TRASH_INO,
    TYPE_BLOCK,
    TYPE_FIFO,
    TYPE_FILE,
    TYPE_SYMLINK,
    Cred,
    Ino,
)
from jfs.meta.unlink import rmdir
from tests.meta.test_transaction_contract import race
from tests.meta.volumes import START_NS, assert_clean, do, fails, make_file, new_volume

ALICE = Cred(uid=1000, gid=100, umask=0o027, check=True)


async def flag(client: MetaClient, ino: Ino, flags: int) -> None:
    await client.setattr(ROOT, ino, AttrChange(flags=flags))


async def names(client: MetaClient, ino: Ino = ROOT_INO) -> list[bytes]:
    return [entry.name for entry in await client.readdir(ROOT, ino, None, 1000)]


async def test_what_a_new_inode_starts_with(engine: Engine) -> None:
    client = await new_volume(engine)
    entry = await client.mknod(ALICE, ROOT_INO, b"f", 0o106666, 0)
    assert (entry.attr.type, entry.attr.mode) == (TYPE_FILE, 0o6640)
    assert (entry.attr.uid, entry.attr.gid, entry.attr.nlink, entry.attr.parent) == (1000, 100, 1, ROOT_INO)
    assert entry.attr.atime_ns == entry.attr.mtime_ns == entry.attr.ctime_ns
    assert await client.getattr(entry.ino) == entry.attr
    root = await client.getattr(ROOT_INO)
    assert (root.nlink, root.mtime_ns, root.ctime_ns) == (2, entry.attr.ctime_ns, entry.attr.ctime_ns)

    folder = await client.mkdir(ALICE, ROOT_INO, b"d", 0o777)
    assert (folder.attr.mode, folder.attr.nlink, folder.attr.length) == (0o750, 2, 4096)
    assert (await client.getattr(ROOT_INO)).nlink == 3

    symlink = await client.symlink(ALICE, ROOT_INO, b"s", b"t" * 4096)
    assert (symlink.attr.type, symlink.attr.mode, symlink.attr.length) == (TYPE_SYMLINK, 0o777, 4096)
    assert await client.readlink(symlink.ino) == b"t" * 4096

    device = await client.mknod(ROOT, ROOT_INO, b"b", 0o060600, 0x801)
    assert (device.attr.type, device.attr.rdev) == (TYPE_BLOCK, 0x801)
    fifo = await client.mknod(ROOT, ROOT_INO, b"p", 0o010600, 7)
    assert (fifo.attr.type, fifo.attr.rdev) == (TYPE_FIFO, 0)
    await assert_clean(client)


async def test_a_setgid_directory_hands_its_group_down(engine: Engine) -> None:
    client = await new_volume(engine)
    folder = (await client.mkdir(ROOT, ROOT_INO, b"d", 0o777)).ino
    await client.setattr(ROOT, folder, AttrChange(gid=7))
    await client.setattr(ROOT, folder, AttrChange(mode=0o2777))
    entry = await client.mknod(ALICE, folder, b"f", 0o102775, 0)
    assert (entry.attr.gid, entry.attr.mode) == (7, 0o750), "setgid only for members of the group"
    member = Cred(uid=1000, gid=100, groups=(7,), check=True)
    assert (await client.mknod(member, folder, b"g", 0o102775, 0)).attr.mode == 0o2775
    below = await client.mkdir(ALICE, folder, b"s", 0o777)
    assert (below.attr.gid, below.attr.mode) == (7, 0o2750)


async def test_skip_trash_is_handed_down(engine: Engine) -> None:
    client = await new_volume(engine)
    folder = (await client.mkdir(ROOT, ROOT_INO, b"d", 0o777)).ino
    await flag(client, folder, FLAG_SKIP_TRASH)
    entry = await make_file(client, b"f", parent=folder)
    assert entry.attr.flags == FLAG_SKIP_TRASH
    assert not (await client.unlink(ROOT, folder, b"f")).trashed


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"x" * 256, errno.ENAMETOOLONG),
        (b"", errno.EINVAL),
        (b"a/b", errno.EINVAL),
        (b"a\0b", errno.EINVAL),
        (b".", errno.EEXIST),
        (b"..", errno.EEXIST),
        (b"there", errno.EEXIST),
    ],
)
async def test_names_that_cannot_be_added(engine: Engine, name: bytes, code: int) -> None:
    client = await new_volume(engine)
    other = (await make_file(client, b"there")).ino
    root = await client.getattr(ROOT_INO)
    await fails(code, client.mknod(ROOT, ROOT_INO, name, 0o100644, 0))
    await fails(code, client.mkdir(ROOT, ROOT_INO, name, 0o755))
    await fails(code, client.symlink(ROOT, ROOT_INO, name, b"t"))
    await fails(code, client.link(ROOT, other, ROOT_INO, name))
    assert await client.getattr(ROOT_INO) == root
    await assert_clean(client)


async def test_any_other_byte_may_be_in_a_name(engine: Engine) -> None:
    client = await new_volume(engine)
    odd = [bytes(range(1, 47)) + bytes(range(48, 256)), b"\xff" * 255, b"...", b" ", b"\n"]
    for name in odd:
        await make_file(client, name)
    assert await names(client) == sorted(odd)
    assert (await client.lookup(ROOT, ROOT_INO, odd[0])).attr.type == TYPE_FILE


@pytest.mark.parametrize(
    ("target", "code"),
    [(b"t" * 4097, errno.ENAMETOOLONG), (b"", errno.ENOENT), (b"a\0", errno.EINVAL)],
)
async def test_targets_that_a_symlink_cannot_have(engine: Engine, target: bytes, code: int) -> None:
    client = await new_volume(engine)
    await fails(code, client.symlink(ROOT, ROOT_INO, b"s", target))


async def test_directories_that_take_no_names(engine: Engine) -> None:
    client = await new_volume(engine)
    file = (await make_file(client, b"f")).ino
    await fails(errno.ENOTDIR, make_file(client, b"x", parent=file))
    await fails(errno.ENOENT, make_file(client, b"x", parent=999))
    await fails(errno.EPERM, make_file(client, b"x", parent=TRASH_INO))
    folder = (await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
    await fails(errno.EACCES, client.mknod(ALICE, folder, b"x", 0o100644, 0))
    await fails(errno.EACCES, client.link(ALICE, file, folder, b"x"))
    await flag(client, folder, FLAG_IMMUTABLE)
    await fails(errno.EPERM, make_file(client, b"x", parent=folder))
    await flag(client, folder, FLAG_APPEND)
    await make_file(client, b"x", parent=folder)
    await assert_clean(client)


async def test_a_directory_that_was_thrown_away_takes_no_names(engine: Engine) -> None:
    client = await new_volume(engine)
    folder = (await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
    other = await make_file(client, b"f")
    assert (await client.rmdir(ROOT, ROOT_INO, b"d")).trashed
    await fails(errno.ENOENT, make_file(client, b"x", parent=folder))
    await fails(errno.ENOENT, client.link(ROOT, other.ino, folder, b"x"))
    await fails(errno.ENOENT, client.rename(ROOT, ROOT_INO, b"f", folder, b"x", 0))
    await assert_clean(client)


async def test_lookup(engine: Engine) -> None:
    client = await new_volume(engine)
    folder = await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)
    below = await client.mkdir(ROOT, folder.ino, b"e", 0o755)
    assert (await client.lookup(ROOT, folder.ino, b"e")) == below
    assert (await client.lookup(ROOT, below.ino, b".")).ino == below.ino
    assert (await client.lookup(ROOT, below.ino, b"..")).ino == folder.ino
    assert (await client.lookup(ROOT, ROOT_INO, b"..")).ino == ROOT_INO
    await fails(errno.ENOENT, client.lookup(ROOT, folder.ino, b"x"))
    await fails(errno.ENAMETOOLONG, client.lookup(ROOT, folder.ino, b"x" * 256))
    file = await make_file(client, b"f")
    await fails(errno.ENOTDIR, client.lookup(ROOT, file.ino, b".."))
    await fails(errno.EACCES, client.lookup(Cred(uid=5, gid=5, check=True), await private(client), b"x"))


async def private(client: MetaClient) -> Ino:
    return (await client.mkdir(ROOT, ROOT_INO, b"private", 0o700)).ino


async def test_readdir_pages(engine: Engine) -> None:
    client = await new_volume(engine)
    folder = (await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
    made = [b"%03d" % number for number in range(25)]
    for name in reversed(made):
        await make_file(client, name, parent=folder)
    listed: list[bytes] = []
    after = None
    while page := await client.readdir(ROOT, folder, after, 10):
        assert all(entry.attr is not None and entry.attr.parent == folder for entry in page)
        listed += [entry.name for entry in page]
        after = page[-1].name
    assert listed == made
    await fails(errno.ENOTDIR, client.readdir(ROOT, (await make_file(client, b"f")).ino, None, 10))
    await fails(errno.ENOENT, client.readdir(ROOT, 999, None, 10))
    await fails(errno.EACCES, client.readdir(ALICE, await private(client), None, 10))


async def test_readlink_is_for_symlinks(engine: Engine) -> None:
    client = await new_volume(engine)
    await fails(errno.EINVAL, client.readlink(ROOT_INO))
    await fails(errno.ENOENT, client.readlink(999))


async def test_hard_links_count_names_and_where_they_are(engine: Engine) -> None:
    client = await new_volume(engine)
    folder = (await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino
    ino = (await make_file(client, b"f")).ino
    linked = await client.link(ROOT, ino, folder, b"g")
    assert (linked.attr.nlink, linked.attr.parent) == (2, 0)
    assert linked.attr.ctime_ns == (await client.getattr(folder)).mtime_ns
    await client.link(ROOT, ino, folder, b"h")

    async def parents(tx: Transaction) -> dict[Ino, int]:
        return {parent: count for parent, count in (await tx.parents(ino)).items() if count}

    assert await do(engine, parents) == {ROOT_INO: 1, folder: 2}
    await client.unlink(ROOT, folder, b"g", skip_trash=True)
    await client.unlink(ROOT, ROOT_INO, b"f", skip_trash=True)
    last = await client.getattr(ino)
    assert (last.nlink, last.parent) == (1, 0), "the parent of a file that had several stays open"
    assert await do(engine, parents) == {folder: 1}
    await client.rename(ROOT, folder, b"h", ROOT_INO, b"h", 0)
    assert await do(engine, parents) == {ROOT_INO: 1}
    await assert_clean(client)


async def test_what_cannot_be_linked(engine: Engine) -> None:
    client = await new_volume(engine)
    await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)
    folder = (await client.lookup(ROOT, ROOT_INO, b"d")).ino
    await fails(errno.EPERM, client.link(ROOT, folder, ROOT_INO, b"x"))
    await fails(errno.ENOENT, client.link(ROOT, 999, ROOT_INO, b"x"))
    for flags in (FLAG_IMMUTABLE, FLAG_APPEND):
        ino = (await make_file(client, b"%d" % flags)).ino
        await flag(client, ino, flags)
        await fails(errno.EPERM, client.link(ROOT, ino, ROOT_INO, b"x"))
    thrown = (await make_file(client, b"thrown")).ino
    await client.unlink(ROOT, ROOT_INO, b"thrown")
    await fails(errno.EPERM, client.link(ROOT, thrown, ROOT_INO, b"x"))
    nameless = (await client.create(ROOT, ROOT_INO, b"open", 0o644)).ino
    await client.unlink(ROOT, ROOT_INO, b"open", skip_trash=True)
    await fails(errno.ENOENT, client.link(ROOT, nameless, ROOT_INO, b"x"))
    await client.close(nameless)
    await assert_clean(client)


async def test_a_directory_changed_a_moment_ago_may_keep_its_times(engine: Engine) -> None:
    client = await new_volume(engine)
    create = partial(mknod, skip_mtime_ns=100)
    root = await client.getattr(ROOT_INO)
    first = root.mtime_ns + 100
    await do(engine, create, ROOT, ROOT_INO, b"a", 50, TYPE_FILE, 0o644, 0, first)
    await do(engine, create, ROOT, ROOT_INO, b"b", 51, TYPE_FILE, 0o644, 0, first + 99)
    assert (await client.getattr(ROOT_INO)).mtime_ns == first
    await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)
    assert (await client.getattr(ROOT_INO)).nlink == 3, "a new subdirectory always shows"


@pytest.mark.parametrize("removed_first", [False, True])
@pytest.mark.parametrize("skip_mtime_ns", [0, 10**19])
async def test_no_name_appears_in_a_directory_that_is_being_removed(
    engine: Engine, skip_mtime_ns: int, removed_first: bool
) -> None:
    client = await new_volume(engine, trash_days=0)
    folder = (await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino

    async def create(tx: Transaction) -> None:
        args = (ROOT, folder, b"x", 77, TYPE_FILE, 0o644, 0, START_NS * 2)
        await mknod(tx, *args, skip_mtime_ns=skip_mtime_ns)

    async def remove(tx: Transaction) -> None:
        args = (ROOT, ROOT_INO, b"d", None, lambda ino: False, 0, START_NS * 2)
        await rmdir(tx, *args, skip_mtime_ns=skip_mtime_ns)

    slow, quick = (create, remove) if removed_first else (remove, create)
    assert sum(await race(engine, slow, quick)) == 1
    there = await do(engine, lambda tx: tx.attr(folder))
    entries = await do(engine, lambda tx: tx.dentries(folder, None, 10))
    assert (there is None) == (entries == [])
