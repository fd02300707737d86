"""Making a volume and changing its settings.  Usable without an event loop on engines that answer inline."""

from typing import Final

from jfs.errors import NotFormatted, UserError
from jfs.meta.access import folder_attr
from jfs.meta.settings import Settings
from jfs.meta.transaction import Transaction
from jfs.meta.types import ROOT_INO, TRASH_INO, DirStat

FIXED_FIELDS: Final = {
    "name": "name",
    "block_size": "block size",
    "compression": "compression",
    "shards": "shards",
    "hash_prefix": "hash prefix",
    "meta_version": "metadata version",
}
FIRST_COUNTERS: Final = {
    "nextInode": 2,
    "nextChunk": 1,
    "nextSession": 0,
    "usedSpace": 0,
    "totalInodes": 0,
    "nextCleanupSlices": 0,
}
_PAGE: Final = 1000


async def load_text(tx: Transaction) -> bytes:
    """The volume's settings as stored.  UserError where nothing is formatted."""
    text = await tx.settings()
    if text is None:
        raise NotFormatted("database is not formatted, please run `jfs format ...` first")
    return text


async def load_settings(tx: Transaction) -> Settings:
    """The volume's settings.  UserError where nothing is formatted, or for newer clients only."""
    return Settings.parse(await load_text(tx))


async def create_volume(tx: Transaction, settings: Settings, now_ns: int) -> None:
    """Write the first records of a new volume.  UserError where there is one already."""
    if await tx.settings() is not None:
        raise UserError("the database is formatted already")
    tx.put_attr(ROOT_INO, folder_attr(0o777, ROOT_INO, now_ns))
    if settings.trash_days > 0:
        tx.put_attr(TRASH_INO, folder_attr(0o555, ROOT_INO, now_ns))
    if settings.dir_stats:
        tx.put_dir_stat(ROOT_INO, DirStat())  # or several first clients would each count what the others still book
    for name, value in FIRST_COUNTERS.items():
        tx.put_counter(name, value)
    tx.put_settings(settings.text())


async def update_settings(tx: Transaction, settings: Settings, now_ns: int, *, force: bool = False) -> Settings:
    """Replace the volume's settings; the new ones as stored.  The UUID stays.

    UserError for a change of what the data's layout depends on, unless forced.
    """
    old = await load_settings(tx)
    if not force:
        require_compatible(old, settings)
    settings.uuid = old.uuid
    if settings.trash_days > 0 and await tx.attr(TRASH_INO) is None:
        tx.put_attr(TRASH_INO, folder_attr(0o555, ROOT_INO, now_ns))
    if settings.dir_stats and not old.dir_stats:
        await _drop_dir_stats(tx)
    tx.put_settings(settings.text())
    return settings


def require_compatible(old: Settings, new: Settings) -> None:
    """UserError that names the first field which cannot change once a volume is made."""
    for field, label in FIXED_FIELDS.items():
        before, after = getattr(old, field), getattr(new, field)
        if before != after:
            raise UserError(f"cannot update volume {label} from {before} to {after}")
    if old.enable_acl and not new.enable_acl:
        raise UserError("cannot disable acl")


async def _drop_dir_stats(tx: Transaction) -> None:
    """Statistics that nobody has kept up to date would be wrong: those that are missing are counted afresh."""
    cursor: bytes | None = None
    stale = []
    while True:
        page, cursor = await tx.all_dir_stats(cursor, _PAGE)
        stale += [ino for ino, _ in page]
        if cursor is None:
            break
    for ino in stale:
        tx.delete_dir_stat(ino)
