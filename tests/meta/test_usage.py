"""The volume's books: sums that leave 64 bits."""

import pytest

from jfs.meta.transaction import Engine, Transaction
from jfs.meta.types import MAX_FILE_SIZE, ROOT, ROOT_INO, DirStat
from jfs.meta.usage import PATIENCE
from tests.meta.volumes import assert_clean, do, make_file, new_volume


async def books(tx: Transaction) -> tuple[int, int, DirStat | None]:
    return await tx.counter("usedSpace"), await tx.counter("totalInodes"), await tx.dir_stat(ROOT_INO)


@pytest.mark.parametrize("at_once", [True, False])
async def test_books_of_more_than_64_bits(engine: Engine, at_once: bool) -> None:
    client = await new_volume(engine, trash_days=0)
    names = [b"%d" % number for number in range(70)]
    for name in names:
        await client.truncate(ROOT, (await make_file(client, name)).ino, MAX_FILE_SIZE - 1)
        if not at_once:
            await client.flush_usage()
    await assert_clean(client)
    assert 0 <= (await client.statfs()).used_space < 1 << 63
    for _ in range(PATIENCE):  # what has gone round looks like what is negative because others have more to add
        await client.flush_usage()
    await assert_clean(client)
    for name in names[1:]:
        await client.unlink(ROOT, ROOT_INO, name)
        if not at_once:
            await client.flush_usage()
    await client.flush_usage()
    assert await do(engine, books) == (1 << 57, 1, DirStat((1 << 57) - 2, 1 << 57, 1))
    await assert_clean(client)
