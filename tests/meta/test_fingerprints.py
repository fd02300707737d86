"""Fingerprints of slices: when they are written, asked for and removed, and how they are turned on and off."""

import pytest

from jfs.errors import CorruptRecord, FsError, UserError
from jfs.meta import background, files, fingerprints
from jfs.meta.client import MetaClient
from jfs.meta.run import read
from jfs.meta.transaction import Engine, Transaction
from jfs.meta.types import Ino, Slice, SliceRef
from tests.meta.volumes import connect, do, format_volume, make_file, new_volume, remove_data

MARK = b"0123456789abcdef"
BLOCK = 4 << 20


async def fingerprinted(engine: Engine, *, trash_days: int = 0) -> tuple[MetaClient, Ino]:
    """A client of a volume that keeps fingerprints, and an empty file."""
    await format_volume(engine, trash_days=trash_days)
    assert await fingerprints.turn(engine, on=True)
    client = await connect(engine)
    return client, (await make_file(client, b"f")).ino


async def write(client: MetaClient, ino: Ino, pos: int, length: int, mark: bytes = MARK) -> Slice:
    record = Slice(pos, await client.new_slice_id(), length, 0, length)
    await client.write_slices(ino, 0, [record], client.now_ns(), mark)
    return record


def ref_of(record: Slice) -> SliceRef:
    return SliceRef(record.id, record.size)


async def stored(engine: Engine) -> list[SliceRef]:
    return [ref async for page in fingerprints.all_slices(engine) for ref in page]


async def test_a_record_and_its_fingerprint_are_written_together(engine: Engine) -> None:
    client, ino = await fingerprinted(engine)
    record = await write(client, ino, 0, BLOCK + 1, MARK * 2)
    bare = await write(client, ino, 0, 10, b"")
    assert await client.fingerprints([ref_of(record), ref_of(bare)]) == {record.id: MARK * 2}
    with pytest.raises(FsError):
        await write(client, 12345, 0, 10)
    assert await stored(engine) == [ref_of(record)]


async def test_pieces_of_one_slice_share_its_fingerprint(engine: Engine) -> None:
    client, ino = await fingerprinted(engine)
    slice_id = await client.new_slice_id()
    records = [Slice(number * 100, slice_id, 30, number * 10, 10) for number in range(3)]
    await client.write_slices(ino, 0, records, client.now_ns(), MARK)
    assert await client.fingerprints([SliceRef(slice_id, 30)]) == {slice_id: MARK}


async def test_a_volume_without_them_is_not_asked(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    record = await write(client, ino, 0, 10)
    assert await client.fingerprints([ref_of(record)]) == {}


async def test_compaction_writes_the_new_one_and_the_old_go_with_their_slices(engine: Engine) -> None:
    client, ino = await fingerprinted(engine)
    for number in range(3):
        await write(client, ino, 10 * number, 10)
    plan = await client.compaction_candidate(ino, 0)
    assert plan is not None
    slice_id = await client.new_slice_id()
    dead = await client.commit_compaction(plan, [slice_id], [MARK[::-1]])
    assert len(dead) == 3
    for ref in dead:
        await client.forget_slice(ref)
    assert await client.fingerprints([*dead, SliceRef(slice_id, 30)]) == {slice_id: MARK[::-1]}
    assert await stored(engine) == [SliceRef(slice_id, 30)]


async def test_a_slice_that_lives_keeps_its_fingerprint(engine: Engine) -> None:
    client, ino = await fingerprinted(engine)
    record = await write(client, ino, 0, 10)
    await client.forget_slice(ref_of(record))
    assert await client.fingerprints([ref_of(record)]) == {record.id: MARK}


async def test_a_deleted_file_takes_its_fingerprints_along(engine: Engine) -> None:
    from jfs.meta.types import ROOT, ROOT_INO

    client, ino = await fingerprinted(engine)
    await write(client, ino, 0, 10)
    await client.unlink(ROOT, ROOT_INO, b"f")
    await remove_data(client)
    assert await stored(engine) == []


async def test_turning_on_drops_what_was_left_and_off_drops_all(engine: Engine) -> None:
    await format_volume(engine)

    async def leave(tx: Transaction) -> None:
        for number in range(1, 2500):
            tx.put_fingerprint(SliceRef(number, 1), MARK)

    await do(engine, leave)
    assert not await fingerprints.turn(engine, on=False)
    assert len(await stored(engine)) == 2499
    assert await fingerprints.turn(engine, on=True)
    assert await stored(engine) == []
    await do(engine, leave)
    assert not await fingerprints.turn(engine, on=True)
    assert len(await stored(engine)) == 2499
    assert await fingerprints.turn(engine, on=False)
    assert await stored(engine) == []
    assert not await read(engine, fingerprints.kept)


async def test_a_heartbeat_finds_that_they_were_turned_on_and_off(engine: Engine) -> None:
    client = await new_volume(engine)
    for on in (True, False):
        await fingerprints.turn(engine, on=on)
        await background.heartbeat(client)
        assert client.fingerprinting is on


async def test_a_kind_for_newer_clients_is_refused(engine: Engine) -> None:
    await format_volume(engine)

    async def change(tx: Transaction) -> None:
        tx.put_fingerprinting(b"sha3")

    client = await connect(engine)
    await do(engine, change)
    with pytest.raises(UserError, match="sha3"):
        await MetaClient.connect(engine)
    told: list[str] = []
    client.on_fatal = told.append
    await background.follow_fingerprints(client)
    assert len(told) == 1


async def test_one_of_the_wrong_length_is_named(engine: Engine) -> None:
    client, ino = await fingerprinted(engine)
    record = await write(client, ino, 0, BLOCK + 1, MARK)
    with pytest.raises(CorruptRecord, match=f"fingerprint {record.id} {BLOCK + 1}: 16 bytes, not 32"):
        await client.fingerprints([ref_of(record)])


async def test_a_repeated_commit_changes_nothing(engine: Engine) -> None:
    client, ino = await fingerprinted(engine)
    record = await write(client, ino, 0, 10)
    await do(engine, files.write_slices, ino, 0, [record], client.now_ns(), client.now_ns(), MARK)
    assert await client.read_chunk(ino, 0) == [record]
    assert await client.fingerprints([ref_of(record)]) == {record.id: MARK}
