"""What the options of one mount say together: what cannot be is refused, and what does nothing is told."""

import glob
import logging
import math
import os
import re
from collections.abc import Container, Iterable
from typing import Any, Final

import msgspec

from jfs.chunk.cache import FALLBACK_BYTES, parse_cache_dirs, split_cache_dirs
from jfs.chunk.hours import parse_hours
from jfs.commands.arguments import warn_of_value
from jfs.errors import UserError
from jfs.meta.engines import split_url
from jfs.meta.settings import Settings
from jfs.units import show_size
from jfs.volume import LOCAL_STORES, default_cache_dir, default_folders, is_staged_in, staging_path

log = logging.getLogger(__name__)

CACHE_MODE: Final = re.compile("0?[0-7]{3}")
HOURS: Final = "two different hours from 0 to 23 are wanted, such as 23,5"

WRITEBACK: Final = ("writeback_threshold_size", "max_stage_write", "upload_delay", "upload_hours")
DISK_CACHE: Final = ("cache_mode", "free_space_ratio", "verify_cache_checksum", "cache_scan_interval")
"""What a cache in memory has not."""
CACHE: Final = (
    "cache_items",
    "cache_eviction",
    "cache_expire",
    "cache_partial_only",
    "cache_large_write",
    *DISK_CACHE,
)
WORDS: Final = frozenset({"uid", "gid", "fsname", "subtype", "allow_root", "debug", "strictatime"})
"""Words of `-o` that ask for something, of other file systems; those that mount(8) adds by itself are not among them."""
REMOTE: Final = ("storage_class", "get_timeout", "put_timeout")


def check_numbers(options: dict[str, Any]) -> None:
    """Turn the options that are written in a notation of their own into numbers.  UserError, also for those that contradict
    each other; what makes no sense is a warning, and something else is used (see `arguments.Size`)."""
    options["cache_mode"] = _cache_mode(options["cache_mode"])
    options["free_space_ratio"] = _free_space_ratio(options["free_space_ratio"])
    options["upload_hours"] = _upload_hours(options["upload_hours"])
    if options["writeback"] and (options["cache_dir"] == "memory" or not options["cache_size"]):
        raise UserError(
            "--writeback keeps blocks in a cache folder: not with --cache-dir memory or --cache-size 0; "
            "without --writeback they go to the store at once"
        )
    if options["cache_dir"] and options["cache_dir"] != "memory":
        _check_folders(options)


def _cache_mode(text: str) -> int:
    if CACHE_MODE.fullmatch(text):
        return int(text, 8)
    warn_of_value(text, "cache-mode", "octal permissions are wanted", "0600 is used")
    return 0o600


def _free_space_ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if math.isnan(ratio):
        raise UserError(f'Invalid value "{text}" for "free-space-ratio": a number from 0 to below 1 is wanted')
    if ratio < 0:
        warn_of_value(text, "free-space-ratio", "less than 0", "0.1 is used")
        return 0.1
    if ratio > 1:
        warn_of_value(text, "free-space-ratio", "more than a whole disk: nothing is kept on one", "1 is used")
        return 1.0
    return ratio


def _upload_hours(text: str) -> str:
    try:
        parse_hours(text)
    except UserError:
        warn_of_value(text, "upload-hours", HOURS, "blocks are uploaded at any time")
        return ""
    return text


def _check_folders(options: dict[str, Any]) -> None:
    """Paths become absolute.  Patterns that match nothing go; if nothing is left there is a small cache in memory, as for the
    peer."""
    parts = list(map(os.path.abspath, split_cache_dirs(options["cache_dir"])))
    left = [part for part in parts if not glob.has_magic(part) or glob.glob(part)]
    if options["writeback"] and not left:
        raise UserError(
            f"--writeback keeps blocks in a cache folder: no folder matches {', '.join(parts)}; make the folders first, or name "
            "them without a pattern"
        )
    for part in parts:
        if part not in left:
            log.warning("no folder matches %s of --cache-dir", part)
    options["cache_dir"] = ":".join(left) or "memory"
    if not left and options["cache_size"]:
        size = options["cache_size"] = min(options["cache_size"], FALLBACK_BYTES)
        log.warning("no cache folder is there: up to %s are cached in memory instead", show_size(size))


# -- what does nothing


def warn_of_options(options: dict[str, Any], given: Container[str]) -> None:
    """Name the options that others make useless.  `given`: those on the command line."""
    if not options["writeback"]:
        _warn(WRITEBACK, given, "without --writeback")
    elif options["read_only"]:
        log.warning("--writeback has no effect on a read-only mount")
        options["writeback"] = False
    if not options["cache_size"]:
        _warn(CACHE, given, "with --cache-size 0")
    elif options["cache_dir"] == "memory":
        _warn(DISK_CACHE, given, "with --cache-dir memory")
    if not options["open_cache"]:
        _warn(("open_cache_limit",), given, "without --open-cache")
    if options["background"]:
        _warn(("foreground",), given, "with --background")
    else:
        _warn(("log",), given, "without --background: the log goes to stderr")


def warn_of_words(words: Iterable[str]) -> None:
    """The same for `-o`."""
    for word in words:
        if word.partition("=")[0] in WORDS:
            log.warning('mount option "%s" has no effect in jfs', word)


def warn_of_store(options: dict[str, Any], given: Container[str], settings: Settings) -> None:
    """The same for what the volume's store makes useless."""
    storage = options["storage"] or settings.storage
    if storage in LOCAL_STORES:
        _warn(REMOTE, given, f"on {storage} storage")
    if options["cache_size"] and not _cache(options, settings):
        _warn(("cache_size", *CACHE), given, "without a cache: --cache-dir names none")
    _warn_of_staged(options, settings)


def _warn_of_staged(options: dict[str, Any], settings: Settings) -> None:
    """Blocks in the default folder, which is the likely one, are looked for there by nobody but a mount that caches there."""
    folder = default_cache_dir()
    looks = bool(options["cache_size"]) and folder in _cache(options, settings)
    if looks or not is_staged_in(folder, settings.uuid):
        return
    size = "" if options["cache_size"] else " and without --cache-size 0"
    log.warning(
        "blocks of this volume are staged in %s and not uploaded yet; this mount can neither read nor upload them: "
        "mount with --cache-dir %s%s",
        *(staging_path(folder, settings.uuid), folder, size),
    )


def _cache(options: dict[str, Any], settings: Settings) -> list[str]:
    """Where the mount caches: folders, or `memory`."""
    if options["cache_dir"] is not None:
        return parse_cache_dirs(options["cache_dir"])
    seen = msgspec.structs.replace(settings, storage=options["storage"] or settings.storage)
    return default_folders(seen, writeback=options["writeback"])


def _warn(names: Iterable[str], given: Container[str], where: str) -> None:
    for name in names:
        if name in given:
            log.warning("option --%s has no effect %s", name.replace("_", "-"), where)


# -- what must not lie in the mount itself


def places(url: str, options: dict[str, Any], settings: Settings, log_file: str) -> list[tuple[str, str]]:
    """What the mount itself reads and writes on this machine, and where."""
    found = []
    scheme, rest = split_url(url)
    if scheme == "sqlite3":
        found.append(("metadata database", rest.partition("?")[0]))
    found += [("cache folder", folder) for folder in _cache(options, settings) if folder != "memory"]
    if (options["storage"] or settings.storage) == "file":
        found.append(("bucket", options["bucket"] or settings.bucket))
    if options["background"]:
        found.append(("log file", log_file))
    return found


def require_outside(mount_point: str, found: Iterable[tuple[str, str]]) -> None:
    """UserError for a place in the mount point: the mount would wait for itself for ever."""
    inside = os.path.realpath(mount_point)
    if inside == "/":
        return  # which is refused for other reasons
    for what, place in found:
        if os.path.commonpath((inside, os.path.realpath(place))) == inside:
            raise UserError(
                f"{what} {place} lies in the mount point {mount_point}, where the mount would wait for itself: "
                "choose a place outside of it"
            )
