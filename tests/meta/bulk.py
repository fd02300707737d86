"""Volumes of any size in seconds: inodes and names written past the transactions, as the format has them."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

from jfs.meta import schema
from jfs.meta.access import folder_attr
from jfs.meta.sql.rows import NODE_COLUMNS, node_row
from jfs.meta.types import ROOT_INO, TYPE_DIR, TYPE_FILE, Attr, Dentry, DirStat, Ino, charged_space
from tests.meta.volumes import START_NS
from tests.tikv.cluster import Cluster

FIRST_INO = 2


@dataclass(frozen=True)
class Folder:
    """A directory of the root with empty files in it, `file-00000000` and so on."""

    name: bytes
    ino: Ino
    count: int

    @property
    def attr(self) -> Attr:
        return folder_attr(0o777, ROOT_INO, START_NS)

    @property
    def file_attr(self) -> Attr:
        """That of each file."""
        return Attr(TYPE_FILE, 0o644, 0, 0, START_NS, START_NS, START_NS, parent=self.ino)

    @property
    def stat(self) -> DirStat:
        return DirStat(0, self.count * charged_space(0), self.count)

    def files(self) -> Iterator[tuple[bytes, Ino]]:
        """Names and inodes."""
        return ((file_name(number), self.ino + 1 + number) for number in range(self.count))


def file_name(number: int) -> bytes:
    return b"file-%08d" % number


def folders(*counts: int) -> list[Folder]:
    """Directories with so many files each, `dir-0` and so on."""
    made: list[Folder] = []
    ino = FIRST_INO
    for number, count in enumerate(counts):
        made.append(Folder(b"dir-%d" % number, ino, count))
        ino += count + 1
    return made


def counters(made: Sequence[Folder]) -> dict[str, int]:
    """The volume's books with these directories in it."""
    inodes = sum(folder.count + 1 for folder in made)
    return {"nextInode": FIRST_INO + inodes, "totalInodes": inodes, "usedSpace": inodes * charged_space(0)}


def root_attr(made: Sequence[Folder]) -> Attr:
    attr = folder_attr(0o777, ROOT_INO, START_NS)
    attr.nlink += len(made)
    return attr


def load_tikv(cluster: Cluster, prefix: str, made: Sequence[Folder]) -> None:
    """Into a volume that was just formatted."""
    head = prefix.encode() + b"\xfd"
    pairs = chain(_root_pairs(made), *(_folder_pairs(folder) for folder in made))
    cluster.control.load((head + key, value) for key, value in pairs)


def _root_pairs(made: Sequence[Folder]) -> Iterator[tuple[bytes, bytes]]:
    yield schema.attr_key(ROOT_INO), schema.encode_attr(root_attr(made))
    stat = DirStat(0, len(made) * charged_space(0), len(made))
    yield schema.dir_stat_key(ROOT_INO), schema.encode_dir_stat(stat)
    for name, value in counters(made).items():
        yield schema.counter_key(name), schema.encode_counter(name, value)
    for folder in made:
        yield schema.dentry_key(ROOT_INO, folder.name), schema.encode_dentry(Dentry(TYPE_DIR, folder.ino))


def _folder_pairs(folder: Folder) -> Iterator[tuple[bytes, bytes]]:
    yield schema.attr_key(folder.ino), schema.encode_attr(folder.attr)
    yield schema.dir_stat_key(folder.ino), schema.encode_dir_stat(folder.stat)
    attr = schema.encode_attr(folder.file_attr)
    for name, ino in folder.files():
        yield schema.dentry_key(folder.ino, name), schema.encode_dentry(Dentry(TYPE_FILE, ino))
        yield schema.attr_key(ino), attr


def load_sqlite(database: str, made: Sequence[Folder]) -> None:
    """Into a volume that was just formatted."""
    nodes = f"INSERT OR REPLACE INTO jfs_node (inode,{','.join(NODE_COLUMNS)}) VALUES (?{',?' * len(NODE_COLUMNS)})"
    edges = "INSERT INTO jfs_edge (parent,name,inode,type) VALUES (?,?,?,?)"
    stats = "INSERT OR REPLACE INTO jfs_dir_stats (inode,data_length,used_space,used_inodes) VALUES (?,?,?,?)"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA cache_size=-200000")
        connection.execute(nodes, (ROOT_INO, *node_row(root_attr(made))))
        connection.execute(stats, (ROOT_INO, 0, len(made) * charged_space(0), len(made)))
        for name, value in counters(made).items():
            connection.execute("UPDATE jfs_counter SET value=? WHERE name=?", (value, name))
        for folder in made:
            connection.execute(edges, (ROOT_INO, folder.name, folder.ino, TYPE_DIR))
            connection.execute(nodes, (folder.ino, *node_row(folder.attr)))
            connection.execute(stats, (folder.ino, 0, folder.stat.space, folder.stat.inodes))
            row = node_row(folder.file_attr)
            connection.executemany(nodes, ((ino, *row) for _, ino in folder.files()))
            connection.executemany(edges, ((folder.ino, name, ino, TYPE_FILE) for name, ino in folder.files()))
