"""From a meta URL to an engine.  Engines are imported when a URL asks for them."""

from typing import Final

from jfs.errors import UserError
from jfs.meta.transaction import Engine

PEER_SCHEMES: Final = frozenset(
    {"redis", "rediss", "unix", "tikv", "sqlite3", "etcd", "badger", "mysql", "postgres", "fdb", "memkv"}
)
# Schemes whose URL is a path on this machine: an `@` in it is a letter like any other.
LOCAL_SCHEMES: Final = frozenset({"sqlite3", "badger", "memkv", "fdb"})


def split_url(url: str) -> tuple[str, str]:
    """Scheme and the rest.  Without `://` it is an address of a Redis server."""
    scheme, separator, rest = url.partition("://")
    return (scheme, rest) if separator else ("redis", url)


def open_engine(url: str, *, create: bool = False) -> Engine:
    """The engine behind a meta URL.  Raises UserError; with `create` an embedded database that is missing is made."""
    scheme, rest = split_url(url)
    if scheme == "sqlite3":
        from jfs.meta.sql.sqlite3 import open_sqlite3

        return open_sqlite3(rest, create=create)
    if scheme == "tikv":
        from jfs.meta.kv.tikv import open_tikv

        return open_tikv(rest)
    if scheme == "memkv":
        from jfs.meta.kv.memory import MemoryEngine

        return MemoryEngine()
    if scheme in PEER_SCHEMES:
        raise UserError(f"engine {scheme} is not supported yet; supported: sqlite3, tikv")
    raise UserError(f"Invalid meta driver: {scheme}")


def mask_url(url: str) -> str:
    """The URL for logs and process titles: a password in it becomes `****`."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    if scheme in LOCAL_SCHEMES:
        return url
    login, at, address = rest.rpartition("@")
    user, colon, password = login.partition(":")
    if not (at and colon and password):
        return url
    return f"{scheme}{separator}{user}:****@{address}"
