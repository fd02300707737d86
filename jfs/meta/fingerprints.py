"""Whether a volume keeps fingerprints of its blocks, and what is done with those of its slices.

A slice's fingerprint is the xxh3-128 of each of its blocks' plain bytes, 16 bytes each, one after the other.  It is written
by the transaction that writes the slice's first record, never changes, and is removed with the slice.  Whoever does not
know of fingerprints (the peer) writes slices without and removes slices without theirs: the first are not checked, the
second are found by gc.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Final

from jfs.errors import CorruptRecord, UserError
from jfs.meta.run import read, run
from jfs.meta.transaction import Engine, Transaction
from jfs.meta.types import SliceRef

KIND: Final = b"xxh3-128"
BYTES: Final = 16
_PAGE: Final = 1000


async def kept(tx: Transaction) -> bool:
    """Whether the volume keeps fingerprints.  UserError where they are of a kind for newer clients only."""
    kind = await tx.fingerprinting()
    if kind not in (None, KIND):
        raise UserError(
            f"the volume's fingerprints are of the kind {kind!r}, this version knows {KIND.decode()}: upgrade the client"
        )
    return kind is not None


async def of_slices(tx: Transaction, refs: Collection[SliceRef], block_size: int) -> dict[SliceRef, bytes]:
    """The fingerprints of those slices that have any.  Raises CorruptRecord."""
    found = await tx.fingerprints(refs)
    for ref, value in found.items():
        wanted = BYTES * -(-ref.size // block_size)
        if len(value) != wanted:
            raise CorruptRecord(f"fingerprint {ref.id} {ref.size}", f"{len(value)} bytes, not {wanted}")
    return found


async def turn(engine: Engine, *, on: bool) -> bool:
    """Have new slices get fingerprints from now on, or none and drop those that are there; whether that is a change.

    Fingerprints that were left from before the volume was formatted anew would belong to other slices: they go first.
    """
    if await read(engine, kept) == on:
        return False
    if not on:
        await run(engine, _set_kind, None)
    async for page in all_slices(engine):
        await run(engine, _drop, page)
    if on:
        await run(engine, _set_kind, KIND)
    return True


async def drop(engine: Engine, refs: Sequence[SliceRef]) -> None:
    """Remove the fingerprints of these slices."""
    for start in range(0, len(refs), _PAGE):
        await run(engine, _drop, refs[start : start + _PAGE])


async def all_slices(engine: Engine) -> AsyncIterator[list[SliceRef]]:
    """The slices that have fingerprints, a page at a time; those of a page may be dropped before the next."""
    cursor: bytes | None = None
    while True:
        page, cursor = await read(engine, _page, cursor)
        yield page
        if cursor is None:
            return


async def _page(tx: Transaction, cursor: bytes | None) -> tuple[list[SliceRef], bytes | None]:
    return await tx.all_fingerprints(cursor, _PAGE)


async def _set_kind(tx: Transaction, kind: bytes | None) -> None:
    tx.put_fingerprinting(kind)


async def _drop(tx: Transaction, refs: Sequence[SliceRef]) -> None:
    for ref in refs:
        tx.delete_fingerprint(ref)
