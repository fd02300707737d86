"""Attributes: chmod, chown, utimes and flags; extended attributes; permission bits; access times."""

import errno

import pytest

from jfs.meta.access import R, W, X, permitted
from jfs.meta.inodes import DAY_NS, LAST_NS, SECOND, AttrChange, atime_is_due
from jfs.meta.transaction import Engine
from jfs.meta.types import FLAG_APPEND, FLAG_IMMUTABLE, ROOT, ROOT_INO, TYPE_DIR, TYPE_FILE, Attr, Cred
from tests.meta.volumes import assert_clean, fails, make_file, new_volume

OWNER = Cred(uid=1000, gid=100, groups=(7,), check=True)
OTHER = Cred(uid=1001, gid=101, check=True)


async def test_a_change_moves_ctime_and_nothing_else(engine: Engine) -> None:
    client = await new_volume(engine)
    entry = await make_file(client, b"f")
    changed = await client.setattr(ROOT, entry.ino, AttrChange(mode=0o100600))
    assert changed.mode == 0o600
    assert changed.ctime_ns > entry.attr.ctime_ns
    assert (changed.mtime_ns, changed.atime_ns) == (entry.attr.mtime_ns, entry.attr.atime_ns)
    assert await client.getattr(entry.ino) == changed
    for nothing in (AttrChange(), AttrChange(mode=0o600), AttrChange(uid=0, gid=0), AttrChange(flags=0)):
        assert await client.setattr(ROOT, entry.ino, nothing) == changed, "what changes nothing writes nothing"
    assert await client.getattr(entry.ino) == changed
    await fails(errno.ENOENT, client.setattr(ROOT, 999, AttrChange(mode=0)))


async def test_times(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await client.mknod(OWNER, ROOT_INO, b"f", 0o100644, 0)).ino
    attr = await client.setattr(OWNER, ino, AttrChange(atime_ns=123456789, mtime_ns=-1_500_000_000))
    assert (attr.atime_ns, attr.mtime_ns) == (123456789, -1_500_000_000)
    assert (await client.getattr(ino)) == attr
    attr = await client.setattr(OWNER, ino, AttrChange(mtime_now=True))
    assert attr.mtime_ns == attr.ctime_ns
    assert attr.atime_ns == 123456789
    await fails(errno.EPERM, client.setattr(OTHER, ino, AttrChange(mtime_ns=5)))
    await fails(errno.EACCES, client.setattr(OTHER, ino, AttrChange(mtime_now=True)))
    await client.setattr(OWNER, ino, AttrChange(mode=0o646))
    attr = await client.setattr(OTHER, ino, AttrChange(atime_now=True, mtime_now=True))
    assert attr.atime_ns == attr.mtime_ns == attr.ctime_ns


@pytest.mark.parametrize("seconds", [2**34, 2**43, 2**62, 2**63 - 1, -(2**34), -(2**43), -(2**63)])
async def test_times_far_away_are_stored_as_far_as_they_can_be(engine: Engine, seconds: int) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    time_ns = seconds * SECOND + 999_999_999
    change = AttrChange(atime_ns=time_ns, mtime_ns=time_ns, ctime_ns=time_ns)
    attr = await client.setattr(ROOT, ino, change)
    assert attr.atime_ns == attr.mtime_ns == attr.ctime_ns == min(max(time_ns, -LAST_NS), LAST_NS)
    assert await client.getattr(ino) == attr


async def test_chmod(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await client.mknod(OWNER, ROOT_INO, b"f", 0o100644, 0)).ino
    await fails(errno.EPERM, client.setattr(OTHER, ino, AttrChange(mode=0o777)))
    assert (await client.setattr(OWNER, ino, AttrChange(mode=0o6755))).mode == 0o6755
    await client.setattr(ROOT, ino, AttrChange(gid=999))
    assert (await client.setattr(OWNER, ino, AttrChange(mode=0o2755))).mode == 0o755, "not in that group"
    assert (await client.setattr(ROOT, ino, AttrChange(mode=0o2755))).mode == 0o2755


@pytest.mark.parametrize(
    ("mode", "cred", "kept"),
    [(0o6755, ROOT, 0o755), (0o6745, ROOT, 0o2745), (0o6755, OWNER, 0o755), (0o6745, OWNER, 0o745)],
)
async def test_chown_drops_privileges(engine: Engine, mode: int, cred: Cred, kept: int) -> None:
    client = await new_volume(engine)
    ino = (await client.mknod(OWNER, ROOT_INO, b"f", 0o100644, 0)).ino
    await client.setattr(ROOT, ino, AttrChange(mode=mode))
    attr = await client.setattr(cred, ino, AttrChange(gid=7))
    assert (attr.gid, attr.mode) == (7, kept)
    folder = (await client.mkdir(OWNER, ROOT_INO, b"d", 0o777)).ino
    await client.setattr(ROOT, folder, AttrChange(mode=mode))
    assert (await client.setattr(cred, folder, AttrChange(gid=7))).mode == mode, (
        "a directory's bits mean something else"
    )


async def test_who_may_chown(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await client.mknod(OWNER, ROOT_INO, b"f", 0o100644, 0)).ino
    await fails(errno.EPERM, client.setattr(OWNER, ino, AttrChange(uid=5)))
    await fails(errno.EPERM, client.setattr(OWNER, ino, AttrChange(gid=5)))
    await fails(errno.EPERM, client.setattr(OTHER, ino, AttrChange(gid=101)))
    await client.setattr(OWNER, ino, AttrChange(uid=1000, gid=100))
    attr = await client.setattr(ROOT, ino, AttrChange(uid=5, gid=6))
    assert (attr.uid, attr.gid) == (5, 6)


@pytest.mark.parametrize("flags", [FLAG_IMMUTABLE, FLAG_APPEND])
async def test_what_is_fixed_stays(engine: Engine, flags: int) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    await client.setxattr(ROOT, ino, b"user.a", b"1", 0)
    await client.setattr(ROOT, ino, AttrChange(flags=flags))
    for change in (AttrChange(mode=0), AttrChange(uid=5), AttrChange(mtime_ns=5)):
        await fails(errno.EPERM, client.setattr(ROOT, ino, change))
    await fails(errno.EPERM, client.setxattr(ROOT, ino, b"user.b", b"1", 0))
    await fails(errno.EPERM, client.removexattr(ROOT, ino, b"user.a"))
    await fails(errno.EPERM, client.truncate(ROOT, ino, 5))
    await client.setattr(ROOT, ino, AttrChange(flags=0))
    await client.setattr(ROOT, ino, AttrChange(mode=0))
    await assert_clean(client)


async def test_xattrs(engine: Engine) -> None:
    client = await new_volume(engine)
    entry = await make_file(client, b"f")
    ino = entry.ino
    await fails(errno.ENODATA, client.getxattr(ino, b"user.a"))
    await fails(errno.ENODATA, client.setxattr(ROOT, ino, b"user.a", b"1", 2))
    await client.setxattr(ROOT, ino, b"user.a", b"1", 1)
    first = await client.getattr(ino)
    assert first.ctime_ns > entry.attr.ctime_ns
    assert first.mtime_ns == entry.attr.mtime_ns
    await fails(errno.EEXIST, client.setxattr(ROOT, ino, b"user.a", b"2", 1))
    await client.setxattr(ROOT, ino, b"user.a", b"1", 0)
    assert await client.getattr(ino) == first, "the same value again"
    await client.setxattr(ROOT, ino, b"user.a", b"\0\xff" * 32768, 2)
    assert await client.getxattr(ino, b"user.a") == b"\0\xff" * 32768
    await client.setxattr(ROOT, ino, b"user.b", b"2", 0)
    assert sorted(await client.listxattr(ino)) == [b"user.a", b"user.b"]
    await client.removexattr(ROOT, ino, b"user.a")
    await fails(errno.ENODATA, client.removexattr(ROOT, ino, b"user.a"))
    assert (await client.getattr(ino)).ctime_ns > first.ctime_ns


async def test_xattrs_of_an_inode_that_is_gone(engine: Engine) -> None:
    """They went with it, which is not the same as having none."""
    client = await new_volume(engine, trash_days=0)
    ino = (await make_file(client, b"f")).ino
    await client.setxattr(ROOT, ino, b"user.a", b"1", 0)
    await client.unlink(ROOT, ROOT_INO, b"f")
    await fails(errno.ENOENT, client.getxattr(ino, b"user.a"))
    await fails(errno.ENOENT, client.listxattr(ino))
    await fails(errno.ENOENT, client.removexattr(ROOT, ino, b"user.a"))
    await fails(errno.ENOENT, client.setxattr(ROOT, ino, b"user.a", b"1", 0))
    await fails(errno.ENOENT, client.setxattr(ROOT, ino, b"user.a", b"1", 2))


async def test_xattr_limits(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    await client.setxattr(ROOT, ino, b"user." + b"x" * 250, b"1", 0)
    await fails(errno.ERANGE, client.setxattr(ROOT, ino, b"user." + b"x" * 251, b"1", 0))
    await fails(errno.ERANGE, client.setxattr(ROOT, ino, b"user.a", b"x" * 65537, 0))
    await fails(errno.EINVAL, client.setxattr(ROOT, ino, b"", b"1", 0))
    await fails(errno.EINVAL, client.setxattr(ROOT, ino, b"user.a", b"1", 3))
    await fails(errno.ENOENT, client.setxattr(ROOT, 999, b"user.a", b"1", 0))


def test_permission_bits() -> None:
    attr = Attr(TYPE_FILE, 0o640, 1000, 100)
    member = Cred(uid=5, gid=5, groups=(100,))
    assert permitted(attr, OWNER, R | W)
    assert not permitted(attr, OWNER, X)
    assert permitted(attr, member, R)
    assert not permitted(attr, member, W)
    assert not permitted(attr, OTHER, R)
    assert permitted(attr, ROOT, R | W)
    assert not permitted(attr, ROOT, X), "root runs only what somebody may run"
    assert permitted(Attr(TYPE_DIR, 0), ROOT, R | W | X)
    assert not permitted(Attr(TYPE_FILE, 0o077, 1000, 100), OWNER, R), "the owner's bits alone decide for the owner"


@pytest.mark.parametrize(
    ("mode", "age_ns", "due"),
    [
        ("noatime", 2 * DAY_NS, False),
        ("relatime", DAY_NS, False),
        ("relatime", DAY_NS + 1, True),
        ("strictatime", SECOND, False),
        ("strictatime", SECOND + 1, True),
    ],
)
def test_access_times(mode: str, age_ns: int, due: bool) -> None:
    attr = Attr(TYPE_FILE, atime_ns=10**18, mtime_ns=10**18, ctime_ns=10**18)
    assert atime_is_due(attr, mode, 10**18 + age_ns) == due
    for changed in (Attr(TYPE_FILE, atime_ns=5, mtime_ns=6), Attr(TYPE_FILE, atime_ns=5, ctime_ns=6)):
        assert atime_is_due(changed, mode, 7) == (mode != "noatime")
