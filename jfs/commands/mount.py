"""`jfs mount META-URL MOUNTPOINT`: options in, a running mount out."""

import os
from typing import Any

import click

from jfs import logs
from jfs.commands import arguments
from jfs.commands.arguments import was_given
from jfs.fuse import mounting

MIB = 1 << 20


def default_log() -> str:
    return "/var/log/juicefs.log" if os.geteuid() == 0 else os.path.expanduser("~/.juicefs/juicefs.log")


@arguments.command("mount", "META-URL MOUNTPOINT", (2, 2))
@arguments.switch("--background", "-d", text="run in the background")
@arguments.switch("--foreground", "-f", text="run in the foreground (the default)", hidden=True)
@arguments.switch("--no-syslog", text="in the background, do not write to syslog too")
@arguments.value("--log", text="log file of a background mount", default=None)
@arguments.switch("--force", text="mount over a directory that is not empty")
@arguments.value("-o", "fuse_options", text="mount options, separated by commas", multiple=True)
@arguments.switch("--read-only", text="allow no changes")
@arguments.switch("--enable-xattr", text="extended attributes")
@arguments.switch("--hide-internal", text="do not list .accesslog, .stats, .config and .trash")
@arguments.switch("--prefix-internal", text="call them .jfs.accesslog and so on")
@arguments.value("--subdir", default="", text="mount this directory of the volume")
@arguments.value("--heartbeat", kind=arguments.Duration(), default=12.0, text="seconds between heartbeats; 0: none")
@arguments.switch("--no-bgjob", text="no background jobs: clean-up of sessions, trash and deleted files")
@arguments.value(
    "--atime-mode",
    kind=arguments.OneOf("noatime", "relatime", "strictatime", instead="noatime"),
    default="noatime",
    text="when reads move atime",
)
@arguments.value(
    "--skip-dir-mtime",
    kind=arguments.Duration(),
    default=0.0,
    text="leave a directory's mtime if it is younger than this",
)
@arguments.value("--attr-cache", kind=arguments.Duration(), default=1.0, text="seconds the kernel caches attributes")
@arguments.value(
    "--entry-cache", kind=arguments.Duration(), default=1.0, text="seconds the kernel caches names of files"
)
@arguments.value("--dir-entry-cache", kind=arguments.Duration(), default=1.0, text="the same for directories")
@arguments.value(
    "--negative-entry-cache", kind=arguments.Duration(), default=0.0, text="the same for names that are not there"
)
@arguments.switch("--readdir-cache", text="the kernel keeps listings of directories until they change")
@arguments.value(
    "--open-cache",
    kind=arguments.Duration(),
    default=0.0,
    text="seconds an open believes what an earlier one was told; 0: it asks",
)
@arguments.value(
    "--open-cache-limit", kind=arguments.Whole(), default=10_000, text="files remembered for it; 0: no limit"
)
@arguments.value(
    "--io-retries",
    kind=arguments.Whole(),
    default=10,
    text="patience with a store that fails: N stands for N(N+1)(2N+1)/6 seconds in which a request is tried again (10: 385 s)",
)
@arguments.value("--max-uploads", kind=arguments.Whole(1, 10_000, instead=1), default=20, text="uploads at once")
@arguments.value("--max-downloads", kind=arguments.Whole(1, 10_000, instead=200), default=200, text="downloads at once")
@arguments.value(
    "--upload-limit",
    kind=arguments.MountRate(),
    text="most that is uploaded, Mbps; 0: no limit; default: the volume's setting",
)
@arguments.value("--download-limit", kind=arguments.MountRate(), text="most that is downloaded, Mbps; in the same way")
@arguments.value(
    "--max-deletes",
    kind=arguments.Whole(0, 10_000, instead=10),
    default=10,
    text="deletions at once; 0: the mount deletes no blocks",
)
@arguments.value(
    "--buffer-size", kind=arguments.Size(MIB), default=300 * MIB, text="memory for buffered data, MiB without a unit"
)
@arguments.value(
    "--max-readahead",
    kind=arguments.Size(MIB, instead=32 * MIB),
    default=32 * MIB,
    text="read-ahead of one stream, MiB without a unit",
)
@arguments.value("--prefetch", kind=arguments.Whole(0, 1000, instead=0), default=1, text="blocks fetched ahead at once")
@arguments.value(
    "--cache-dir", text="folders of the disk cache, separated by colons, globs too; memory: a cache in memory"
)
@arguments.value(
    "--cache-size",
    kind=arguments.Size(MIB, instead=100 << 30),
    default=100 << 30,
    text="size of the cache, MiB without a unit",
)
@arguments.value(
    "--cache-items", kind=arguments.Whole(instead=0), default=0, text="most blocks in the cache; 0: no limit"
)
@arguments.value("--cache-mode", default="0600", text="permissions of cached blocks, octal")
@arguments.value("--free-space-ratio", default="0.1", text="share of a cache disk that stays free")
@arguments.value(
    "--cache-eviction",
    kind=arguments.OneOf("2-random", "lru", "none", instead="2-random"),
    default="2-random",
    text="which block goes first",
)
@arguments.value(
    "--cache-expire", kind=arguments.Duration(), default=0.0, text="drop blocks not used for so long; 0: never"
)
@arguments.value(
    "--cache-scan-interval", kind=arguments.Duration(), default=3600.0, text="seconds between scans of the cache"
)
@arguments.switch("--cache-partial-only", text="cache no blocks that are read whole")
@arguments.switch("--cache-large-write", text="cache whole blocks when they are written")
@arguments.value(
    "--verify-cache-checksum",
    kind=arguments.OneOf("none", "full", "shrink", "extend", instead="extend"),
    default="extend",
    text="how the checksums of cached blocks are verified",
)
@arguments.switch(
    "--writeback", text="acknowledge blocks once they are in the cache folder; upload them in the background"
)
@arguments.value(
    "--writeback-threshold-size",
    kind=arguments.Size(instead=0),
    default=0,
    text="with --writeback: only blocks smaller than this, bytes without a unit; 0: all",
)
@arguments.value(
    "--max-stage-write",
    kind=arguments.Whole(instead=0),
    default=1000,
    text="with --writeback: blocks being written to the cache folder at once, the next go to the store; 0: no limit",
)
@arguments.value(
    "--upload-delay",
    kind=arguments.Duration(),
    default=0.0,
    text="with --writeback: seconds before a block is uploaded",
)
@arguments.value(
    "--upload-hours", default="", text="with --writeback: upload between these hours of the day only, such as 23,5"
)
@arguments.value("--storage", default="", text="kind of object storage, where this client shall see another")
@arguments.value("--bucket", default="", text="where the objects are, where this client shall see another place")
@arguments.value("--storage-class", default="", text="storage class of the objects that this client puts")
@arguments.switch("--check-storage", text="try the storage out first: put, get and delete a small object")
@arguments.value(
    "--get-timeout", kind=arguments.Duration(instead=60.0), default=60.0, text="longest time for a download, seconds"
)
@arguments.value(
    "--put-timeout", kind=arguments.Duration(instead=60.0), default=60.0, text="longest time for an upload, seconds"
)
@arguments.not_yet(
    "--tag",
    "--root-squash",
    "--all-squash",
    "--umask",
    "--consul",
    "--custom-labels",
    "--metrics",
    "--network-interfaces",
    switches=(
        "--enable-cap",
        "--enable-selinux",
        "--enable-ioctl",
        "--update-fstab",
        "--non-default-permission",
    ),
)
@arguments.tuning(
    "--max-fuse-io",
    "--skip-dir-nlink",
    "--backup-meta",
    switches=(
        "--disable-transparent-hugepage",
        "--backup-skip-trash",
        "--sort-dir",
        "--fast-statfs",
        "--no-usage-report",
    ),
)
@click.pass_context
def command(ctx: click.Context, /, arguments: tuple[str, ...], **options: Any) -> int:
    """Mount a volume."""
    url, mount_point = arguments
    words = [word.strip() for text in options["fuse_options"] for word in text.split(",")]
    options["read_only"] = options["read_only"] or "ro" in words
    mounting.require_fuse()
    from jfs.commands import mount_options, mounted

    given = {name for name in options if was_given(ctx, name)}
    mount_options.check_numbers(options)
    mount_options.warn_of_options(options, given)
    mount_options.warn_of_words(words)
    settings = mounted.check_volume(url, options)
    mount_options.warn_of_store(options, given, settings)
    options["kernel_options"] = mounting.kernel_options(words, name=settings.name, read_only=options["read_only"])
    log_file = options["log"] or default_log()
    mount_options.require_outside(mount_point, mount_options.places(url, options, settings, log_file))
    path = mounting.prepare_mount_point(mount_point, nonempty=options["force"] or "nonempty" in words)
    url = absolute_url(url)  # before the background process changes its directory
    if not options["background"]:
        logs.started()
        return mounted.serve(url, path, options)
    from jfs.commands.daemon import run_in_background

    return run_in_background(
        lambda ready: mounted.serve(url, path, options, ready=ready),
        path,
        log_file=log_file,
        syslog=not options["no_syslog"],
        name=settings.name,
    )


def absolute_url(url: str) -> str:
    """A relative path of an embedded database is resolved before the working directory changes."""
    scheme, separator, rest = url.partition("://")
    if scheme != "sqlite3" or not separator:
        return url
    path, query, parameters = rest.partition("?")
    return f"{scheme}://{os.path.abspath(path)}{query}{parameters}"
