"""What `.stats` holds: the mount's figures, one `juicefs_NAME VALUE` a line, under the names that dashboards know."""

import os
import resource
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from jfs.chunk.stats import CacheCounts, ObjectCounts, StagingCounts
    from jfs.vfs.vfs import Vfs

_STARTED: Final = time.monotonic()
_PAGE: Final = resource.getpagesize()


def resident_bytes() -> int:
    """Memory that this process holds."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * _PAGE


def stats_text(vfs: "Vfs") -> bytes:
    """The figures now."""
    figures = _process() | _volume(vfs) | _data_path(vfs)
    for name, count in vfs.requests.items():
        figures[f"fuse_ops_total_{name}"] = count
    return "".join(f"juicefs_{name} {_shown(value)}\n" for name, value in figures.items()).encode()


def _shown(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:g}"


def _process() -> dict[str, float]:
    times = os.times()
    return {
        "uptime": time.monotonic() - _STARTED,
        "cpu_usage": times.user + times.system,
        "memory": resident_bytes(),
    }


def _volume(vfs: "Vfs") -> dict[str, float]:
    usage = vfs.meta.usage.statfs(vfs.meta.settings)
    return {
        "used_space": usage.used_space,
        "used_inodes": usage.used_inodes,
        "total_space": usage.total_space,
        "total_inodes": usage.used_inodes + usage.available_inodes,
    }


def _data_path(vfs: "Vfs") -> dict[str, float]:
    stats = vfs.blocks.stats
    figures: dict[str, float] = {
        "fuse_open_handlers": len(vfs.handles),
        "used_buffer_size_bytes": vfs.pool.used,
        "blockcache_hits": stats.hits,
        "blockcache_hit_bytes": stats.hit_bytes,
        "blockcache_miss": stats.misses,
        "blockcache_miss_bytes": stats.miss_bytes,
        "fingerprint_checks": stats.fingerprints_checked,
        "fingerprint_mismatches": stats.fingerprints_wrong,
        "fingerprint_mended": stats.fingerprints_mended,
        "object_request_uploading": stats.uploading,
        "object_request_errors": stats.get.errors + stats.put.errors + stats.delete.errors,
    }
    for method, counts in (("GET", stats.get), ("PUT", stats.put), ("DELETE", stats.delete)):
        figures |= _requests(method, counts)
    figures |= _cache(vfs.blocks.cache_counts())
    if vfs.blocks.staging is not None:
        figures |= _staging(vfs.blocks.staging.snapshot())
    return figures


def _cache(counts: "CacheCounts") -> dict[str, float]:
    return {
        "blockcache_blocks": counts.blocks,
        "blockcache_bytes": counts.bytes,
        "blockcache_writes": counts.writes,
        "blockcache_write_bytes": counts.write_bytes,
        "blockcache_evicts": counts.evicts,
        "blockcache_drops": counts.drops,
        "blockcache_read_hist_seconds_total": counts.reads,
        "blockcache_read_hist_seconds_sum": counts.read_seconds,
        "blockcache_write_hist_seconds_total": counts.writes,
        "blockcache_write_hist_seconds_sum": counts.write_seconds,
    }


def _staging(counts: "StagingCounts") -> dict[str, float]:
    return {
        "staging_blocks": counts.blocks,
        "staging_block_bytes": counts.bytes,
        "staging_block_oldest_seconds": counts.oldest_s,
        "staging_block_delay_seconds": counts.delay_s,
        "staging_block_errors": counts.errors,
        "staging_writing_blocks": counts.writing,
        "staging_write_bytes": counts.write_bytes,
    }


def _requests(method: str, counts: "ObjectCounts") -> dict[str, float]:
    return {
        f"object_request_data_bytes_{method}": counts.bytes,
        f"object_request_durations_histogram_seconds_{method}_total": counts.requests,
        f"object_request_durations_histogram_seconds_{method}_sum": counts.seconds,
    }
