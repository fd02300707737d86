"""A mount's life: put the layers together, serve the kernel, and end in order."""

import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

import trio

import jfs
from jfs.chunk.file_range import can_tell
from jfs.errors import CorruptRecord, FsError, StoreError, UserError
from jfs.fuse import device, mounting
from jfs.fuse.adapter import Adapter
from jfs.fuse.pipe import Pipe
from jfs.fuse.replies import Timeouts
from jfs.fuse.session import Session
from jfs.meta import inodes, volume_format
from jfs.meta.client import ClientOptions
from jfs.meta.run import read
from jfs.meta.settings import Settings
from jfs.meta.transaction import Engine
from jfs.meta.types import ROOT_INO
from jfs.object.limit import Limits
from jfs.vfs.vfs import Vfs, VfsOptions
from jfs.volume import StoreChoices, Volume, open_bucket, open_sealer, open_volume, try_storage, with_engine

log = logging.getLogger(__name__)

NANO: Final = 1_000_000_000
UNMOUNT_S: Final = 5.0
"""After a signal: so long files that are still open keep being served."""

SWITCH_S: Final = 0.0001
MOST_FILES: Final = 100_000
EXIT_VOLUME_GONE: Final = 11


def store_choices(options: dict[str, Any]) -> StoreChoices:
    """What the command line says about the store."""
    return StoreChoices(
        storage=options["storage"],
        bucket=options["bucket"],
        storage_class=options["storage_class"],
        get_timeout=options["get_timeout"],
        put_timeout=options["put_timeout"],
        connections=options["max_uploads"] + options["max_downloads"],
    )


def check_volume(url: str, options: dict[str, Any]) -> Settings:
    """The volume's settings.  UserError or CorruptRecord, before anything is changed, where it cannot be mounted so."""
    read_only = options["read_only"]
    settings = with_engine(url, _checked_settings)
    open_sealer(settings)
    if options["check_storage"]:
        try_storage(settings, store_choices(options))
    else:
        open_bucket(settings, store_choices(options)).close()
    if settings.enable_acl and not read_only:
        raise UserError("this volume has ACLs enabled, which jfs does not support yet: use --read-only")
    if settings.change_log and not read_only:
        raise UserError("this volume has its change log on, which jfs does not write yet: use --read-only")
    return settings


async def _checked_settings(engine: Engine) -> Settings:
    settings = await read(engine, volume_format.load_settings)
    try:
        await read(engine, inodes.getattr, ROOT_INO)
    except FsError as error:
        raise UserError(f"the root directory of the volume cannot be read: {error}; `jfs fsck` tells more") from error
    return settings


def serve(url: str, path: str, options: dict[str, Any], *, ready: Callable[[], None] | None = None) -> int:
    """Mount and serve until unmounted or told to stop; the exit code."""
    raise_file_limit()
    return trio.run(_serve, url, path, options, ready)


def raise_file_limit() -> None:
    """Transfers, cached descriptors and the database share one limit, which is low by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _serve(url: str, path: str, options: dict[str, Any], ready: Callable[[], None] | None) -> int:
    client = ClientOptions(
        read_only=options["read_only"],
        atime_mode=options["atime_mode"],
        skip_dir_mtime_ns=int(options["skip_dir_mtime"] * NANO),
        heartbeat_s=options["heartbeat"],
        bgjob=not options["no_bgjob"],
        subdir=options["subdir"],
        attr_cache_s=options["attr_cache"],
        max_deletes=options["max_deletes"],
        mountpoint=path,
    )
    names = (
        "max_uploads max_downloads buffer_size prefetch cache_size cache_items cache_mode free_space_ratio cache_eviction "
        "cache_expire cache_scan_interval cache_partial_only cache_large_write verify_cache_checksum "
        "read_only writeback writeback_threshold_size max_stage_write upload_delay upload_hours"
    )
    chunk = {name: options[name] for name in names.split()}
    async with open_volume(
        url,
        client,
        io_retries=options["io_retries"],
        cache_dir=options["cache_dir"],
        limits=Limits(options["upload_limit"], options["download_limit"]),
        choices=store_choices(options),
        **chunk,
    ) as volume:
        return await Mounted(volume, path, options, ready).run()


class Mounted:
    """One mount point, while it is served."""

    def __init__(self, volume: Volume, path: str, options: dict[str, Any], ready: Callable[[], None] | None) -> None:
        self._volume = volume
        self._path = path
        self._options = options
        self._ready = ready
        self._code = 0
        meta = volume.meta
        self._vfs = Vfs(
            meta,
            volume.blocks,
            VfsOptions(
                buffer_size=options["buffer_size"],
                max_readahead=options["max_readahead"],
                open_cache_s=options["open_cache"],
                open_cache_limit=options["open_cache_limit"],
                hide_internal=options["hide_internal"] or bool(options["subdir"]),
                prefix_internal=options["prefix_internal"],
                config=shown_config(volume, path, options),
            ),
        )
        self._stopping = trio.Event()
        meta.on_fatal = lambda why: self._fail(why, EXIT_VOLUME_GONE)

    def _fail(self, why: str, code: int) -> None:
        """End, so that nobody believes in the mount."""
        log.critical("%s", why)
        self._code = self._code or code
        self._stopping.set()

    async def run(self) -> int:
        """Until unmounted, signalled or bereft of the volume."""
        meta = self._volume.meta
        name = meta.settings.name
        await meta.start_session()
        if meta.sid:
            log.info("Create session %d OK with version: %s", meta.sid, jfs.CLIENT_VERSION)
        log.info('Mounting volume %s at "%s" ...', name, self._path)
        adapter = self._adapter()
        pipe = Pipe()
        options: set[str] = self._options["kernel_options"]
        if self._volume.blocks.lends and can_tell() and pipe.most >= mounting.LEAST_READ:
            self._vfs.reader.lend_most = pipe.most
            options = mounting.reads_up_to(pipe.most, options)
        try:
            mounted = device.mount(self._path, options)
        except UserError:
            await meta.close_session()
            raise
        session = Session(mounted.fd, adapter.rows(), adapter, self._vfs.requests, self._vfs.landing, pipe)
        adapter.forget_attr = session.forget_attr
        try:
            await self._serve_kernel(session, mounted)
        finally:
            mounted.close()
            pipe.close()
        if not self._code:
            log.info('The juicefs mount process exit successfully, mountpoint: "%s"', self._path)
        return self._code

    def _adapter(self) -> Adapter:
        options = self._options
        timeouts = Timeouts(
            attr=options["attr_cache"],
            entry=options["entry_cache"],
            dir_entry=options["dir_entry_cache"],
            negative=options["negative_entry_cache"],
        )
        return Adapter(self._vfs, timeouts, xattrs=options["enable_xattr"], readdir_cache=options["readdir_cache"])

    async def _serve_kernel(self, session: Session, mounted: device.Device) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals)
            await nursery.start(self._vfs.run)
            nursery.start_soon(self._announce)
            nursery.start_soon(self._stop_on_request, session, mounted)
            settle()
            await session.serve()
            with trio.CancelScope(shield=True):
                await self._end()
            self._volume.limits.stop()  # what waits for its turn now is only read-ahead
            nursery.cancel_scope.cancel()

    async def _end(self) -> None:
        """Nothing comes from the kernel any more: store what is buffered."""
        log.info('flush buffered data in "%s"', self._path)
        try:
            await self._vfs.close()
        except (FsError, CorruptRecord, StoreError, OSError) as error:
            self._fail(f"the mount did not end in order, what was written last may be lost: {error}", 1)
        else:
            log.info("close session: OK")

    async def _announce(self) -> None:
        """Once the kernel shows the mount: tune it, and say so."""
        try:
            await trio.to_thread.run_sync(os.stat, self._path, abandon_on_cancel=True)
        except OSError as error:
            self._fail(f"the mount does not answer: {error}", 1)
            return
        await trio.to_thread.run_sync(mounting.tune_kernel, self._path)
        if self._ready is not None:
            self._ready()
        else:
            log.info('\033[92mOK\033[0m, %s is ready at "%s"', self._volume.settings.name, self._path)

    async def _watch_signals(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            task_status.started()
            async for number in received:
                log.info("Received signal %s, exiting...", (signal.strsignal(number) or str(number)).lower())
                self._stopping.set()

    async def _stop_on_request(self, session: Session, mounted: device.Device) -> None:
        """Unmount; a file that stays open is served a little longer, then the session ends."""
        await self._stopping.wait()
        if await trio.to_thread.run_sync(mounted.unmount) is not None:
            await trio.to_thread.run_sync(lambda: mounted.unmount(lazily=True))
            await trio.sleep(UNMOUNT_S)
        else:
            await trio.sleep(1.0)
        self._volume.limits.download.stop()  # readers that are still there shall not hold up the end
        session.stop()


def settle() -> None:
    """What was made at the start stays: the collector shall not look at it again, and rarely at the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    # A thread that has ended its call waits for the interpreter, which the loop gives up only when asked: by default after
    # 5 ms, in which the poller of requests serves nobody.  It shows where metadata is waited for too (TiKV and a directory).
    sys.setswitchinterval(SWITCH_S)


def shown_config(volume: Volume, path: str, options: dict[str, Any]) -> dict[str, object]:
    """What `.config` tells about the mount, under the names that scripts look for."""
    meta = volume.meta
    chunk = volume.blocks.options
    return {
        "Meta": {
            "Strict": True,
            "Retries": 10,
            "MaxDeletes": meta.options.max_deletes,
            "ReadOnly": meta.options.read_only,
            "NoBGJob": not meta.options.bgjob,
            "Heartbeat": int(meta.options.heartbeat_s * NANO),
            "MountPoint": path,
            "Subdir": meta.options.subdir,
            "AtimeMode": meta.options.atime_mode,
            "OpenCache": int(options["open_cache"] * NANO),
            "OpenCacheLimit": options["open_cache_limit"],
        },
        "Chunk": {
            "CacheDir": ":".join(
                folder if folder == "memory" else f"{folder}/{chunk.uuid}" for folder in chunk.cache_dirs
            ),
            "CacheSize": chunk.cache_size,
            "FreeSpace": chunk.free_space_ratio,
            "BlockSize": chunk.block_size,
            "Compress": chunk.compression,
            "MaxUpload": chunk.max_uploads,
            "MaxDownload": chunk.max_downloads,
            "MaxStageWrite": chunk.max_stage_write,
            "Writeback": chunk.writeback,
            "WritebackThresholdSize": chunk.writeback_threshold_size or chunk.block_size + 1,
            "UploadDelay": int(chunk.upload_delay * NANO),
            "UploadHours": chunk.upload_hours,
            "HashPrefix": chunk.hash_prefix,
            "UploadLimit": int(volume.limits.upload.rate),
            "DownloadLimit": int(volume.limits.download.rate),
            "BufferSize": options["buffer_size"],
            "Readahead": options["max_readahead"],
            "Prefetch": chunk.prefetch,
        },
        "Version": jfs.CLIENT_VERSION,
        "AttrTimeout": int(options["attr_cache"] * NANO),
        "DirEntryTimeout": int(options["dir_entry_cache"] * NANO),
        "EntryTimeout": int(options["entry_cache"] * NANO),
        "NegEntryTimeout": int(options["negative_entry_cache"] * NANO),
        "PrefixInternal": options["prefix_internal"],
        "HideInternal": options["hide_internal"],
        "Pid": os.getpid(),
        "PPid": os.getppid(),
        "CommPath": "",
        "StatePath": "",
        "Mountpoint": path,
    }
