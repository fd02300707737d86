"""Rename: over nothing, over something, in exchange; what it refuses; two clients that move directories at once."""

import errno
import itertools
from functools import partial

import pytest

from jfs.errors import CorruptRecord
from jfs.meta.client import MetaClient
from jfs.meta.inodes import AttrChange
from jfs.meta.rename import EXCHANGE, NOREPLACE, WHITEOUT, rename
from jfs.meta.transaction import Engine, Transaction
from jfs.meta.types import FLAG_APPEND, FLAG_IMMUTABLE, ROOT, ROOT_INO, Cred, Ino
from tests.meta.test_transaction_contract import race
from tests.meta.volumes import START_NS, assert_clean, do, fails, make_file, new_volume

ALICE = Cred(uid=1000, gid=100, check=True)


async def make_dir(client: MetaClient, name: bytes, parent: Ino = ROOT_INO) -> Ino:
    return (await client.mkdir(ROOT, parent, name, 0o777)).ino


async def find(client: MetaClient, parent: Ino, name: bytes) -> Ino:
    return (await client.lookup(ROOT, parent, name)).ino


async def test_a_file_moves(engine: Engine) -> None:
    client = await new_volume(engine)
    folder = await make_dir(client, b"d")
    ino = (await make_file(client, b"f")).ino
    before = await client.getattr(ino)
    await client.rename(ROOT, ROOT_INO, b"f", ROOT_INO, b"g", 0)
    renamed = await client.rename(ROOT, ROOT_INO, b"g", folder, b"h", 0)
    assert (renamed.ino, renamed.attr.parent, renamed.replaced) == (ino, folder, None)
    assert renamed.attr.mtime_ns == before.mtime_ns
    assert renamed.attr.ctime_ns > before.ctime_ns
    for changed in (ROOT_INO, folder):
        attr = await client.getattr(changed)
        assert attr.mtime_ns == attr.ctime_ns == renamed.attr.ctime_ns
    await fails(errno.ENOENT, client.lookup(ROOT, ROOT_INO, b"g"))
    assert await find(client, folder, b"h") == ino
    await assert_clean(client)


async def test_a_directory_moves(engine: Engine) -> None:
    client = await new_volume(engine)
    a, b = await make_dir(client, b"a"), await make_dir(client, b"b")
    moving = await make_dir(client, b"m", a)
    await make_file(client, b"f", parent=moving)
    await client.rename(ROOT, a, b"m", b, b"m", 0)
    assert [(await client.getattr(ino)).nlink for ino in (ROOT_INO, a, b, moving)] == [4, 2, 3, 2]
    assert (await client.lookup(ROOT, moving, b"..")).ino == b
    await assert_clean(client)


@pytest.mark.parametrize("trash_days", [0, 1])
@pytest.mark.parametrize("opened", [False, True])
async def test_over_a_file(engine: Engine, trash_days: int, opened: bool) -> None:
    client = await new_volume(engine, trash_days=trash_days)
    ino = (await make_file(client, b"f")).ino
    old = (await make_file(client, b"g")).ino
    if opened:
        await client.open(ROOT, old, 0)
    replaced = (await client.rename(ROOT, ROOT_INO, b"f", ROOT_INO, b"g", 0)).replaced
    assert replaced is not None
    assert replaced.ino == old
    assert replaced.trashed == (trash_days > 0)
    assert replaced.sustained == (trash_days == 0 and opened)
    assert (replaced.deleted is not None) == (trash_days == 0 and not opened)
    assert await find(client, ROOT_INO, b"g") == ino
    await assert_clean(client)
    if opened:
        await client.close(old)
        await assert_clean(client)


@pytest.mark.parametrize("trash_days", [0, 1])
async def test_over_an_empty_directory(engine: Engine, trash_days: int) -> None:
    client = await new_volume(engine, trash_days=trash_days)
    a, b = await make_dir(client, b"a"), await make_dir(client, b"b")
    moving, old = await make_dir(client, b"m", a), await make_dir(client, b"m", b)
    await make_file(client, b"f", parent=moving)
    replaced = (await client.rename(ROOT, a, b"m", b, b"m", 0)).replaced
    assert replaced is not None
    assert (replaced.ino, replaced.trashed) == (old, trash_days > 0)
    assert [(await client.getattr(ino)).nlink for ino in (a, b)] == [2, 3]
    await make_dir(client, b"x", b)
    await fails(errno.ENOTEMPTY, client.rename(ROOT, b, b"x", b, b"m", 0))
    await client.rename(ROOT, b, b"m", b, b"x", 0)
    assert (await client.getattr(b)).nlink == 3
    await assert_clean(client)


async def test_a_hard_link_moves_and_is_replaced(engine: Engine) -> None:
    client = await new_volume(engine, trash_days=0)
    folder = await make_dir(client, b"d")
    ino = (await make_file(client, b"f")).ino
    await client.link(ROOT, ino, ROOT_INO, b"g")
    await client.rename(ROOT, ROOT_INO, b"g", folder, b"g", 0)
    await assert_clean(client)
    renamed = await client.rename(ROOT, ROOT_INO, b"f", folder, b"g", 0)
    assert renamed.replaced is None, "both names are of one inode: nothing happens"
    assert await find(client, ROOT_INO, b"f") == await find(client, folder, b"g") == ino
    await make_file(client, b"n")
    replaced = (await client.rename(ROOT, ROOT_INO, b"n", folder, b"g", 0)).replaced
    assert replaced is not None
    assert replaced.attr is not None
    assert replaced.attr.nlink == 1
    await assert_clean(client)


async def test_exchange(engine: Engine) -> None:
    client = await new_volume(engine)
    a, b = await make_dir(client, b"a"), await make_dir(client, b"b")
    file, folder = (await make_file(client, b"x", parent=a)).ino, await make_dir(client, b"y", b)
    linked = (await make_file(client, b"l", parent=a)).ino
    await client.link(ROOT, linked, b, b"l2")
    renamed = await client.rename(ROOT, a, b"x", b, b"y", EXCHANGE)
    assert renamed.exchanged is not None
    assert renamed.exchanged.ino == folder
    assert (await find(client, a, b"x"), await find(client, b, b"y")) == (folder, file)
    assert [(await client.getattr(ino)).nlink for ino in (a, b)] == [3, 2]
    assert [(await client.getattr(ino)).parent for ino in (file, folder)] == [b, a]
    await client.rename(ROOT, a, b"l", b, b"y", EXCHANGE)
    await client.rename(ROOT, a, b"x", a, b"l", EXCHANGE)
    assert (await find(client, a, b"l"), await find(client, a, b"x"), await find(client, b, b"y")) == (
        folder,
        file,
        linked,
    )
    await assert_clean(client)


async def test_one_name_onto_itself(engine: Engine) -> None:
    client = await new_volume(engine)
    before = (await make_file(client, b"f")).attr
    for flags in (0, NOREPLACE, EXCHANGE):
        assert (await client.rename(ROOT, ROOT_INO, b"f", ROOT_INO, b"f", flags)).attr == before
    await fails(errno.ENOENT, client.rename(ROOT, ROOT_INO, b"x", ROOT_INO, b"x", 0))


async def test_what_cannot_be_renamed(engine: Engine) -> None:
    client = await new_volume(engine)
    folder, full = await make_dir(client, b"d"), await make_dir(client, b"full")
    file = (await make_file(client, b"f")).ino
    await make_file(client, b"x", parent=full)
    refused = [
        (errno.ENOENT, (ROOT_INO, b"none", ROOT_INO, b"g", 0)),
        (errno.ENOENT, (ROOT_INO, b"f", ROOT_INO, b"none", EXCHANGE)),
        (errno.ENOENT, (ROOT_INO, b"f", 999, b"g", 0)),
        (errno.ENOTDIR, (ROOT_INO, b"f", file, b"g", 0)),
        (errno.EEXIST, (ROOT_INO, b"f", ROOT_INO, b"d", NOREPLACE)),
        (errno.ENOTDIR, (ROOT_INO, b"d", ROOT_INO, b"f", 0)),
        (errno.EISDIR, (ROOT_INO, b"f", ROOT_INO, b"d", 0)),
        (errno.ENOTEMPTY, (ROOT_INO, b"d", ROOT_INO, b"full", 0)),
        (errno.ENAMETOOLONG, (ROOT_INO, b"f", ROOT_INO, b"x" * 256, 0)),
        (errno.EINVAL, (ROOT_INO, b"f", ROOT_INO, b"a/b", 0)),
        (errno.EINVAL, (ROOT_INO, b"f", ROOT_INO, b"g", NOREPLACE | EXCHANGE)),
        (errno.EINVAL, (ROOT_INO, b"f", ROOT_INO, b"g", 8)),
        (errno.EOPNOTSUPP, (ROOT_INO, b"f", ROOT_INO, b"g", WHITEOUT)),
        (errno.EINVAL, (ROOT_INO, b"d", folder, b"x", 0)),
    ]
    for code, arguments in refused:
        await fails(code, client.rename(ROOT, *arguments))
    for flags in (FLAG_IMMUTABLE, FLAG_APPEND):
        await client.setattr(ROOT, file, AttrChange(flags=flags))
        await fails(errno.EPERM, client.rename(ROOT, ROOT_INO, b"f", ROOT_INO, b"g", 0))
        await fails(errno.EPERM, client.rename(ROOT, full, b"x", ROOT_INO, b"f", 0))
    await assert_clean(client)


async def test_permissions(engine: Engine) -> None:
    client = await new_volume(engine)
    a, b = await make_dir(client, b"a"), await make_dir(client, b"b")
    await make_file(client, b"f", parent=a)
    await make_file(client, b"mine", parent=b)
    await client.setattr(ROOT, b, AttrChange(mode=0o1777))
    await fails(errno.EACCES, client.rename(ALICE, a, b"f", b, b"mine", 0))
    await fails(errno.EACCES, client.rename(ALICE, b, b"mine", a, b"g", 0))
    await client.rename(ALICE, a, b"f", b, b"f", 0)
    closed = (await client.mkdir(ROOT, a, b"closed", 0o755)).ino
    await fails(errno.EACCES, client.rename(ALICE, a, b"closed", b, b"closed", 0))
    await client.rename(ALICE, a, b"closed", a, b"here", 0)
    await client.setattr(ROOT, a, AttrChange(mode=0o755))
    await fails(errno.EACCES, client.rename(ALICE, a, b"here", b, b"x", 0))
    assert (await client.getattr(closed)).parent == a


async def test_no_directory_moves_into_its_own_subtree(engine: Engine) -> None:
    client = await new_volume(engine)
    a = await make_dir(client, b"a")
    b = await make_dir(client, b"b", a)
    c = await make_dir(client, b"c", b)
    file = await make_dir(client, b"side")
    for deeper in (a, b, c):
        await fails(errno.EINVAL, client.rename(ROOT, ROOT_INO, b"a", deeper, b"x", 0))
    await fails(errno.EINVAL, client.rename(ROOT, b, b"c", ROOT_INO, b"a", EXCHANGE))
    await fails(errno.EINVAL, client.rename(ROOT, ROOT_INO, b"a", b, b"c", EXCHANGE))
    await fails(errno.ENOTEMPTY, client.rename(ROOT, b, b"c", ROOT_INO, b"a", 0))
    await client.rename(ROOT, ROOT_INO, b"side", c, b"x", 0)
    await client.rename(ROOT, b, b"c", ROOT_INO, b"c", 0)
    await client.rename(ROOT, ROOT_INO, b"a", file, b"a", 0)
    await assert_clean(client)


async def test_a_cycle_that_is_there_already_is_named(engine: Engine) -> None:
    client = await new_volume(engine)
    a = await make_dir(client, b"a")
    b = await make_dir(client, b"b", a)
    moving = await make_dir(client, b"m")

    async def twist(tx: Transaction) -> None:
        attr = await tx.attr(a)
        assert attr is not None
        attr.parent = b
        tx.put_attr(a, attr)

    await do(engine, twist)
    with pytest.raises(CorruptRecord, match=f"inode {b}"):
        await client.rename(ROOT, ROOT_INO, b"m", b, b"m", 0)
    assert (await client.getattr(moving)).parent == ROOT_INO


# Two clients move directories into each other's: the kernel of each sees nothing wrong with it.
DEPTHS = list(itertools.product([0, 1, 2], [0, 1, 2]))


@pytest.mark.parametrize(("depth", "other_depth"), DEPTHS)
async def test_two_moves_make_no_cycle(engine: Engine, depth: int, other_depth: int) -> None:
    client = await new_volume(engine)

    async def chain(name: bytes, length: int) -> tuple[Ino, Ino, Ino]:
        home = await make_dir(client, b"home of " + name)
        top = deepest = await make_dir(client, name, home)
        for _ in range(length):
            deepest = await make_dir(client, b"below", deepest)
        return home, top, deepest

    home_a, a, below_a = await chain(b"a", depth)
    home_b, b, below_b = await chain(b"b", other_depth)

    def mover(home: Ino, name: bytes, target: Ino) -> "partial[object]":
        args = (ROOT, home, name, target, b"moved", 0, None, lambda ino: False, 0, START_NS * 2)
        return partial(_rename, args)

    assert sum(await race(engine, mover(home_a, b"a", below_b), mover(home_b, b"b", below_a))) == 1
    for top in (a, b):
        above = top
        for _ in range(10):
            above = (await client.getattr(above)).parent
        assert above == ROOT_INO


async def _rename(args: "tuple[object, ...]", tx: Transaction) -> None:
    await rename(tx, *args, skip_mtime_ns=10**19)  # type: ignore[arg-type]
