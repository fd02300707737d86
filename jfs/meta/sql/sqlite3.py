"""The embedded engine: a volume in an SQLite file, shared with other processes of this machine, the peer's among them.

Statements run inline on the thread of the caller (a lookup costs microseconds, a thread hop tens of them) and never wait:
where another process holds the write lock, the transaction is a `Conflict` at once and the retry loop does the waiting.
Commits go to the write-ahead log without a flush; `sync` makes them durable, `checkpoint` keeps the log short.  Both do
their work in threads, `checkpoint` on a connection of its own.
"""

import logging
import os
import re
import sqlite3
from errno import EIO, ENOSPC, EROFS
from types import TracebackType
from typing import Final, Self
from urllib.parse import parse_qsl, quote

from jfs.errors import Conflict, CorruptRecord, FsError, NotFormatted, UserError
from jfs.meta.sql import schema, wal_index
from jfs.meta.sql.durability import SyncRounds, WalFile
from jfs.meta.sql.statements import Statements
from jfs.meta.sql.transaction import SqlTransaction
from jfs.meta.sql.wal_index import WalIndex

log = logging.getLogger(__name__)

CHECKPOINT_BYTES: Final = 16 << 20
CACHE_KIB: Final = 32 << 10
CACHED_STATEMENTS: Final = 256
# Only for opening a database and for switching it to the log; transactions do not wait in SQLite at all.
OPEN_TIMEOUT_S: Final = 5.0
# Emptying the log holds the write lock until the last reader has left it: rather try again later.
TRUNCATE_TIMEOUT_S: Final = 0.05

_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT})
_ERRNO: Final = {
    sqlite3.SQLITE_FULL: ENOSPC,
    sqlite3.SQLITE_READONLY: EROFS,
    sqlite3.SQLITE_IOERR: EIO,
    sqlite3.SQLITE_CANTOPEN: EIO,
}
# Parameters of the peer's URL that tune its connection pool and its driver: nothing here corresponds to them.
_TUNING: Final = frozenset(
    {"max_open_conns", "max_idle_conns", "max_idle_time", "max_life_time", "cache", "_timeout", "_busy_timeout"}
)
_SYNCHRONOUS: Final = {"1": "NORMAL", "NORMAL": "NORMAL", "2": "FULL", "FULL": "FULL", "3": "EXTRA", "EXTRA": "EXTRA"}


def open_sqlite3(address: str, *, create: bool) -> "Sqlite3Engine":
    """The engine for the part of the URL after `sqlite3://`.  Raises UserError."""
    path, _, query = address.partition("?")
    if not path or path.startswith("file:"):
        raise UserError(f"sqlite3://{address}: a plain path is wanted, as in sqlite3:///var/lib/jfs/volume.db")
    prefix, synchronous = "jfs_", "NORMAL"
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "table_prefix":
            if not re.fullmatch(r"\w+", value, re.ASCII):
                raise UserError(f"table_prefix={value}: letters, digits and _ only")
            prefix = f"jfs_{value}_"
        elif name in ("_synchronous", "_sync"):
            if value.upper() not in _SYNCHRONOUS:
                raise UserError(f"{name}={value}: NORMAL, FULL or EXTRA")
            synchronous = _SYNCHRONOUS[value.upper()]
        elif name in ("_journal", "_journal_mode"):
            if value.upper() != "WAL":
                raise UserError(f"{name}={value}: only WAL is supported")
        elif name in _TUNING:
            log.warning("parameter %s of the meta URL has no effect here", name)
        else:
            raise UserError(f"unknown parameter {name} of a sqlite3 URL")
    return Sqlite3Engine(os.path.abspath(path), prefix=prefix, synchronous=synchronous, create=create)


def failure(error: sqlite3.Error) -> Exception:
    """What an error of SQLite means to the caller of a transaction; itself where it can only be a bug."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in _BUSY:
        return Conflict(str(error))
    if code in _DAMAGED:
        return CorruptRecord("database", str(error))
    if code in _ERRNO:
        log.error("the metadata database failed: %s", error)
        return FsError(_ERRNO[code])
    return error


class Sqlite3Transaction(SqlTransaction):
    """A transaction and its scope; it has its connection for itself."""

    __slots__ = ("_before", "_connection", "_engine", "_write")

    def __init__(self, engine: "Sqlite3Engine", connection: sqlite3.Connection, *, write: bool) -> None:
        super().__init__(connection.execute, engine.statements)
        self._engine = engine
        self._connection = connection
        self._write = write
        self._before = b""

    async def __aenter__(self) -> Self:
        try:
            # A writer takes the lock before its first read: turning a reader into a writer fails if anybody wrote since.
            self._connection.execute("BEGIN IMMEDIATE" if self._write else "BEGIN")
        except sqlite3.Error as error:
            self._engine.idle.append(self._connection)
            raise failure(error) from error
        index = self._engine.index
        if self._write and index is not None:
            self._before = index.look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        connection = self._connection
        try:
            if error is None:
                connection.execute("COMMIT")
                if self._write:
                    self._committed()
        except sqlite3.Error as refused:
            raise failure(refused) from refused
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._engine.idle.append(connection)
        if isinstance(error, sqlite3.Error):
            meaning = failure(error)
            if meaning is not error:
                raise meaning from error

    def _committed(self) -> None:
        engine = self._engine
        engine.commits += 1
        if engine.index is not None:
            engine.index.committed(self._before, self.changed)


class Sqlite3Engine:
    """One volume's database.  All but `sync` and `checkpoint` belongs to the thread that made it."""

    scheme = "sqlite3"
    inline = True

    def __init__(self, path: str, *, prefix: str = "jfs_", synchronous: str = "NORMAL", create: bool = False) -> None:
        self.path = path
        self.statements = Statements(prefix)
        self.idle: list[sqlite3.Connection] = []
        self.commits = 0
        self._prefix = prefix
        self._synchronous = synchronous
        self._wal = WalFile(os.path.realpath(path))  # SQLite follows links before it names its files
        self._checkpoint_at = CHECKPOINT_BYTES
        self._rounds = SyncRounds(self._wal.sync)
        self._synced_commits = -1
        self.index: WalIndex | None = None
        self.idle.append(self._open(create=create))

    def transaction(self, *, write: bool) -> Sqlite3Transaction:
        try:
            connection = self.idle.pop()
        except IndexError:
            connection = self._connect()
        return Sqlite3Transaction(self, connection, write=write)

    def watch(self) -> WalIndex | None:
        if self.index is None:
            self.index = wal_index.watch(self.path)
        return self.index

    def disk(self) -> int | None:
        return os.stat(self.path).st_dev

    async def open(self) -> None:
        """It is open since it was made."""

    async def prepare(self) -> None:
        connection = self.idle.pop()
        try:
            connection.execute("BEGIN IMMEDIATE")
            objects = _objects(connection)
            tables = {name: _columns(connection, name) for kind, name in objects if kind == "table"}
            indexes = {name for kind, name in objects if kind == "index"}
            for statement in schema.missing(self._prefix, tables, indexes):
                connection.execute(statement)
            connection.execute("COMMIT")
            self.commits += 1
        except sqlite3.Error as error:
            raise failure(error) from error
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self.idle.append(connection)

    async def sync(self) -> None:
        commits = self.commits
        if commits == self._synced_commits:
            return
        await self._rounds.join()
        self._synced_commits = max(self._synced_commits, commits)

    def wants_checkpoint(self) -> bool:
        return self._wal.size() >= self._checkpoint_at

    async def checkpoint(self) -> None:
        import trio  # not at the top: `jfs status` starts without it

        await trio.to_thread.run_sync(self._checkpoint)
        # Where readers kept the log from being emptied, the next attempt is due when it has grown by as much again.
        size = self._wal.size()
        self._checkpoint_at = CHECKPOINT_BYTES if size < CHECKPOINT_BYTES else size + CHECKPOINT_BYTES

    async def collect(self, now_s: int) -> None:
        """Nothing piles up."""

    async def close(self) -> None:
        while self.idle:
            self.idle.pop().close()
        if self.index is not None:
            self.index.close()
            self.index = None
        self._wal.close()

    def _checkpoint(self) -> None:
        """Copy what is committed without stopping anybody, then empty the log in a moment with little left to copy."""
        connection: sqlite3.Connection | None = None
        try:
            connection = self._connect()
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            connection.execute(f"PRAGMA busy_timeout={int(TRUNCATE_TIMEOUT_S * 1000)}")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            meaning = failure(error)
            if not isinstance(meaning, Conflict):
                raise meaning from error
        finally:
            if connection is not None:
                connection.close()

    def _connect(self, *, timeout: float = 0.0, mode: str = "rw") -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(self.path)}?mode={mode}",
            uri=True,
            timeout=timeout,
            isolation_level=None,
            cached_statements=CACHED_STATEMENTS,
        )
        # Text in these tables need not be UTF-8 (names of extended attributes, slices that the peer appended to).
        connection.text_factory = bytes
        connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        connection.execute(f"PRAGMA synchronous={self._synchronous}")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        return connection

    def _open(self, *, create: bool) -> sqlite3.Connection:
        """The first connection: look before changing anything, then see to it that the database has its log."""
        if not create and not os.path.exists(self.path):
            raise NotFormatted(f"{_NOT_FORMATTED}: {self.path} does not exist")
        connection = None
        try:
            connection = self._connect(timeout=OPEN_TIMEOUT_S, mode="rwc" if create else "rw")
            self._recognize(connection, create=create)
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
            connection.execute("PRAGMA busy_timeout=0")
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise UserError(f"{self.path} cannot be used as a metadata database: {error}") from error
            raise
        return connection

    def _recognize(self, connection: sqlite3.Connection, *, create: bool) -> None:
        """Refuse a database without a volume, or when creating one, a database of another program."""
        tables = {name for kind, name in _objects(connection) if kind == "table"}
        settings = f"{self._prefix}setting"
        if settings in tables:
            if not _columns(connection, settings) >= {"name", "value"}:
                raise UserError(f"{self.path} is not a database of a volume: table {settings} has other columns")
        elif tables and not any(name.startswith("jfs_") for name in tables):
            raise UserError(f"{self.path} is a database of another program, not of a volume")
        elif not create:
            raise NotFormatted(f"{_NOT_FORMATTED}: {self.path} has no table {settings}")


_NOT_FORMATTED: Final = "database is not formatted, please run `jfs format ...` first"


def _objects(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """(kind, name) of what the database has, but SQLite's own tables."""
    rows = connection.execute("SELECT type,name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    return [(kind.decode(), name.decode(errors="replace")) for kind, name in rows]


def _columns(connection: sqlite3.Connection, table: str) -> set[str]:
    return {name.decode() for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}
