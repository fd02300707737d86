"""The sqlite3 engine: opening, foreign and damaged databases, sharing the file with other writers."""

import sqlite3
from collections.abc import Generator
from pathlib import Path

import pytest
import trio

from jfs.errors import Conflict, CorruptRecord, FsError, UserError
from jfs.meta.engines import mask_url, open_engine
from jfs.meta.run import read, run, run_inline
from jfs.meta.sql.sqlite3 import OPEN_TIMEOUT_S, Sqlite3Engine
from jfs.meta.transaction import Transaction
from jfs.meta.types import TYPE_DIR, TYPE_FILE, Attr, Dentry, SliceRef


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "meta.db"


@pytest.fixture
def engine(path: Path) -> Generator[Sqlite3Engine, None, None]:
    made = Sqlite3Engine(str(path), create=True)
    run_inline(made.prepare())
    yield made
    run_inline(made.close())


async def put_root(tx: Transaction) -> None:
    tx.put_attr(1, Attr(TYPE_DIR, 0o755, nlink=2, length=4096, parent=1))


async def root(tx: Transaction) -> Attr | None:
    return await tx.attr(1)


class TestUrls:
    def test_unknown_driver(self) -> None:
        with pytest.raises(UserError, match=r"^Invalid meta driver: foo$"):
            open_engine("foo://x")

    @pytest.mark.parametrize("url", ["etcd://a/b", "localhost/1", "mysql://u:p@(h)/d"])
    def test_known_drivers_to_come(self, url: str) -> None:
        with pytest.raises(UserError, match="is not supported yet; supported: sqlite3"):
            open_engine(url)

    @pytest.mark.parametrize(
        "query", ["nonsense=1", "table_prefix=a;b", "table_prefix=", "_journal=DELETE", "_synchronous=OFF"]
    )
    def test_bad_parameters(self, path: Path, query: str) -> None:
        with pytest.raises(UserError, match=query.partition("=")[0]):
            open_engine(f"sqlite3://{path}?{query}", create=True)
        assert not path.exists()

    @pytest.mark.parametrize("address", ["", "file:/tmp/x.db"])
    def test_no_plain_path(self, address: str) -> None:
        with pytest.raises(UserError, match="plain path"):
            open_engine(f"sqlite3://{address}", create=True)

    @pytest.mark.logs("parameter max_open_conns of the meta URL has no effect here")
    def test_tuning_of_the_peer_is_named(self, path: Path) -> None:
        run_inline(open_engine(f"sqlite3://{path}?max_open_conns=5&_journal=WAL&_sync=2", create=True).close())

    def test_relative_path(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(path.parent)
        run_inline(open_engine("sqlite3://meta.db", create=True).close())
        assert path.exists()

    def test_odd_letters_in_the_path(self, tmp_path: Path) -> None:
        odd = tmp_path / "a#b %20 é.db"
        run_inline(open_engine(f"sqlite3://{odd}", create=True).close())
        assert odd.exists()

    @pytest.mark.parametrize(
        ("url", "masked"),
        [
            ("redis://user:secret@host/1", "redis://user:****@host/1"),
            ("redis://:se@cret@host/1", "redis://:****@host/1"),
            ("user:secret@host/1", "user:****@host/1"),
            ("redis://user@host/1", "redis://user@host/1"),
            ("sqlite3:///a:b@c.db", "sqlite3:///a:b@c.db"),
        ],
    )
    def test_masked(self, url: str, masked: str) -> None:
        assert mask_url(url) == masked


class TestOpening:
    def test_missing_is_not_formatted(self, path: Path) -> None:
        with pytest.raises(UserError, match=r"^database is not formatted, please run"):
            open_engine(f"sqlite3://{path}")
        assert not path.exists()

    def test_empty_is_not_formatted(self, path: Path) -> None:
        path.touch()
        with pytest.raises(UserError, match=r"^database is not formatted, please run"):
            open_engine(f"sqlite3://{path}")
        assert path.stat().st_size == 0

    @pytest.mark.parametrize("create", [True, False])
    def test_no_database(self, path: Path, create: bool) -> None:
        path.write_bytes(b"certainly not a database " * 400)
        was = path.read_bytes()
        with pytest.raises(UserError, match="file is not a database"):
            open_engine(f"sqlite3://{path}", create=create)
        assert path.read_bytes() == was

    @pytest.mark.parametrize("create", [True, False])
    def test_database_of_another_program(self, path: Path, create: bool) -> None:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE bookmarks (url TEXT)")
        other.close()
        was = path.read_bytes()
        with pytest.raises(UserError, match="database of another program"):
            open_engine(f"sqlite3://{path}", create=create)
        assert path.read_bytes() == was
        assert list(path.parent.iterdir()) == [path]

    def test_table_of_the_same_name(self, path: Path) -> None:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE jfs_setting (knob TEXT, turn REAL)")
        other.close()
        with pytest.raises(UserError, match="has other columns"):
            open_engine(f"sqlite3://{path}")

    @pytest.mark.parametrize("create", [True, False])
    def test_folder(self, tmp_path: Path, create: bool) -> None:
        with pytest.raises(UserError, match="cannot be used as a metadata database"):
            open_engine(f"sqlite3://{tmp_path}", create=create)

    def test_folder_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot be used as a metadata database"):
            open_engine(f"sqlite3://{tmp_path}/no/meta.db", create=True)

    def test_two_volumes_in_a_file(self, engine: Sqlite3Engine, path: Path) -> None:
        with pytest.raises(UserError, match="jfs_two_setting"):
            open_engine(f"sqlite3://{path}?table_prefix=two")
        second = open_engine(f"sqlite3://{path}?table_prefix=two", create=True)
        run_inline(second.prepare())
        run_inline(run(second, put_root))
        assert run_inline(read(engine, root)) is None
        run_inline(second.close())

    def test_prepare_completes_an_older_database(self, engine: Sqlite3Engine, path: Path) -> None:
        other = sqlite3.connect(path)
        other.execute("DROP INDEX UQE_jfs_edge_edge")
        other.execute("ALTER TABLE jfs_node DROP COLUMN tier_id")
        other.execute("DROP TABLE jfs_change_log")
        other.close()
        run_inline(engine.prepare())
        run_inline(run(engine, put_root))
        assert run_inline(read(engine, root)) == Attr(TYPE_DIR, 0o755, nlink=2, length=4096, parent=1)
        run_inline(engine.prepare())

    def test_a_tolerated_extra_column_survives(self, engine: Sqlite3Engine, path: Path) -> None:
        run_inline(run(engine, put_root))
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("ALTER TABLE jfs_node ADD COLUMN colour TEXT NULL")
        other.execute("UPDATE jfs_node SET colour='red'")
        run_inline(run(engine, put_root))
        assert other.execute("SELECT colour FROM jfs_node").fetchall() == [("red",)]
        other.close()


class TestTransactions:
    async def test_body_that_fails_changes_nothing(self, engine: Sqlite3Engine) -> None:
        with pytest.raises(FsError):
            async with engine.transaction(write=True) as tx:
                await put_root(tx)
                raise FsError(2)
        assert await read(engine, root) is None

    async def test_cancelled_body_changes_nothing(self, engine: Sqlite3Engine) -> None:
        with trio.move_on_after(0.01):
            async with engine.transaction(write=True) as tx:
                await put_root(tx)
                await trio.sleep_forever()
        assert await read(engine, root) is None
        await run(engine, put_root)

    async def test_reader_keeps_its_snapshot(self, engine: Sqlite3Engine) -> None:
        async with engine.transaction(write=False) as old:
            assert await old.attr(1) is None
            await run(engine, put_root)
            assert await read(engine, root) is not None
            assert await old.attr(1) is None

    async def test_second_writer_conflicts_at_once(self, engine: Sqlite3Engine) -> None:
        async with engine.transaction(write=True) as first:
            await put_root(first)
            with pytest.raises(Conflict):
                async with engine.transaction(write=True):
                    pytest.fail("two writers at once")
        assert await read(engine, root) is not None

    async def test_connections_are_used_again(self, engine: Sqlite3Engine) -> None:
        for _ in range(3):
            async with engine.transaction(write=True), engine.transaction(write=False):
                assert not engine.idle
            assert len(engine.idle) == 2

    async def test_write_in_a_reading_transaction_of_a_busy_database(self, engine: Sqlite3Engine) -> None:
        async with engine.transaction(write=True) as first:
            await put_root(first)
            with pytest.raises(Conflict):
                async with engine.transaction(write=False) as second:
                    await put_root(second)

    async def test_slice_id_in_use(self, engine: Sqlite3Engine) -> None:
        with pytest.raises(CorruptRecord, match=r"chunk_ref\.chunkid"):
            async with engine.transaction(write=True) as tx:
                tx.new_slice(SliceRef(7, 100))
                tx.new_slice(SliceRef(7, 100))


class TestOtherWriters:
    async def test_busy_database_does_not_hold_up_the_loop(self, engine: Sqlite3Engine, path: Path) -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        longest = 0.0
        async with trio.open_nursery() as nursery:

            async def tick() -> None:
                nonlocal longest
                while True:
                    began = trio.current_time()
                    await trio.sleep(0.005)
                    longest = max(longest, trio.current_time() - began)

            nursery.start_soon(tick)
            nursery.start_soon(run, engine, put_root)
            await trio.sleep(0.5)
            assert await read(engine, root) is None, "readers do not wait for writers"
            other.execute("COMMIT")
            with trio.fail_after(30):
                while await read(engine, root) is None:
                    await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
        # Were SQLite to wait, it would do so for all of its timeout: the lock is let go of by this thread.
        assert [each.execute("PRAGMA busy_timeout").fetchone()[0] for each in engine.idle] == [0] * len(engine.idle)
        assert longest < OPEN_TIMEOUT_S / 2, "this process may lose its processor for a while"
        other.close()

    async def test_commits_of_others_are_seen(self, engine: Sqlite3Engine, path: Path) -> None:
        await run(engine, put_root)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("UPDATE jfs_node SET mode=448, rdev=NULL, parent=NULL, tier_id=NULL")
        other.execute("INSERT INTO jfs_edge (parent, name, inode, type) VALUES (1, X'ff61', 9, 1)")
        attr = await read(engine, root)
        assert attr == Attr(TYPE_DIR, 0o700, nlink=2, length=4096)

        async def names(tx: Transaction) -> list[tuple[bytes, Dentry]]:
            return await tx.dentries(1, None, 10)

        assert await read(engine, names) == [(b"\xffa", Dentry(TYPE_FILE, 9))]
        other.close()
