"""Operations on a file's bytes as metadata."""

import errno
import os

import pytest

from jfs.errors import FsError
from jfs.meta import files
from jfs.meta.client import MetaClient
from jfs.meta.transaction import Engine, Transaction
from jfs.meta.types import CHUNK_SIZE, MAX_FILE_SIZE, ROOT, ROOT_INO, Cred, Ino, Slice, SliceRef
from tests.meta.volumes import append, assert_clean, do, make_file, new_volume, remove_data

pytestmark = pytest.mark.filterwarnings("error")


async def all_chunks(client: MetaClient, ino: Ino) -> dict[int, list[Slice]]:
    async def op(tx: Transaction) -> list[tuple[int, list[Slice]]]:
        return await tx.chunks(ino)

    return dict(await do(client.engine, op))


async def references(client: MetaClient, record: Slice) -> int:
    async def op(tx: Transaction) -> int:
        return await tx.slice_references(SliceRef(record.id, record.size))

    return await do(client.engine, op)


def zeros(pos: int, length: int) -> Slice:
    return Slice(pos, 0, 0, 0, length)


async def test_a_written_slice_grows_the_file(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    record = await append(client, ino, 0, 100, 5000)
    attr = await client.getattr(ino)
    assert attr.length == 5100
    assert await client.read_chunk(ino, 0) == [record]
    assert await references(client, record) == 1
    assert client.usage.pending_space == 8192
    await append(client, ino, 0, 0, 50)
    assert (await client.getattr(ino)).length == 5100
    await append(client, ino, 2, 0, 10)
    assert (await client.getattr(ino)).length == 2 * CHUNK_SIZE + 10
    await assert_clean(client)


async def test_a_write_says_its_own_mtime(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    written = await client.write_slice(ino, 0, Slice(0, 77, 10, 0, 10), 123)
    assert written.attr.mtime_ns == 123
    assert written.attr.ctime_ns > 123
    assert written.records == 1


async def test_a_record_written_again_is_dropped(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    record = await append(client, ino, 0, 0, 10)
    written = await client.write_slice(ino, 0, record, 5)
    assert written.records == 1
    assert await client.read_chunk(ino, 0) == [record]
    assert await references(client, record) == 1
    await assert_clean(client)


async def test_writing_and_reading_what_is_gone(engine: Engine) -> None:
    client = await new_volume(engine)
    for call in (client.write_slice(99, 0, Slice(0, 7, 1, 0, 1), 1), client.read_chunk(99, 0)):
        with pytest.raises(FsError) as caught:
            await call
        assert caught.value.errno == errno.ENOENT
    folder = await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)
    with pytest.raises(FsError) as caught:
        await client.write_slice(folder.ino, 0, Slice(0, 7, 1, 0, 1), 1)
    assert caught.value.errno == errno.EPERM


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (100_000, 90_000, {0: [zeros(90_000, 10_000)]}),
        (90_000, 100_000, {0: [zeros(90_000, 10_000)]}),
        (10, CHUNK_SIZE, {0: [zeros(10, CHUNK_SIZE - 10)]}),
        (10, CHUNK_SIZE + 7, {0: [zeros(10, CHUNK_SIZE - 10)], 1: [zeros(0, 7)]}),
        (0, 4 * CHUNK_SIZE + 1, {0: [zeros(0, CHUNK_SIZE)], 2: [zeros(0, CHUNK_SIZE)], 4: [zeros(0, 1)]}),
        (4 * CHUNK_SIZE, 0, {0: [zeros(0, CHUNK_SIZE)], 2: [zeros(0, CHUNK_SIZE)]}),
        (CHUNK_SIZE, 2 * CHUNK_SIZE, {1: [zeros(0, CHUNK_SIZE)]}),
    ],
)
async def test_truncate_puts_zeros_both_ways(
    engine: Engine, old: int, new: int, expected: dict[int, list[Slice]]
) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    await append(client, ino, 2, 0, 1)
    first = await all_chunks(client, ino)

    async def set_length(tx: Transaction) -> None:  # without zero records
        attr = await tx.attr(ino)
        assert attr is not None
        attr.length = old
        tx.put_attr(ino, attr)

    await do(engine, set_length)
    attr = await client.truncate(ROOT, ino, new)
    assert attr.length == new
    assert attr.mtime_ns == attr.ctime_ns
    records = await all_chunks(client, ino)
    records[2] = records[2][1:]
    assert {index: found for index, found in records.items() if found} == expected
    assert 2 in first


@pytest.mark.parametrize("length", [0, 10])
async def test_truncate_to_the_same_length_moves_the_times(engine: Engine, length: int) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    if length:
        await append(client, ino, 0, 0, length)
    before, records = await client.getattr(ino), await client.read_chunk(ino, 0)
    after = await client.truncate(ROOT, ino, length)
    assert after.mtime_ns == after.ctime_ns > max(before.mtime_ns, before.ctime_ns)
    before.mtime_ns = before.ctime_ns = after.mtime_ns
    assert await client.getattr(ino) == after == before
    assert await client.read_chunk(ino, 0) == records


async def test_truncate_refuses(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    folder = await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)
    stranger = Cred(uid=7, gid=7, check=True)
    for call, expected in (
        (client.truncate(ROOT, folder.ino, 1), errno.EPERM),
        (client.truncate(ROOT, ino, MAX_FILE_SIZE + 1), errno.EFBIG),
        (client.truncate(stranger, ino, 1), errno.EACCES),
        (client.truncate(ROOT, 12345, 1), errno.ENOENT),
    ):
        with pytest.raises(FsError) as caught:
            await call
        assert caught.value.errno == expected
    assert (await client.truncate(stranger, ino, 1, opened=True)).length == 1


async def test_a_file_in_the_trash_is_read_only(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    await append(client, ino, 0, 0, 10)
    await client.unlink(ROOT, ROOT_INO, b"f")
    await client.open(ROOT, ino, os.O_RDONLY)
    for call in (client.truncate(ROOT, ino, 1), client.open(ROOT, ino, os.O_RDWR)):
        with pytest.raises(FsError) as caught:
            await call
        assert caught.value.errno == errno.EPERM
    await client.close(ino)
    assert not client.is_open(ino)


async def test_growth_counts_in_every_directory_with_a_link(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    folder = await client.mkdir(ROOT, ROOT_INO, b"d", 0o755)
    await client.link(ROOT, ino, folder.ino, b"f2")
    await client.link(ROOT, ino, folder.ino, b"f3")
    await append(client, ino, 0, 0, 10_000)
    await client.truncate(ROOT, ino, 100_000)
    await client.truncate(ROOT, ino, 5)
    await client.truncate(ROOT, ino, 50_000)
    await assert_clean(client)


async def test_release_gives_back_slices_that_nothing_refers_to(engine: Engine) -> None:
    client = await new_volume(engine, trash_days=0)
    ino = (await make_file(client, b"f")).ino
    kept = (await make_file(client, b"g")).ino
    first = await append(client, ino, 0, 0, 10)
    shared = await append(client, ino, 3, 0, 10)
    await append(client, ino, 3, 0, 20)

    async def share(tx: Transaction) -> None:
        await tx.append_slices(kept, 0, (shared, shared))
        await tx.add_slice_references(SliceRef(shared.id, shared.size), 2)

    await do(engine, share)
    await client.unlink(ROOT, ROOT_INO, b"f")
    gone = await remove_data(client)
    assert first.id in gone
    assert shared.id not in gone
    assert len(gone) == 2
    assert await references(client, shared) == 2
    assert await all_chunks(client, ino) == {}

    async def left(tx: Transaction) -> tuple[int, int]:
        return len(await tx.deleted_files(1 << 40, 10)), len(await tx.dead_slices(10))

    assert await do(engine, left) == (0, 0)
    await assert_clean(client)


async def test_a_file_on_the_deleted_list_that_exists_keeps_its_data(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    await append(client, ino, 0, 0, 10)

    async def release(tx: Transaction) -> list[int] | None:
        return await files.deleted_chunks(tx, files.DeletedFile(ino, 10, 1))

    assert await do(engine, release) is None


@pytest.mark.parametrize("trash_days", [0, 1])
async def test_compaction_replaces_the_oldest_records(engine: Engine, trash_days: int) -> None:
    client = await new_volume(engine, trash_days=trash_days)
    ino = (await make_file(client, b"f")).ino
    old = [await append(client, ino, 0, 100 * number, 100) for number in range(4)]
    plan = await client.compaction_candidate(ino, 0)
    assert plan is not None
    assert (plan.kept, plan.parts) == ([], [old])
    later = await append(client, ino, 0, 1000, 7)
    slice_id = await client.new_slice_id()
    freed = await client.commit_compaction(plan, [slice_id])
    new = Slice(0, slice_id, 400, 0, 400)
    assert await client.read_chunk(ino, 0) == [new, later]
    assert await references(client, new) == 1
    if trash_days:
        assert freed == []
        assert [await references(client, record) for record in old] == [1, 1, 1, 1]
    else:
        assert sorted(ref.id for ref in freed) == sorted(record.id for record in old)
    await assert_clean(client)
    assert await client.commit_compaction(plan, [slice_id]) == []  # the answer was lost: done already


@pytest.mark.parametrize("trash_days", [0, 1])
async def test_compaction_leaves_whole_records_far_from_others(engine: Engine, trash_days: int) -> None:
    client = await new_volume(engine, trash_days=trash_days)
    ino = (await make_file(client, b"f")).ino
    far = await append(client, ino, 0, CHUNK_SIZE - 100, 100)
    near = [await append(client, ino, 0, 50 * number, 100) for number in range(2)]
    amid = [await append(client, ino, 0, CHUNK_SIZE // 2 + 50 * number, 100) for number in range(2)]
    plan = await client.compaction_candidate(ino, 0)
    assert plan is not None
    ids = [await client.new_slice_id() for _ in range(plan.ids)]
    freed = await client.commit_compaction(plan, ids)
    new = [Slice(0, ids[0], 150, 0, 150), Slice(CHUNK_SIZE // 2, ids[1], 150, 0, 150)]
    assert await client.read_chunk(ino, 0) == [far, *new]
    assert [await references(client, record) for record in [far, *new]] == [1, 1, 1]
    assert sorted(ref.id for ref in freed) == ([] if trash_days else [record.id for record in near + amid])
    await assert_clean(client)
    assert await client.commit_compaction(plan, ids) == []  # the answer was lost: done already
    assert await client.compaction_candidate(ino, 0) is None


@pytest.mark.parametrize("trash_days", [0, 1])
async def test_a_chunk_of_zeros_gets_no_slice(engine: Engine, trash_days: int) -> None:
    client = await new_volume(engine, trash_days=trash_days)
    ino = (await make_file(client, b"f")).ino
    hidden = await append(client, ino, 0, 1000, 5000)
    for length in (0, CHUNK_SIZE, 1000, 7000):
        await client.truncate(ROOT, ino, length)
    plan = await client.compaction_candidate(ino, 0)
    assert plan is not None
    assert plan.parts == []
    ids = [await client.new_slice_id() for _ in range(plan.ids)]
    freed = await client.commit_compaction(plan, ids)
    assert await client.read_chunk(ino, 0) == [zeros(0, CHUNK_SIZE)]
    assert [ref.id for ref in freed] == ([] if trash_days else [hidden.id])
    await assert_clean(client)
    assert await client.commit_compaction(plan, ids) == []  # the answer was lost: done already
    assert await client.compaction_candidate(ino, 0) is None
    assert (await client.getattr(ino)).length == 7000


async def test_zeros_that_look_as_if_they_were_done(engine: Engine) -> None:
    """The chunk begins with what the compaction makes of it."""
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    for length in (CHUNK_SIZE, 0, 5):
        await client.truncate(ROOT, ino, length)
    plan = await client.compaction_candidate(ino, 0)
    assert plan is not None
    await client.commit_compaction(plan, [await client.new_slice_id()])
    assert await client.read_chunk(ino, 0) == [zeros(0, CHUNK_SIZE)]


async def test_compaction_of_a_changed_chunk_is_refused(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    for number in range(3):
        await append(client, ino, 0, 10 * number, 10)
    plan = await client.compaction_candidate(ino, 0)
    assert plan is not None
    await client.commit_compaction(plan, [await client.new_slice_id()])
    with pytest.raises(FsError) as caught:
        await client.commit_compaction(plan, [await client.new_slice_id()])
    assert caught.value.errno == errno.EINVAL
    await assert_clean(client)


async def test_nothing_to_compact(engine: Engine) -> None:
    client = await new_volume(engine)
    ino = (await make_file(client, b"f")).ino
    assert await client.compaction_candidate(ino, 0) is None
    await append(client, ino, 0, 0, 10)
    assert await client.compaction_candidate(ino, 0) is None
