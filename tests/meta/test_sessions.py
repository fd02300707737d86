"""Sessions: leases, heartbeats, the settings that they follow, and the end of stale ones."""

import json
import os

import pytest
import trio
import trio.testing

from jfs.meta import background, sessions
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.run import run
from jfs.meta.settings import Settings
from jfs.meta.transaction import Engine, Transaction
from jfs.meta.types import ROOT, ROOT_INO, Session
from jfs.meta.volume_format import update_settings
from tests.meta.volumes import START_NS, Clock, append, assert_clean, connect, do, format_volume, new_volume


async def all_sessions(engine: Engine) -> list[Session]:
    return await do(engine, sessions.all_sessions)


async def test_a_session_says_who_it_is(engine: Engine) -> None:
    await format_volume(engine)
    client = await connect(engine, Clock(), mountpoint="/mnt/x", version="1.2.3")
    assert client.sid == 1
    (session,) = await all_sessions(engine)
    assert session.sid == 1
    assert session.expire == START_NS // 10**9 + 60
    info = json.loads(session.info)
    assert list(info)[:2] == ["Version", "HostName"]
    assert list(info)[-3:] == ["MountPoint", "MountTime", "ProcessID"]
    assert (info["Version"], info["MountPoint"], info["ProcessID"]) == ("1.2.3", "/mnt/x", os.getpid())
    assert b" " not in session.info
    shown = sessions.describe(session)
    assert (shown["Sid"], shown["Expire"]) == (1, "2027-01-15T08:01:00Z")
    await client.close_session()
    assert await all_sessions(engine) == []


def test_times_are_written_as_the_peer_does() -> None:
    assert sessions.rfc3339(1795461776, 783159940) == "2026-11-23T19:22:56.78315994Z"
    assert sessions.rfc3339(0) == "1970-01-01T00:00:00Z"
    assert sessions.expiry(10 * 10**9, 0) == 10 + 365 * 24 * 3600


async def test_a_taken_session_id_is_skipped(engine: Engine) -> None:
    await format_volume(engine)

    async def squat(tx: Transaction) -> None:
        tx.put_session(Session(1, 1 << 40, b"{}"))

    await do(engine, squat)
    assert (await connect(engine)).sid == 2


async def test_a_heartbeat_extends_the_lease(engine: Engine) -> None:
    clock = Clock()
    client = await new_volume(engine, clock)
    clock.advance(30)
    await background.heartbeat(client)
    (session,) = await all_sessions(engine)
    assert session.expire == START_NS // 10**9 + 90


@pytest.mark.logs("session 1 had been ended as stale")
async def test_a_lost_session_is_opened_again(engine: Engine) -> None:
    client = await new_volume(engine)
    await do(engine, sessions.end_session, 1, None)
    await background.heartbeat(client)
    (session,) = await all_sessions(engine)
    assert session.sid == 1
    assert session.info


async def test_stale_sessions_are_cleaned_up_by_another_client(engine: Engine) -> None:
    clock = Clock()
    dead = await new_volume(engine, clock, trash_days=0)
    entry = await dead.create(ROOT, ROOT_INO, b"f", 0o100644)
    await append(dead, entry.ino, 0, 0, 10)
    await dead.unlink(ROOT, ROOT_INO, b"f")
    await dead.flush_usage()
    clock.advance(40)
    client = await connect(engine, clock)
    await background.heartbeat(client)
    assert [session.sid for session in await all_sessions(engine)] == [1, 2]
    clock.advance(30)
    await background.heartbeat(client)
    assert [session.sid for session in await all_sessions(engine)] == [2]
    assert len(client.deleted) == 1
    await assert_clean(client)


async def test_no_client_ends_its_own_session(engine: Engine) -> None:
    """It may have stood still for longer than its lease, after it last said that it is there."""
    clock = Clock()
    client = await new_volume(engine, clock, trash_days=0)
    entry = await client.create(ROOT, ROOT_INO, b"f", 0o644)
    await client.unlink(ROOT, ROOT_INO, b"f")
    clock.advance(1000)
    await client.clean_stale_sessions()
    assert [session.sid for session in await all_sessions(engine)] == [client.sid]
    assert (await client.getattr(entry.ino, fresh=True)).nlink == 0
    await client.close(entry.ino)


async def test_a_session_that_came_back_is_left_alone(engine: Engine) -> None:
    client = await new_volume(engine)
    now = client.now_s()
    assert await do(engine, sessions.begin_clean_up, 1, now) is None
    assert not await do(engine, sessions.end_session, 1, now)
    assert len(await all_sessions(engine)) == 1


async def test_new_settings_are_followed(engine: Engine) -> None:
    settings = await format_volume(engine)
    client = await connect(engine)
    told: list[Settings] = []
    client.on_settings.append(told.append)
    await background.heartbeat(client)
    assert told == []
    settings.capacity = 1 << 40
    await run(engine, update_settings, settings, 1)
    await background.heartbeat(client)
    assert [new.capacity for new in told] == [1 << 40]
    assert (await client.statfs()).total_space == 1 << 40
    await background.heartbeat(client)
    assert len(told) == 1


@pytest.mark.parametrize(("field", "value"), [("uuid", "other"), ("meta_version", 2)])
async def test_a_volume_that_is_another_one_now_is_fatal(engine: Engine, field: str, value: object) -> None:
    settings = await format_volume(engine)
    client = await connect(engine)
    why: list[str] = []
    client.on_fatal = why.append

    async def spoil(tx: Transaction) -> None:
        setattr(settings, field, value)
        tx.put_settings(settings.text())

    await do(engine, spoil)
    await background.follow_settings(client)
    assert len(why) == 1


async def test_a_volume_that_has_vanished_is_fatal() -> None:
    client = await new_volume(MemoryEngine())
    why: list[str] = []
    client.on_fatal = why.append
    client.engine = MemoryEngine()
    await background.follow_settings(client)
    assert why == ["the volume's settings have vanished from the database"]


def test_the_background_flushes_and_beats() -> None:
    engine = MemoryEngine()

    async def scenario() -> None:
        clock = Clock()
        client = await new_volume(engine, clock)
        await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            await trio.sleep(2)
            assert (client.usage.pending_space, client.usage.pending_inodes) == (0, 0)
            assert client.usage.inodes == 1
            clock.advance(20)
            await trio.sleep(13)
            assert (await all_sessions(engine))[0].expire == START_NS // 10**9 + 80
            nursery.cancel_scope.cancel()
        await client.close_session()

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_ids_are_refilled_ahead(engine: Engine) -> None:
    client = await new_volume(engine)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.refill_ids)
        await trio.testing.wait_all_tasks_blocked()
        first = [await client.new_slice_id() for _ in range(4096)]
        await trio.testing.wait_all_tasks_blocked()
        second = [await client.new_slice_id() for _ in range(4096)]
        nursery.cancel_scope.cancel()
    assert len(set(first + second)) == 8192
