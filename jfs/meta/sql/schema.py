"""The relational schema of a volume: tables, columns and indexes as JuiceFS creates them, and what a database lacks of it."""

from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple

_AUTO: Final = "INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL"
_KEY: Final = "INTEGER PRIMARY KEY NOT NULL"
_INT: Final = "INTEGER NOT NULL"
_INT_0: Final = "INTEGER DEFAULT 0 NOT NULL"
_INT_NULL: Final = "INTEGER NULL"
_BLOB: Final = "BLOB NOT NULL"
_BLOB_NULL: Final = "BLOB NULL"
_TEXT: Final = "TEXT NOT NULL"
_NAME_KEY: Final = "TEXT PRIMARY KEY NOT NULL"


class Index(NamedTuple):
    """An index over columns; its full name carries its kind and its table."""

    name: str
    columns: tuple[str, ...]
    unique: bool = True


class Table(NamedTuple):
    """A table by its name without the prefix; columns in the order of their creation."""

    name: str
    columns: dict[str, str]
    indexes: tuple[Index, ...] = ()
    primary_key: tuple[str, ...] = ()


_USAGE: Final = {"max_space": _INT, "max_inodes": _INT, "used_space": _INT, "used_inodes": _INT}

TABLES: Final = (
    Table("setting", {"name": _NAME_KEY, "value": _TEXT}),
    Table("counter", {"name": _NAME_KEY, "value": _INT}),
    Table(
        "edge",
        {"id": _AUTO, "parent": _INT, "name": _BLOB, "inode": _INT, "type": _INT},
        (Index("edge", ("parent", "name")), Index("inode", ("inode",), unique=False)),
    ),
    Table(
        "node",
        {"inode": _KEY}
        | dict.fromkeys(("type", "flags", "mode", "uid", "gid", "atime", "mtime", "ctime"), _INT)
        | dict.fromkeys(("atimensec", "mtimensec", "ctimensec"), _INT_0)
        | dict.fromkeys(("nlink", "length"), _INT)
        | dict.fromkeys(("rdev", "parent", "access_acl_id", "default_acl_id", "tier_id"), _INT_NULL),
    ),
    Table("symlink", {"inode": _KEY, "target": _BLOB}),
    Table(
        "xattr",
        {"id": _AUTO, "inode": _INT, "name": _TEXT, "value": _BLOB},
        (Index("name", ("inode", "name")),),
    ),
    Table(
        "chunk",
        {"id": _AUTO, "inode": _INT, "indx": _INT, "slices": _BLOB},
        (Index("chunk", ("inode", "indx")),),
    ),
    Table("chunk_ref", {"chunkid": _KEY, "size": _INT, "refs": _INT}, (Index("refs", ("refs",), unique=False),)),
    Table("delslices", {"chunkid": _KEY, "deleted": _INT, "slices": _BLOB}),
    Table("session2", {"sid": _KEY, "expire": _INT, "info": _BLOB_NULL}),
    Table("sustained", {"id": _AUTO, "sid": _INT, "inode": _INT}, (Index("sustained", ("sid", "inode")),)),
    Table("delfile", {"inode": _KEY, "length": _INT, "expire": _INT}),
    Table(
        "flock",
        {"id": _AUTO, "inode": _INT, "sid": _INT, "owner": _INT, "ltype": _INT},
        (Index("flock", ("inode", "sid", "owner")),),
    ),
    Table(
        "plock",
        {"id": _AUTO, "inode": _INT, "sid": _INT, "owner": _INT, "records": _BLOB},
        (Index("plock", ("inode", "sid", "owner")),),
    ),
    Table("dir_quota", {"inode": _KEY} | _USAGE),
    Table("user_group_quota", {"qtype": _INT, "qkey": _INT} | _USAGE, primary_key=("qtype", "qkey")),
    Table("dir_stats", {"inode": _KEY, "data_length": _INT, "used_space": _INT, "used_inodes": _INT}),
    Table("detached_node", {"inode": _KEY, "added": _INT}),
    Table(
        "acl",
        {"id": _AUTO}
        | dict.fromkeys(("owner", "group", "mask", "other"), _INT_NULL)
        | {"named_users": _BLOB_NULL, "named_groups": _BLOB_NULL},
    ),
    Table("delegation_token", {"id": _AUTO, "token": _BLOB_NULL}),
    Table("change_log", {"id": _AUTO, "entry": _TEXT}),
    # The only one that JuiceFS does not have, and never looks at.
    Table("fingerprint", {"chunkid": _KEY, "size": _INT, "value": _BLOB}),
)


def missing(prefix: str, tables: Mapping[str, Collection[str]], indexes: Collection[str]) -> Iterator[str]:
    """Statements that complete a database with these tables (and their columns) and these indexes."""
    for table in TABLES:
        name = prefix + table.name
        columns = tables.get(name)
        if columns is None:
            yield _create_table(name, table)
        else:
            for column, definition in table.columns.items():
                if column not in columns:
                    yield f"ALTER TABLE `{name}` ADD COLUMN `{column}` {definition}"
        for index in table.indexes:
            index_name = f"{'UQE' if index.unique else 'IDX'}_{name}_{index.name}"
            if index_name not in indexes:
                yield _create_index(index_name, name, index)


def _create_table(name: str, table: Table) -> str:
    parts = [f"`{column}` {definition}" for column, definition in table.columns.items()]
    if table.primary_key:
        parts.append(f"PRIMARY KEY ( {_quoted(table.primary_key)} )")
    return f"CREATE TABLE `{name}` ({', '.join(parts)})"


def _create_index(name: str, table: str, index: Index) -> str:
    unique = "UNIQUE " if index.unique else ""
    return f"CREATE {unique}INDEX `{name}` ON `{table}` ({_quoted(index.columns)})"


def _quoted(columns: tuple[str, ...]) -> str:
    return ",".join(f"`{column}`" for column in columns)
