"""A file system in plain Python, as POSIX and the peer's trash have it: what the real one is compared with.

Times, sizes on disk and storage are left out; bytes are cells of `CELL` bytes, each one number (0: zeros).
"""

import errno
from collections import Counter
from dataclasses import dataclass, field

from jfs.errors import FsError
from jfs.meta.types import CHUNK_SIZE, ROOT_INO, TYPE_DIR, TYPE_FILE, Ino

CELL = CHUNK_SIZE // 4
NOREPLACE, EXCHANGE = 1, 2

Name = tuple[Ino, bytes]


@dataclass
class Node:
    """An inode.  `home` is its only directory, 0 once it had several links."""

    ino: Ino
    type: int
    home: Ino
    mode: int = 0
    names: set[Name] = field(default_factory=set)
    target: bytes = b""
    cells: list[int] = field(default_factory=list)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    holder: int | None = None
    """The client for whose handles it lives on without a name."""


class Model:
    """Nodes by inode, directories' names, the trash's hours, and what each client has open."""

    def __init__(self, *, trash: bool) -> None:
        self.trash = trash
        self.nodes: dict[Ino, Node] = {ROOT_INO: Node(ROOT_INO, TYPE_DIR, ROOT_INO, 0o777)}
        self.dirs: dict[Ino, dict[bytes, Ino]] = {ROOT_INO: {}}
        self.hours: dict[bytes, Ino] = {}
        self.hour: Ino = 0
        self.opened: dict[int, Counter[Ino]] = {}

    # -- looking

    def files(self) -> list[Ino]:
        return [ino for ino, node in self.nodes.items() if node.type == TYPE_FILE]

    def in_trash(self, node: Node) -> bool:
        return node.home in self.hours.values()

    def subdirs(self, ino: Ino) -> int:
        return sum(self.nodes[child].type == TYPE_DIR for child in self.dirs[ino].values())

    def _target_dir(self, ino: Ino) -> dict[bytes, Ino]:
        """A directory that names can be added to."""
        if ino not in self.dirs or self.in_trash(self.nodes[ino]):
            raise FsError(errno.ENOENT)
        return self.dirs[ino]

    def _entry(self, parent: Ino, name: bytes) -> Node:
        if name not in self.dirs.get(parent, {}):
            raise FsError(errno.ENOENT)
        return self.nodes[self.dirs[parent][name]]

    def _contains(self, top: Ino, ino: Ino) -> bool:
        while ino != ROOT_INO:
            if ino == top:
                return True
            ino = self.nodes[ino].home
        return False

    def _require_free(self, parent: Ino, name: bytes) -> None:
        if name in self.dirs[parent]:
            raise FsError(errno.EEXIST)

    def _require_outside_trash(self, node: Node) -> None:
        if self.in_trash(node):
            raise FsError(errno.EPERM)

    # -- names

    def _put(self, parent: Ino, name: bytes, node: Node) -> None:
        self.dirs[parent][name] = node.ino
        node.names.add((parent, name))

    def _take(self, parent: Ino, name: bytes) -> Node:
        node = self.nodes[self.dirs[parent].pop(name)]
        node.names.discard((parent, name))
        return node

    def make(self, parent: Ino, name: bytes, ino: Ino, node_type: int, mode: int, target: bytes) -> None:
        self._target_dir(parent)
        self._require_free(parent, name)
        if node_type == TYPE_DIR:
            mode |= self.nodes[parent].mode & 0o2000
        node = self.nodes[ino] = Node(ino, node_type, parent, mode, target=target)
        if node_type == TYPE_DIR:
            self.dirs[ino] = {}
        self._put(parent, name, node)

    def link(self, ino: Ino, parent: Ino, name: bytes) -> None:
        self._target_dir(parent)
        node = self.nodes[ino]
        if node.type == TYPE_DIR:
            raise FsError(errno.EPERM)
        if not node.names:
            raise FsError(errno.ENOENT)
        self._require_outside_trash(node)
        self._require_free(parent, name)
        self._put(parent, name, node)
        node.home = 0

    def unlink(self, client: int, parent: Ino, name: bytes) -> None:
        if self._entry(parent, name).type == TYPE_DIR:
            raise FsError(errno.EPERM)
        self.drop(client, parent, name)

    def rmdir(self, client: int, parent: Ino, name: bytes) -> None:
        node = self._entry(parent, name)
        if node.type != TYPE_DIR:
            raise FsError(errno.ENOTDIR)
        if self.dirs[node.ino]:
            raise FsError(errno.ENOTEMPTY)
        self.drop(client, parent, name)

    def drop(self, client: int, parent: Ino, name: bytes) -> None:
        """A name is taken away: into the trash, or for good."""
        node = self._take(parent, name)
        if self.trash and parent not in self.hours.values():
            thrown = (b"%d-%d-%s" % (parent, node.ino, name))[:255]
            if not node.names or thrown not in self.dirs[self.hour]:
                self._put(self.hour, thrown, node)
                node.home = node.home and self.hour
                return
        if node.names:
            return
        if node.type == TYPE_FILE and self.opened[client][node.ino]:
            node.holder = client
            node.xattrs = {}
            return
        del self.nodes[node.ino]
        self.dirs.pop(node.ino, None)

    def rename(self, client: int, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int) -> None:
        if parent not in self.dirs or new_parent not in self.dirs:
            raise FsError(errno.ENOENT)
        node = self._entry(parent, name)
        if (parent, name) == (new_parent, new_name):
            return
        there = self._target_dir(new_parent).get(new_name)
        other = None if there is None else self.nodes[there]
        self._require_may_replace(node, other, flags)
        if other is node:
            return
        if parent != new_parent:
            if node.type == TYPE_DIR and self._contains(node.ino, new_parent):
                raise FsError(errno.EINVAL)
            if flags == EXCHANGE and other and other.type == TYPE_DIR and self._contains(other.ino, parent):
                raise FsError(errno.EINVAL)
        if other is not None and flags == EXCHANGE:
            self._move(new_parent, new_name, parent, name, self._take(parent, name))
            return
        if other is not None:
            if other.type == TYPE_DIR and self.dirs[other.ino]:
                raise FsError(errno.ENOTEMPTY)
            self.drop(client, new_parent, new_name)
        self._take(parent, name)
        self._arrive(new_parent, new_name, node)

    def _require_may_replace(self, node: Node, other: Node | None, flags: int) -> None:
        if other is None:
            if flags == EXCHANGE:
                raise FsError(errno.ENOENT)
        elif flags == NOREPLACE:
            raise FsError(errno.EEXIST)
        elif flags == 0 and (node.type == TYPE_DIR) != (other.type == TYPE_DIR):
            raise FsError(errno.ENOTDIR if node.type == TYPE_DIR else errno.EISDIR)

    def _move(self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, back: Node) -> None:
        """`name` goes to a free place, and `back` takes its."""
        self._arrive(new_parent, new_name, self._take(parent, name))
        self._arrive(parent, name, back)

    def _arrive(self, parent: Ino, name: bytes, node: Node) -> None:
        self._put(parent, name, node)
        node.home = node.home and parent

    # -- attributes and bytes

    def chmod(self, ino: Ino, mode: int) -> None:
        self._require_outside_trash(self.nodes[ino])
        self.nodes[ino].mode = mode

    def setxattr(self, ino: Ino, name: bytes, value: bytes | None) -> None:
        """Set it, or remove it."""
        node = self.nodes[ino]
        if value is None and name not in node.xattrs:
            raise FsError(errno.ENODATA)
        self._require_outside_trash(node)
        if value is None:
            del node.xattrs[name]
        else:
            node.xattrs[name] = value

    def write(self, ino: Ino, start: int, color: int, count: int) -> None:
        cells = self.nodes[ino].cells
        cells += [0] * (start + count - len(cells))
        cells[start : start + count] = [color] * count

    def truncate(self, ino: Ino, length: int, *, through_handle: bool) -> None:
        node = self.nodes[ino]
        if not through_handle:
            self._require_outside_trash(node)
        node.cells = (node.cells + [0] * (length - len(node.cells)))[:length]

    # -- clients

    def close(self, client: int, ino: Ino) -> None:
        counts = self.opened[client]
        counts[ino] -= 1
        if not counts[ino]:
            self._let_go(client, ino)

    def leave(self, client: int) -> None:
        """A client has ended."""
        for ino in self.opened.pop(client):
            self._let_go(client, ino)

    def _let_go(self, client: int, ino: Ino) -> None:
        node = self.nodes.get(ino)
        if node is not None and node.holder == client:
            del self.nodes[ino]

    # -- the trash

    def new_hour(self, name: bytes, ino: Ino) -> None:
        self.hours[name] = self.hour = ino
        self.dirs[ino] = {}

    def expire(self, client: int, hours: list[bytes]) -> None:
        for hour in hours:
            ino = self.hours[hour]
            for name in list(self.dirs[ino]):
                self.drop(client, ino, name)
            del self.dirs[ino], self.hours[hour]
