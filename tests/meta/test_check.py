"""fsck's metadata rules: each one is broken by hand, found, and repaired."""

from collections.abc import Awaitable, Callable

import pytest

from jfs.meta.check import InodeSet, check, check_tree, path_of, repair
from jfs.meta.client import MetaClient
from jfs.meta.engines import open_engine
from jfs.meta.run import run, run_inline
from jfs.meta.transaction import Engine, Transaction
from jfs.meta.types import (
    ROOT,
    ROOT_INO,
    TRASH_INO,
    TYPE_DIR,
    TYPE_FILE,
    TYPE_SYMLINK,
    Attr,
    Dentry,
    DirStat,
    Ino,
    Slice,
    SliceRef,
)
from tests.meta.volumes import Clock, append, assert_clean, do, findings, make_file, new_volume

Spoil = Callable[[Transaction, dict[str, Ino]], Awaitable[None]]


async def populated(engine: Engine) -> tuple[MetaClient, dict[str, Ino]]:
    """A volume with a bit of everything, all of it right."""
    client = await new_volume(engine, Clock())
    inos = {"d": (await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)).ino}
    inos["sub"] = (await client.mkdir(ROOT, inos["d"], b"sub", 0o755)).ino
    inos["f"] = (await make_file(client, b"f", parent=inos["d"])).ino
    inos["linked"] = (await make_file(client, b"linked")).ino
    await client.link(ROOT, inos["linked"], inos["d"], b"again")
    await client.symlink(ROOT, inos["sub"], b"s", b"x")
    for pos in (0, 5000):
        await append(client, inos["f"], 0, pos, 5000)
    await append(client, inos["linked"], 1, 0, 10)
    inos["thrown"] = (await make_file(client, b"thrown")).ino
    await client.unlink(ROOT, ROOT_INO, b"thrown")
    opened = await client.create(ROOT, ROOT_INO, b"open", 0o100644)
    await client.unlink(ROOT, ROOT_INO, b"open", skip_trash=True)
    inos["open"] = opened.ino
    await client.flush_usage()
    return client, inos


async def test_a_volume_that_is_right(engine: Engine) -> None:
    client, _ = await populated(engine)
    await assert_clean(client)


async def change_attr(tx: Transaction, ino: Ino, **changes: int) -> None:
    attr = await tx.attr(ino)
    assert attr is not None
    for name, value in changes.items():
        setattr(attr, name, value)
    tx.put_attr(ino, attr)


async def lose_attr(tx: Transaction, inos: dict[str, Ino]) -> None:
    tx.delete_attr(inos["thrown"])
    await tx.add_counter("usedSpace", -4096)
    await tx.add_counter("totalInodes", -1)


async def wrong_type(tx: Transaction, inos: dict[str, Ino]) -> None:
    tx.put_dentry(inos["d"], b"f", Dentry(TYPE_SYMLINK, inos["f"]))


async def wrong_dir_nlink(tx: Transaction, inos: dict[str, Ino]) -> None:
    await change_attr(tx, inos["d"], nlink=7)


async def wrong_nlink(tx: Transaction, inos: dict[str, Ino]) -> None:
    await change_attr(tx, inos["linked"], nlink=5)


async def wrong_parent(tx: Transaction, inos: dict[str, Ino]) -> None:
    await change_attr(tx, inos["f"], parent=inos["sub"])


async def wrong_dir_parent(tx: Transaction, inos: dict[str, Ino]) -> None:
    await change_attr(tx, inos["sub"], parent=ROOT_INO)


async def lost_second_parent(tx: Transaction, inos: dict[str, Ino]) -> None:
    await change_attr(tx, inos["linked"], parent=ROOT_INO)


async def unbooked_link(tx: Transaction, inos: dict[str, Ino]) -> None:
    tx.put_dentry(inos["sub"], b"f2", Dentry(TYPE_FILE, inos["f"]))
    tx.put_dir_stat(inos["sub"], DirStat(10_000, 12_288 + 4096, 2))


async def wrong_dir_stat(tx: Transaction, inos: dict[str, Ino]) -> None:
    tx.put_dir_stat(inos["d"], DirStat(1, 2, 3))


async def wrong_usage(tx: Transaction, inos: dict[str, Ino]) -> None:
    await tx.add_counter("usedSpace", 4096)


async def wrong_references(tx: Transaction, inos: dict[str, Ino]) -> None:
    (first, _) = await tx.slices(inos["f"], 0)
    await tx.add_slice_references(SliceRef(first.id, first.size), 2)


async def dead_in_use(tx: Transaction, inos: dict[str, Ino]) -> None:
    (first, _) = await tx.slices(inos["f"], 0)
    await tx.add_slice_references(SliceRef(first.id, first.size), -1)


async def unheld(tx: Transaction, inos: dict[str, Ino]) -> None:
    tx.delete_sustained(1, inos["open"])


async def stray_chunk(tx: Transaction, inos: dict[str, Ino]) -> None:
    await tx.append_slices(999, 0, (Slice(0, 0, 0, 0, 10),))


async def no_trash(tx: Transaction, inos: dict[str, Ino]) -> None:
    tx.delete_attr(TRASH_INO)


@pytest.mark.parametrize(
    ("spoil", "kinds"),
    [
        (lose_attr, {"dangling entry", "dir stat"}),
        (wrong_type, {"entry type"}),
        (wrong_dir_nlink, {"nlink"}),
        (wrong_nlink, {"nlink"}),
        (wrong_parent, {"parent"}),
        (wrong_dir_parent, {"parent"}),
        (lost_second_parent, {"parent"}),
        (unbooked_link, {"nlink", "parent"}),
        (wrong_dir_stat, {"dir stat"}),
        (wrong_usage, {"usage"}),
        (wrong_references, {"slice references"}),
        (dead_in_use, {"slice references"}),
        (unheld, {"sustained"}),
        (stray_chunk, {"stray chunks"}),
        (no_trash, {"attr missing"}),
    ],
)
async def test_what_is_wrong_is_found_and_repaired(engine: Engine, spoil: Spoil, kinds: set[str]) -> None:
    client, inos = await populated(engine)
    await do(engine, spoil, inos)
    found = [finding for finding in await findings(client) if finding.kind != "session"]
    if spoil is no_trash:
        found = [finding for finding in found if finding.kind in kinds]
    assert {finding.kind for finding in found} == kinds, [finding.message for finding in found]
    for finding in found:
        assert finding.repairable
        assert await repair(client, finding)
    await assert_clean(client)


async def test_wrong_link_counts_of_the_key_value_model() -> None:
    engine = open_engine("memkv://")
    client, inos = await populated(engine)

    async def spoil(tx: Transaction) -> None:
        await tx.add_parent(inos["linked"], ROOT_INO, 3)

    await do(engine, spoil)
    (finding,) = (finding for finding in await findings(client) if finding.kind != "session")
    assert finding.kind == "parent counts"
    assert await repair(client, finding)
    await assert_clean(client)


async def test_what_only_a_human_can_decide(engine: Engine) -> None:
    client, inos = await populated(engine)

    async def spoil(tx: Transaction) -> None:
        tx.put_attr(5000, Attr(TYPE_FILE, parent=inos["d"]))
        tx.put_dentry(12345, b"lost", Dentry(TYPE_FILE, inos["f"]))
        tx.put_dentry(ROOT_INO, b"twin", Dentry(TYPE_DIR, inos["sub"]))

    await do(engine, spoil)
    found = {finding.kind: finding for finding in await findings(client)}
    for kind in ("orphan", "stray entry", "directory links"):
        assert not found[kind].repairable
        assert not await repair(client, found[kind])


async def test_dead_sessions_are_found(engine: Engine) -> None:
    client, inos = await populated(engine)
    (finding,) = await findings(client)
    assert (finding.kind, finding.ino) == ("session", 0)

    async def held(tx: Transaction) -> int:
        return len(await tx.sessions())

    assert finding.repair is not None
    _, charges = await run(engine, finding.repair)
    client.usage.add(charges)
    client.sid = 0
    assert await do(engine, held) == 0
    assert await findings(client) == []
    assert inos["open"] not in (ROOT_INO, 0)


async def test_a_volume_in_use_is_looked_at_twice(engine: Engine) -> None:
    client, inos = await populated(engine)
    assert [finding async for finding in check(client)] == []
    await do(engine, wrong_dir_nlink, inos)
    found = [finding async for finding in check(client)]
    assert [finding.kind for finding in found] == ["nlink"]


async def test_one_tree_alone(engine: Engine) -> None:
    client, inos = await populated(engine)
    await do(engine, wrong_type, inos)
    await do(engine, wrong_dir_parent, inos)
    assert [found.kind async for found in check_tree(client, inos["sub"])] == []
    assert [found.kind async for found in check_tree(client, ROOT_INO, recursive=False)] == []
    assert sorted([found.kind async for found in check_tree(client, ROOT_INO)]) == ["entry type", "parent"]


async def test_paths(engine: Engine) -> None:
    client, inos = await populated(engine)
    assert await do(engine, path_of, ROOT_INO) == b"/"
    assert await do(engine, path_of, inos["f"]) == b"/d/f"
    assert await do(engine, path_of, inos["linked"]) in (b"/linked", b"/d/again")
    assert await do(engine, path_of, inos["open"]) == b"inode:%d" % inos["open"]
    assert (await do(engine, path_of, inos["thrown"])).startswith(b"/.trash/2027-01-15-08/1-")
    assert await do(engine, path_of, 99999) == b"inode:99999"
    assert client.sid == 1


def test_a_set_of_inodes() -> None:
    found = InodeSet()
    members = [1, 2, 8191, 8192, TRASH_INO, TRASH_INO + 9]
    for ino in members:
        found.add(ino)
    assert all(ino in found for ino in members)
    assert not any(ino in found for ino in (0, 3, 8190, 8193, TRASH_INO + 1))


def test_settings_and_sessions_need_no_event_loop() -> None:
    from jfs.meta.sessions import all_sessions
    from jfs.meta.volume_format import load_settings
    from tests.meta.volumes import format_volume

    engine = open_engine("memkv://")
    run_inline(format_volume(engine))
    assert run_inline(run(engine, load_settings))[0].name == "testvol"
    assert run_inline(run(engine, all_sessions))[0] == []
