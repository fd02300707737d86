"""What the data path counts, for `.stats`."""

import msgspec


class ObjectCounts(msgspec.Struct):
    """Requests of one method to the object store."""

    requests: int = 0
    errors: int = 0
    bytes: int = 0
    seconds: float = 0.0


class ChunkStats(msgspec.Struct):
    """Counters since the mount; threads add to them without a lock, so they may lose a count and never lie by more."""

    hits: int = 0
    hit_bytes: int = 0
    misses: int = 0
    miss_bytes: int = 0
    uploading: int = 0
    fingerprints_checked: int = 0
    fingerprints_wrong: int = 0
    """Blocks whose bytes in the store are not those that were written."""
    fingerprints_mended: int = 0
    get: ObjectCounts = msgspec.field(default_factory=ObjectCounts)
    put: ObjectCounts = msgspec.field(default_factory=ObjectCounts)
    delete: ObjectCounts = msgspec.field(default_factory=ObjectCounts)


class StagingCounts(msgspec.Struct):
    """Staged blocks: what waits for its upload now, and counters since the mount."""

    blocks: int = 0
    bytes: int = 0
    writing: int = 0
    oldest_s: float = 0.0
    write_bytes: int = 0
    delay_s: float = 0.0
    """Seconds between staging and upload, added up over the blocks uploaded."""
    errors: int = 0


class CacheCounts(msgspec.Struct):
    """A cache's counters since the mount, and what it holds."""

    blocks: int = 0
    bytes: int = 0
    writes: int = 0
    write_bytes: int = 0
    evicts: int = 0
    drops: int = 0
    reads: int = 0
    """Reads of a folder's files that a thread did, and the seconds that they took; those from the page cache are not timed."""
    read_seconds: float = 0.0
    write_seconds: float = 0.0
