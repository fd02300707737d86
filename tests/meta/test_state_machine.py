"""Random histories of two clients on one volume, against a model; fsck's rules hold after every step."""

import errno
import itertools
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jfs.errors import FsError
from jfs.meta import files, jobs, slices
from jfs.meta.ahead import Ahead
from jfs.meta.check import check
from jfs.meta.client import ClientOptions, MetaClient
from jfs.meta.engines import open_engine
from jfs.meta.inodes import AttrChange
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.run import run
from jfs.meta.settings import Settings
from jfs.meta.slices import FILL, Segment, end_of, visible
from jfs.meta.transaction import Engine, Transaction
from jfs.meta.trash import hour_name, hour_of
from jfs.meta.types import (
    CHUNK_SIZE,
    ROOT,
    ROOT_INO,
    S_IFMT_OF,
    TRASH_INO,
    TYPE_DIR,
    TYPE_FIFO,
    TYPE_FILE,
    TYPE_SYMLINK,
    Ino,
    Slice,
)
from jfs.meta.volume_format import create_volume
from tests.meta.model import CELL, Model
from tests.meta.volumes import START_NS, Clock
from tests.tikv.cluster import Cluster

CLIENTS = st.integers(0, 1)
PICKS = st.integers(0, 30)
NAMES = st.sampled_from(["a", "b", "c", "long"])
TYPES = st.sampled_from([TYPE_FILE, TYPE_FILE, TYPE_DIR, TYPE_DIR, TYPE_SYMLINK, TYPE_FIFO])
MODES = st.sampled_from([0o644, 0o755, 0o4711, 0o2770])
XATTRS = st.sampled_from([b"user.a", b"user.b"])
VALUES = st.sampled_from([None, b"1", b"\0\xff"])
CELLS = st.integers(0, 9)
CELLS_IN_CHUNK = CHUNK_SIZE // CELL
HOUR_S = 3600
TREE = [
    (0, 0, "a", TYPE_DIR),
    (1, 0, "b", TYPE_DIR),
    (0, 1, "c", TYPE_DIR),
    (0, 0, "c", TYPE_FILE),
    (1, 1, "a", TYPE_FILE),
    (1, 2, "b", TYPE_SYMLINK),
]
"""Who makes what in which directory, before the history begins."""
CHORES = ["flush", "settle", "clean", "expire", "let hours pass", "reconnect", "crash", "lose a race"]


def as_name(label: str) -> bytes:
    """One that is cut in the trash, for "long"."""
    return b"\xff" * 255 if label == "long" else label.encode()


_volumes = itertools.count(1)


class Histories(RuleBasedStateMachine):
    """Each rule does one thing on the real volume and on the model, and expects the same outcome of both."""

    scheme = "memory"
    cluster: Cluster

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="jfs-histories-")
        self.clock = Clock()
        self.colors = 0
        self.blocks: dict[int, list[int]] = {}
        """What each stored slice holds, cell by cell."""
        self.settled = True
        self.aheads: dict[tuple[int, Ino], Ahead] = {}
        """Transactions that clients have begun for writes to come."""

    # -- the real volume

    @initialize(trash_days=st.integers(0, 1))
    def format(self, trash_days: int) -> None:
        self.model = Model(trash=trash_days > 0)
        trio.run(self._format, trash_days)
        for client, pick, label, node_type in TREE:
            self.make(client=client, pick=pick, label=label, node_type=node_type, mode=0o755)
        for label in ("f", "g"):
            self.link(client=0, pick=4, parent_pick=2, label=label)

    async def _format(self, trash_days: int) -> None:
        self.engine: Engine = MemoryEngine()
        if self.scheme == "sqlite3":
            self.engine = open_engine(f"sqlite3://{self.folder}/meta.db", create=True)
        elif self.scheme == "tikv":
            self.engine = open_engine(self.cluster.url(f"history{next(_volumes)}"))
        volume = Settings.fresh("testvol", bucket="/tmp/none/")
        volume.trash_days = trash_days
        await self.engine.prepare()
        await run(self.engine, create_volume, volume, START_NS)
        self.clients = [await self._connect(number) for number in range(2)]
        observer = ClientOptions(read_only=True)
        self.observer = await MetaClient.connect(self.engine, observer, now_ns=lambda: self.clock.ns + 10**18)

    async def _connect(self, number: int) -> MetaClient:
        client = await MetaClient.connect(self.engine, ClientOptions(), now_ns=self.clock)
        await client.start_session()
        self.model.opened[number] = Counter()
        return client

    def both(self, real: Callable[[], Awaitable[object]], model: Callable[[Any], object]) -> None:
        """Do it on the volume, then on the model, which gets the result; or both refuse, with one errno."""
        self.settled = False
        result: Any = None
        try:
            result, refused = trio.run(real), 0
        except FsError as error:
            refused = error.errno
        trio.run(self._see_new_hours)
        expected = 0
        try:
            model(result)
        except FsError as error:
            expected = error.errno
        assert refused == expected, f"{_text(refused)} instead of {_text(expected)}"

    async def _see_new_hours(self) -> None:
        for entry in await self.observer.readdir(ROOT, TRASH_INO, None, 100) if self.model.trash else ():
            if entry.name not in self.model.hours:
                assert entry.name == hour_name(self.clock.ns)
                self.model.new_hour(entry.name, entry.dentry.ino)

    # -- picking from what there is

    def a_dir(self, pick: int) -> Ino:
        """A directory, sometimes one in the trash or one that is no more."""
        hours = self.model.hours.values()
        dirs = [ino for ino in self.model.dirs if ino not in hours]
        return [*dirs, *dirs, 10**6][pick % (2 * len(dirs) + 1)]

    def a_name(self, pick: int) -> tuple[Ino, bytes]:
        """A name that exists outside the trash, mostly."""
        hours = self.model.hours.values()
        names = [(ino, name) for ino, content in self.model.dirs.items() if ino not in hours for name in content]
        return [*names, (ROOT_INO, b"a")][pick % (len(names) + 1)]

    def a_node(self, pick: int) -> Ino:
        return list(self.model.nodes)[pick % len(self.model.nodes)]

    def a_file(self, pick: int) -> Ino:
        files = self.model.files()
        return files[pick % len(files)]

    def has_files(self) -> bool:
        return bool(self.model.files())

    # -- names

    @rule(client=CLIENTS, pick=PICKS, label=NAMES, node_type=TYPES, mode=MODES)
    def make(self, client: int, pick: int, label: str, node_type: int, mode: int) -> None:
        parent, name = self.a_dir(pick), as_name(label)
        target = b"target" if node_type == TYPE_SYMLINK else b""
        user = self.clients[client]
        if node_type == TYPE_SYMLINK:
            mode = 0o777
            real = partial(user.symlink, ROOT, parent, name, target)
        elif node_type == TYPE_DIR:
            real = partial(user.mkdir, ROOT, parent, name, mode)
        else:
            real = partial(user.mknod, ROOT, parent, name, S_IFMT_OF[node_type] | mode, 0)
        self.both(real, lambda made: self.model.make(parent, name, made.ino if made else -1, node_type, mode, target))

    @rule(client=CLIENTS, pick=PICKS, parent_pick=PICKS, label=NAMES)
    def link(self, client: int, pick: int, parent_pick: int, label: str) -> None:
        ino, parent, name = self.a_node(pick), self.a_dir(parent_pick), as_name(label)
        self.both(
            partial(self.clients[client].link, ROOT, ino, parent, name),
            lambda _: self.model.link(ino, parent, name),
        )

    @rule(client=CLIENTS, pick=PICKS, mistaken=st.sampled_from([False, False, False, True]))
    def remove(self, client: int, pick: int, mistaken: bool) -> None:
        """unlink or rmdir, the right one or the other."""
        name = self.a_name(pick)
        is_dir = self.model.dirs[name[0]].get(name[1]) in self.model.dirs
        user = self.clients[client]
        if is_dir != mistaken:
            self.both(partial(user.rmdir, ROOT, *name), lambda _: self.model.rmdir(client, *name))
        else:
            self.both(partial(user.unlink, ROOT, *name), lambda _: self.model.unlink(client, *name))

    @rule(client=CLIENTS, pick=PICKS, new_pick=PICKS, label=NAMES, flags=st.integers(0, 2))
    def rename(self, client: int, pick: int, new_pick: int, label: str, flags: int) -> None:
        names = (*self.a_name(pick), self.a_dir(new_pick), as_name(label))
        self._rename(client, names, flags)

    @rule(client=CLIENTS, pick=PICKS, new_pick=PICKS, flags=st.sampled_from([0, 2]))
    def rename_over(self, client: int, pick: int, new_pick: int, flags: int) -> None:
        self._rename(client, (*self.a_name(pick), *self.a_name(new_pick)), flags)

    def _rename(self, client: int, names: tuple[Ino, bytes, Ino, bytes], flags: int) -> None:
        self.both(
            partial(self.clients[client].rename, ROOT, *names, flags),
            lambda _: self.model.rename(client, *names, flags),
        )

    # -- attributes

    @rule(client=CLIENTS, pick=PICKS, mode=MODES)
    def chmod(self, client: int, pick: int, mode: int) -> None:
        ino = self.a_node(pick)
        self.both(
            partial(self.clients[client].setattr, ROOT, ino, AttrChange(mode=mode)),
            lambda _: self.model.chmod(ino, mode),
        )

    @rule(client=CLIENTS, pick=PICKS, name=XATTRS, value=VALUES)
    def xattr(self, client: int, pick: int, name: bytes, value: bytes | None) -> None:
        ino = self.a_node(pick)
        user = self.clients[client]
        if value is None:
            real = partial(user.removexattr, ROOT, ino, name)
        else:
            real = partial(user.setxattr, ROOT, ino, name, value, 0)
        self.both(real, lambda _: self.model.setxattr(ino, name, value))

    # -- bytes

    @precondition(has_files)
    @rule(client=CLIENTS, pick=PICKS, start=CELLS, count=st.integers(1, 6))
    def write(self, client: int, pick: int, start: int, count: int) -> None:
        ino = self.a_file(pick)
        self.colors += 1
        real = partial(self._write, self.clients[client], ino, start, count, self.aheads.pop((client, ino), None))
        self.both(real, lambda _: self.model.write(ino, start, self.colors, count))

    async def _write(self, client: MetaClient, ino: Ino, start: int, count: int, ahead: Ahead | None) -> None:
        """A slice for each chunk that the range touches."""
        while count:
            index, cell = divmod(start, CELLS_IN_CHUNK)
            here = min(count, CELLS_IN_CHUNK - cell)
            slice_id = await client.new_slice_id()
            self.blocks[slice_id] = [self.colors] * here
            record = Slice(cell * CELL, slice_id, here * CELL, 0, here * CELL)
            await client.grow(files.write_slice, ino, index, record, self.clock(), self.clock(), ahead=ahead)
            ahead = None
            start += here
            count -= here

    @precondition(has_files)
    @rule(client=CLIENTS, pick=PICKS)
    def begin_ahead(self, client: int, pick: int) -> None:
        """The client's next write of this file reads the volume as it is now."""
        if isinstance(self.engine, MemoryEngine):  # on a cluster, no connection outlives a step
            ino = self.a_file(pick)
            self.aheads[client, ino] = trio.run(self._begin_ahead, ino)

    async def _begin_ahead(self, ino: Ino) -> Ahead:
        ahead = Ahead(self.engine, partial(files.foresee_slices, ino=ino, index=0))
        await ahead.begin()
        return ahead

    @precondition(has_files)
    @rule(client=CLIENTS, pick=PICKS, length=CELLS)
    def truncate(self, client: int, pick: int, length: int) -> None:
        ino = self.a_file(pick)
        opened = self.clients[client].is_open(ino)
        self.both(
            partial(self.clients[client].truncate, ROOT, ino, length * CELL, opened=opened),
            lambda _: self.model.truncate(ino, length, through_handle=opened),
        )

    @precondition(has_files)
    @rule(client=CLIENTS, pick=PICKS, index=st.integers(0, 2), fill=st.sampled_from([FILL, CHUNK_SIZE]))
    def compact(self, client: int, pick: int, index: int, fill: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slices, "FILL", fill)
            trio.run(self._compact, self.clients[client], self.a_file(pick), index)

    async def _compact(self, client: MetaClient, ino: Ino, index: int) -> None:
        plan = await client.compaction_candidate(ino, index)
        if plan is None:
            return
        ids = [await client.new_slice_id() for _ in range(plan.ids)]
        for part, new in zip(plan.parts, plan.written(ids), strict=True):
            self.blocks[new.id] = self._merged(part)
        for ref in await client.commit_compaction(plan, ids):
            client.deleted.put(ref)

    def _merged(self, part: list[Segment]) -> list[int]:
        end = -(-end_of(part[-1]) // CELL)
        return self._colors(part, 0)[part[0].pos // CELL : end]

    def _colors(self, pieces: Sequence[Slice], sample: int) -> list[int]:
        """What a chunk holds at byte `sample` of each cell."""
        colors = [0] * CELLS_IN_CHUNK
        for piece in pieces:
            for cell in range(CELLS_IN_CHUNK):
                inside = cell * CELL + sample - piece.pos
                if piece.id and 0 <= inside < piece.length:
                    colors[cell] = self.blocks[piece.id][(piece.offset + inside) // CELL]
        return colors

    def clean(self, client: int) -> None:
        trio.run(self._clean, self.clients[client])

    async def _clean(self, client: MetaClient) -> None:
        """Remove the blocks of what is queued; whatever still needs one of them fails from now on."""
        while (item := client.deleted.take()) is not None:
            dead = [ref async for ref in client.release_chunks(item)] if hasattr(item, "ino") else [item]
            for ref in dead:
                self.blocks.pop(ref.id, None)
                await client.forget_slice(ref)

    # -- open files and sessions

    @precondition(has_files)
    @rule(client=CLIENTS, pick=PICKS)
    def open(self, client: int, pick: int) -> None:
        ino = self.a_file(pick)
        trio.run(self.clients[client].open, ROOT, ino, os.O_RDONLY)
        self.model.opened[client][ino] += 1

    @rule(client=CLIENTS, pick=PICKS)
    def close(self, client: int, pick: int) -> None:
        opened = [ino for ino, count in self.model.opened[client].items() if count]
        if opened:
            ino = opened[pick % len(opened)]
            self.both(partial(self.clients[client].close, ino), lambda _: self.model.close(client, ino))

    def reconnect(self, number: int) -> None:
        """A clean unmount, and a mount."""
        self.both(self.clients[number].close_session, lambda _: self.model.leave(number))
        self.clients[number] = trio.run(self._connect, number)

    def crash(self, number: int) -> None:
        """A client is gone; the other one notices after a while.  (What it has not flushed would be lost.)"""
        self.both(partial(self._crash, number), lambda _: self.model.leave(number))
        self.clients[number] = trio.run(self._connect, number)

    async def _crash(self, number: int) -> None:
        other = self.clients[1 - number]
        await self.clients[number].flush_usage(last=True)
        self.clock.advance(600)
        await other.refresh_session()
        await other.clean_stale_sessions()

    @rule(client=CLIENTS, what=st.sampled_from(CHORES))
    def do_chore(self, client: int, what: str) -> None:
        chores: dict[str, Callable[[int], None]] = {
            "flush": self.flush,
            "settle": self.settle,
            "clean": self.clean,
            "expire": self.expire,
            "let hours pass": self.hours_pass,
            "reconnect": self.reconnect,
            "crash": self.crash,
            "lose a race": self.lose_a_race,
        }
        chores[what](client)

    def lose_a_race(self, client: int) -> None:
        """One of the next commits, of whichever client, has to run again."""
        if isinstance(self.engine, MemoryEngine):
            self.engine.fail_commits(1 + client)

    # -- trash and jobs

    def has_trash(self) -> bool:
        return any(self.model.dirs[hour] for hour in self.model.hours.values())

    def trashed(self, pick: int) -> tuple[Ino, bytes]:
        names = [(hour, name) for hour in self.model.hours.values() for name in self.model.dirs[hour]]
        return names[pick % len(names)]

    @precondition(has_trash)
    @rule(client=CLIENTS, pick=PICKS, new_pick=PICKS, label=NAMES)
    def restore(self, client: int, pick: int, new_pick: int, label: str) -> None:
        self._rename(client, (*self.trashed(pick), self.a_dir(new_pick), as_name(label)), 1)

    @precondition(has_trash)
    @rule(client=CLIENTS, pick=PICKS)
    def empty_trash(self, client: int, pick: int) -> None:
        hour, name = self.trashed(pick)
        user = self.clients[client]
        remove = user.rmdir if self.model.dirs[hour][name] in self.model.dirs else user.unlink
        self.both(partial(remove, ROOT, hour, name), lambda _: self.model.drop(client, hour, name))

    def hours_pass(self, client: int) -> None:
        self.clock.advance(HOUR_S)
        for user in self.clients:
            trio.run(user.refresh_session)

    def expire(self, client: int) -> None:
        """The hourly jobs, with no patience for what lies in the trash."""
        now_s = self.clock.ns // 10**9
        before = now_s // HOUR_S * HOUR_S
        over = [name for name in self.model.hours if (hour_of(name) or 0) < before]
        self.both(
            partial(self._expire, self.clients[client], before, now_s),
            lambda _: self.model.expire(client, over),
        )

    async def _expire(self, client: MetaClient, before: int, now_s: int) -> None:
        await jobs.expire_trash(client, before)
        async for ref in jobs.expire_delayed(client, now_s + 1):
            client.deleted.put(ref)
        await jobs.find_deleted_files(client, now_s + 1)
        await jobs.find_dead_slices(client)

    def flush(self, client: int) -> None:
        trio.run(self.clients[client].flush_usage)

    def settle(self, client: int) -> None:
        """Book everything; in two rounds, as what one client took away may be what the other has not booked yet."""
        for client in self.clients * 2:
            trio.run(client.flush_usage)
        self.settled = True

    # -- what must hold

    @invariant()
    def is_the_models(self) -> None:
        trio.run(self._compare)

    async def _compare(self) -> None:
        for ino, content in self.model.dirs.items():
            page = await self.observer.readdir(ROOT, ino, None, 1000)
            assert [(entry.name, entry.dentry.ino) for entry in page] == sorted(content.items())
        for ino, node in self.model.nodes.items():
            attr = await self.observer.getattr(ino)
            nlink = 2 + self.model.subdirs(ino) if node.type == TYPE_DIR else len(node.names)
            assert (attr.type, attr.nlink, attr.mode, attr.parent) == (node.type, nlink, node.mode, node.home)
            xattrs = {name: await self.observer.getxattr(ino, name) for name in await self.observer.listxattr(ino)}
            assert xattrs == node.xattrs
            if node.type == TYPE_SYMLINK:
                assert await self.observer.readlink(ino) == node.target
            if node.type == TYPE_FILE:
                assert attr.length == len(node.cells) * CELL
                assert await self._read(ino, len(node.cells)) == node.cells

    async def _read(self, ino: Ino, length: int) -> list[int]:
        cells: list[int] = []
        for index in range((length + CELLS_IN_CHUNK - 1) // CELLS_IN_CHUNK):
            pieces = visible(await self.observer.read_chunk(ino, index))
            first, last = self._colors(pieces, 0), self._colors(pieces, CELL - 1)
            assert first == last
            cells += first
        return cells[:length]

    @invariant()
    def is_consistent(self) -> None:
        trio.run(self._check)

    async def _check(self) -> None:
        ignored = {"session"} if self.settled else {"session", "usage", "dir stat"}
        found = [finding.message async for finding in check(self.observer) if finding.kind not in ignored]
        assert not found, "; ".join(found)

    def teardown(self) -> None:
        try:
            trio.run(self._end)
        finally:
            shutil.rmtree(self.folder)

    async def _end(self) -> None:
        """Whatever happened, no record and no slice is left that nobody needs."""
        if not hasattr(self, "clients"):
            return
        self.clock.advance(2 * HOUR_S)
        for client in self.clients:
            await client.close_session()
        last = await self._connect(0)
        now_s = self.clock.ns // 10**9
        await self._expire(last, now_s, now_s)
        await self._clean(last)
        await last.flush_usage(last=True)
        self.settled = True
        await self._check()
        needed, _ = await run(self.engine, _needed_slices, write=False)
        assert self.blocks.keys() == needed
        inodes, _ = await run(self.engine, _inodes, write=False)
        assert await self._inodes_with_records() <= inodes
        await self.engine.close()

    async def _inodes_with_records(self) -> set[Ino]:
        """Whom attributes, names, links, chunks, targets, extended attributes and statistics belong to."""
        if self.scheme != "sqlite3":
            keys = await _keys(self.engine)
            return {int.from_bytes(key[1:9], "little") for key in keys if key[:1] in b"AU" and len(key) >= 9}
        connection = sqlite3.connect(f"{self.folder}/meta.db")
        columns = ["node.inode", "edge.parent", "edge.inode", "chunk.inode", "symlink.inode"]
        columns += ["xattr.inode", "dir_stats.inode"]
        found: set[Ino] = set()
        for table, column in (name.split(".") for name in columns):
            found.update(ino for (ino,) in connection.execute(f"SELECT {column} FROM jfs_{table}"))
        connection.close()
        return found


async def _keys(engine: Engine) -> list[bytes]:
    async with engine.transaction(write=False) as tx:
        return [key for key, _ in await tx.kv.scan(b"", b"\xff")]


async def _inodes(tx: Transaction) -> set[Ino]:
    attrs, cursor = await tx.all_attrs(None, 100_000)
    assert cursor is None
    return {ino for ino, _ in attrs}


async def _needed_slices(tx: Transaction) -> set[int]:
    chunks, cursor = await tx.all_chunks(None, 100_000)
    assert cursor is None
    return {record.id for _, _, records in chunks for record in records if record.id}


def _text(code: int) -> str:
    return errno.errorcode.get(code, "success")


class HistoriesOnSqlite3(Histories):
    """The same on the relational model."""

    scheme = "sqlite3"


class HistoriesOnTikv(Histories):
    """The same on a cluster, where every transaction can lose a race."""

    scheme = "tikv"


@pytest.mark.timeout(600)  # a failure is made small before it is shown
@pytest.mark.parametrize(("machine", "histories"), [(Histories, 120), (HistoriesOnSqlite3, 50), (HistoriesOnTikv, 15)])
def test_random_histories(machine: type[Histories], histories: int, request: pytest.FixtureRequest) -> None:
    if machine is HistoriesOnTikv:
        machine.cluster = request.getfixturevalue("tikv_cluster")
    profile = settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=histories,
        stateful_step_count=50,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=profile)
