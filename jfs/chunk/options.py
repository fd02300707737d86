"""What can be set about a volume's data, by its settings and by the mount's options."""

import msgspec


class ChunkOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes are bytes, times are seconds.  `cache_dirs` empty: no disk cache; ["memory"]: a cache in memory."""

    block_size: int = 4 << 20
    compression: str = "none"
    hash_prefix: bool = False
    encrypted: bool = False
    uuid: str = ""
    loop_disk: int | None = None
    """The disk (st_dev) for which the event loop waits anyway, the metadata's; it waits for no other."""
    max_uploads: int = 20
    max_downloads: int = 200
    buffer_size: int = 300 << 20
    prefetch: int = 1
    cache_dirs: list[str] = []
    cache_size: int = 100 << 30
    cache_items: int = 0
    cache_mode: int = 0o600
    free_space_ratio: float = 0.1
    cache_eviction: str = "2-random"
    cache_expire: float = 0.0
    cache_scan_interval: float = 3600.0
    cache_partial_only: bool = False
    cache_large_write: bool = False
    verify_cache_checksum: str = "extend"
    read_only: bool = False
    writeback: bool = False
    upload_delay: float = 0.0
    upload_hours: str = ""
    max_stage_write: int = 1000
    writeback_threshold_size: int = 0
