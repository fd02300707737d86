"""`jfs status META-URL`: settings, sessions and usage, as JSON on stdout.

No event loop and no data path are imported: on an embedded engine the whole command takes a few dozen milliseconds.
"""

from typing import Any, Final

from jfs.commands import arguments
from jfs.errors import UserError
from jfs.meta import sessions, volume_format
from jfs.meta.run import read
from jfs.meta.settings import Settings, go_json
from jfs.meta.transaction import Engine, Transaction
from jfs.meta.types import TRASH_INO, TYPE_DIR
from jfs.volume import say_address, with_engine

FOREVER: Final = 1 << 62
PAGE: Final = 1000


@arguments.command("status", "META-URL", (1, 1))
@arguments.value("--session", "-s", kind=arguments.Whole(), text="show this session in detail")
@arguments.switch("--more", "-m", text="count what is in the trash and what waits for removal; takes longer")
def command(arguments: tuple[str, ...], *, session: int | None, more: bool) -> None:
    """Show the status of a volume."""
    say_address(arguments[0])
    shown = with_engine(arguments[0], lambda engine: _show(engine, session, more=more))
    print(go_json(shown, indent=2).decode())


async def _show(engine: Engine, session: int | None, *, more: bool) -> dict[str, Any]:
    try:
        settings = Settings.parse(await read(engine, volume_format.load_text))
    except UserError as error:
        raise UserError(f"get status: load setting: {error}") from None
    return await _one(engine, session) if session is not None else await _all(engine, settings, more=more)


async def _all(engine: Engine, settings: Settings, *, more: bool) -> dict[str, Any]:
    from jfs.meta.usage import Usage

    usage = Usage()
    await usage.load(engine)
    stat = usage.statfs(settings)
    figures: dict[str, Any] = {
        "UsedSpace": stat.used_space,
        "AvailableSpace": stat.available_space,
        "UsedInodes": stat.used_inodes,
        "AvailableInodes": stat.available_inodes,
    }
    if more:
        figures |= {name: number for name, number in (await read(engine, _pending)).items() if number}
    return {
        "Setting": settings.public(),
        "Sessions": [sessions.describe(each) for each in await read(engine, sessions.all_sessions)],
        "Stat": figures,
    }


async def _one(engine: Engine, sid: int) -> dict[str, Any]:
    shown = await read(engine, _session, sid)
    if shown is None:
        raise UserError(f"get session: session not found: {sid}")
    return shown


async def _session(tx: Transaction, sid: int) -> dict[str, Any] | None:
    found = await tx.session(sid)
    if found is None:
        return None
    shown = sessions.describe(found)
    if sustained := await tx.sustained(sid):
        shown["Sustained"] = sustained
    if flocks := await tx.flocks(sid):
        shown["Flocks"] = [{"Inode": each.ino, "Owner": each.owner, "Ltype": each.kind.decode()} for each in flocks]
    if plocks := await tx.plocks(sid):
        shown["Plocks"] = [
            {"Inode": each.ino, "Owner": each.owner, "Records": _records(each.records)} for each in plocks
        ]
    return shown


def _records(packed: bytes) -> list[dict[str, int]]:
    import struct

    names = ("Type", "Pid", "Start", "End")
    return [dict(zip(names, row, strict=True)) for row in struct.iter_unpack(">IIQQ", packed)]


async def _pending(tx: Transaction) -> dict[str, int]:
    """Trash, deleted files, delayed and dead slices: how many, how many bytes."""
    deleted = await tx.deleted_files(FOREVER, FOREVER)
    delayed = [ref for each in await tx.delayed_slices(FOREVER, FOREVER) for ref in each.slices]
    dead = await tx.dead_slices(FOREVER)
    files, size = await _trash(tx, TRASH_INO)
    return {
        "TrashFileCount": files,
        "TrashFileSize": size,
        "PendingDeletedFileCount": len(deleted),
        "PendingDeletedFileSize": sum(each.length for each in deleted),
        "TrashSliceCount": len(delayed),
        "TrashSliceSize": sum(ref.size for ref in delayed),
        "PendingDeletedSliceCount": len(dead),
        "PendingDeletedSliceSize": sum(ref.size for ref in dead),
    }


async def _trash(tx: Transaction, ino: int) -> tuple[int, int]:
    """Entries below a trash directory, and their bytes."""
    count = size = 0
    after: bytes | None = None
    while True:
        page = await tx.entries(ino, after, PAGE)
        for entry in page:
            if ino == TRASH_INO:
                inner = await _trash(tx, entry.dentry.ino)
                count, size = count + inner[0], size + inner[1]
                continue
            count += 1
            if entry.attr is not None and entry.dentry.type != TYPE_DIR:
                size += entry.attr.length
        if len(page) < PAGE:
            return count, size
        after = page[-1].name
