"""Fingerprints of blocks: the xxh3-128 of a block's plain bytes, and where copies with the right bytes may lie.

A slice's fingerprint is those of its blocks, one after the other.  b"" stands for one that is not known.
"""

import logging
import os
from collections.abc import Iterator
from typing import Final

import xxhash

from jfs.chunk import checksum
from jfs.chunk.folders import STAGED
from jfs.chunk.options import ChunkOptions
from jfs.errors import BadObject
from jfs.object.store import Buffer

BYTES: Final = 16

log = logging.getLogger(__name__)


def fingerprint_of(data: Buffer) -> bytes:
    """Some 0.1 to 0.4 ms for 4 MiB; other threads go on meanwhile."""
    return xxhash.xxh3_128_digest(data)


def part_of(fingerprint: bytes, index: int) -> bytes:
    """Block `index`'s part of a slice's fingerprint."""
    return fingerprint[index * BYTES : (index + 1) * BYTES]


def require(key: str, block: Buffer, wanted: bytes) -> None:
    """BadObject unless these are the bytes that were written, as far as that is known."""
    if wanted and fingerprint_of(block) != wanted:
        raise BadObject(f"{key}: its bytes are not those that were written (other fingerprint)")


def right_copy(options: ChunkOptions, key: str, size: int, wanted: bytes) -> tuple[str, bytes] | None:
    """A staged or cached file that holds the block as it was written, and the block; None where there is none."""
    for path in _copies(options, key):
        try:
            data = checksum.read_part(path, size, 0, size, "full")
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("%s cannot be read: %s", path, error.strerror)
            continue
        if data is not None and fingerprint_of(data) == wanted:
            return path, data
    return None


def _copies(options: ChunkOptions, key: str) -> Iterator[str]:
    """Where the block may lie, whatever a cache's index knows of it."""
    for folder in options.cache_dirs:
        if folder != "memory":
            for kind in (STAGED, "raw"):
                yield f"{os.path.abspath(folder)}/{options.uuid}/{kind}/{key}"
