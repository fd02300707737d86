"""A volume opened: its metadata engine, its settings, its objects and its blocks, put together for the commands."""

import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from jfs.errors import UserError
from jfs.meta.engines import mask_url, open_engine
from jfs.meta.run import drive
from jfs.meta.secrets import opened
from jfs.meta.settings import Settings
from jfs.meta.transaction import Engine
from jfs.object.current import Current
from jfs.object.encrypt import Encrypted, Sealer, check_algorithm
from jfs.object.limit import Limits
from jfs.object.rsa_key import PASSPHRASE, load_key
from jfs.object.store import ObjectStore, RequestOptions
from jfs.object.stores import StoreOptions, open_store, volume_part

if TYPE_CHECKING:
    from jfs.chunk.options import ChunkOptions
    from jfs.chunk.store import BlockStore
    from jfs.meta.client import ClientOptions, MetaClient

T = TypeVar("T")

log = logging.getLogger(__name__)

PROBE_BYTES: Final = 100
UUID_KEY: Final = "juicefs_uuid"
LOCAL_STORES: Final = ("file", "mem")
"""They are read without a disk cache, wait for no network and know no storage classes."""


def with_engine(
    url: str, body: Callable[[Engine], Coroutine[Any, Any, T]], *, create: bool = False, loop: bool = False
) -> T:
    """Open the engine behind the URL, run `body` with it, close it; what `body` returns.  Raises UserError.

    With `loop` the body may wait for other things than the engine.
    """
    engine = open_engine(url, create=create)

    async def main() -> T:
        try:
            await engine.open()
            return await body(engine)
        finally:
            await engine.close()

    return drive(engine, main, loop=loop)


def say_address(url: str) -> None:
    """What every command logs first."""
    log.info("Meta address: %s", mask_url(url))


class StoreChoices(RequestOptions, frozen=True, kw_only=True):
    """What a client says about the store; empty: what the volume's settings say."""

    storage: str = ""
    bucket: str = ""


def open_bucket(settings: Settings, choices: StoreChoices | None = None) -> ObjectStore:
    """The bucket that the volume is in, whole.  UserError."""
    choices = choices or StoreChoices()
    plain = opened(settings, ("secret_key", "session_token"))
    options = StoreOptions(
        access_key=plain.access_key,
        secret_key=plain.secret_key,
        session_token=plain.session_token,
        storage_class=choices.storage_class or settings.default_class(),
        shards=settings.shards,
        connections=choices.connections,
        get_timeout=choices.get_timeout,
        put_timeout=choices.put_timeout,
    )
    bucket = choices.bucket or settings.bucket
    storage = choices.storage or settings.storage
    if storage == "file" and not bucket.endswith("/"):
        bucket += "/"
    return open_store(storage, bucket, options)


def open_objects(
    settings: Settings, *, io_retries: int = 10, limits: Limits | None = None, bucket: ObjectStore | None = None
) -> ObjectStore:
    """The volume's part of its bucket (`bucket`, if that is open already).  UserError."""
    sealer = open_sealer(settings)
    store = volume_part(bucket or open_bucket(settings), settings.name, io_retries, limits)
    if sealer is not None:
        store = Encrypted(store, sealer)
    log.info("Data use %s", store.describe())
    return store


def follow_bucket(meta: "MetaClient", current: Current, choices: StoreChoices) -> None:
    """Go on with other keys, or in another bucket, when the volume's settings say so.

    Not from or to files of this machine: what was put there and is not synced yet would be forgotten.
    """

    def facts(settings: Settings) -> tuple[str, ...]:
        keys = (settings.access_key, settings.secret_key, settings.session_token)
        return (settings.storage, settings.bucket, settings.default_class(), *keys)

    known = facts(meta.settings)

    def follow(settings: Settings) -> None:
        nonlocal known
        before, now = known, facts(settings)
        if now == before:
            return
        known = now
        if now[0] != before[0] or current.local_path("") is not None:
            log.warning("the volume's storage is another one now: mount it again to use that")
            return
        try:
            current.exchange(open_bucket(settings, choices))
        except UserError as error:
            log.error("the volume's new storage settings cannot be used: %s", error)
        else:
            log.info("Data use %s", current.describe())

    meta.on_settings.append(follow)


def open_sealer(settings: Settings) -> Sealer | None:
    """What encrypts the volume's objects; None where they are plain.  UserError where its key cannot be used."""
    if not settings.encrypt_key:
        return None
    try:
        algorithm = check_algorithm(settings.encrypt_algo)
        pem = opened(settings, ("encrypt_key",)).encrypt_key
        return Sealer(load_key(pem, os.environ.get(PASSPHRASE, "")), algorithm)
    except UserError as error:
        raise UserError(f"volume {settings.name} is encrypted: {error}") from None


def test_objects(store: ObjectStore) -> None:
    """Create the bucket if it is missing; put, get and delete a small object.  UserError tells which call failed."""
    import secrets
    import string

    from jfs.errors import StoreError

    key = "testing/" + "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(10))
    data = secrets.token_bytes(PROBE_BYTES)
    step = "find or create the bucket of"
    try:
        store.create()
        step = "put an object into"
        store.put(key, data)
        step = "get an object from"
        if store.get(key) != data:
            raise UserError(f"storage {store.describe()} gave back other bytes than were put")
        step = "delete an object from"
        store.delete(key)
        store.delete("testing/")
    except (StoreError, OSError) as error:
        raise UserError(f"cannot {step} storage {store.describe()}: {error}") from error


def storage_is_tested() -> bool:
    """Whether commands try a storage out before they believe in it; JFS_NO_CHECK_OBJECT_STORAGE turns that off."""
    return not os.environ.get("JFS_NO_CHECK_OBJECT_STORAGE")


def try_storage(settings: Settings, choices: StoreChoices | None = None) -> None:
    """Test the storage that the settings name, or the client chooses.  UserError."""
    store = open_objects(settings, io_retries=0, bucket=open_bucket(settings, choices))
    try:
        if storage_is_tested():
            test_objects(store)
    finally:
        store.close()


def require_empty(store: ObjectStore) -> None:
    """UserError where the volume's part of the bucket holds objects already."""
    for info in store.list():
        if info.size and not info.key.startswith("testing/"):
            raise UserError(
                f"Storage {store.describe()} is not empty (it holds {info.key}); "
                "please clean it up or pick another volume name"
            )


def chunk_options(settings: Settings, **options: object) -> "ChunkOptions":
    """The block store's options for this volume: its settings, then the caller's."""
    from jfs.chunk.options import ChunkOptions

    fields = {
        "block_size": settings.block_size << 10,
        "compression": settings.compression or "none",
        "hash_prefix": settings.hash_prefix,
        "encrypted": bool(settings.encrypt_key),
        "uuid": settings.uuid,
        **options,
    }
    return msgspec.convert(fields, ChunkOptions)


def cache_folders(settings: Settings, given: str | None, *, writeback: bool = False) -> list[str]:
    """Where blocks are cached, and staged with `writeback`."""
    from jfs.chunk.cache import parse_cache_dirs

    if given is not None:
        folders = parse_cache_dirs(given)
        if folders == ["memory"]:
            log.info("Disk cache (none): blocks are cached in memory")
        return folders
    folders = default_folders(settings, writeback=writeback)
    if not folders:
        log.info("Disk cache (none): %s storage is read directly; name one with --cache-dir", settings.storage)
    elif settings.storage in LOCAL_STORES and not writeback:
        log.info(
            "blocks that are not uploaded yet are staged in %s: this mount caches there",
            staging_path(folders[0], settings.uuid),
        )
    return folders


def default_folders(settings: Settings, *, writeback: bool) -> list[str]:
    """Where blocks are cached if nobody says where.

    Those of a `file` store on this machine only for writeback, or where an earlier mount has left some staged: to cache them
    copies a disk to the same disk.
    """
    folder = default_cache_dir()
    wanted = settings.storage not in LOCAL_STORES or writeback
    return [folder] if wanted or is_staged_in(folder, settings.uuid) else []


def staging_path(folder: str, uuid: str) -> str:
    """Where the volume's blocks are staged in a cache folder; their keys are paths below it."""
    from jfs.chunk.folders import STAGED

    return f"{folder}/{uuid}/{STAGED}/"


def is_staged_in(folder: str, uuid: str) -> bool:
    """Whether the cache folder has blocks of the volume that are not uploaded yet."""
    return next(staged_blocks(folder, uuid), None) is not None


def staged_blocks(folder: str, uuid: str) -> Iterator[str]:
    """The keys of the volume's blocks that a mount has staged in the cache folder and not uploaded yet."""
    from jfs.chunk.folders import walk
    from jfs.chunk.layout import parse_name

    def failed(path: str, error: OSError) -> None:
        log.warning("looking for staged blocks: %s: %s", path, error.strerror)

    for key, _ in walk(staging_path(folder, uuid), failed=failed):
        if parse_name(key) is not None:
            yield key


def default_cache_dir() -> str:
    """Where blocks are cached if nobody says where."""
    return "/var/jfsCache" if os.geteuid() == 0 else os.path.expanduser("~/.juicefs/cache")


def warn_of_full_disks(options: "ChunkOptions") -> None:
    """A cache that finds its disk too full keeps nothing, and stages nothing once half of the wanted room is gone."""
    from jfs.chunk.folders import free_of

    for folder in options.cache_dirs:
        if folder == "memory":
            continue
        try:
            space, inodes = free_of(folder)
        except OSError:  # which the cache tells itself
            continue
        if min(space, inodes) < options.free_space_ratio:
            log.warning(
                "not enough space (%.0f%% free) or inodes (%.0f%% free) for caching in %s: --free-space-ratio wants %.0f%%",
                *(100 * space, 100 * inodes, folder, 100 * options.free_space_ratio),
            )


class Volume:
    """An open volume."""

    def __init__(
        self, engine: Engine, meta: "MetaClient", objects: ObjectStore, blocks: "BlockStore", limits: Limits
    ) -> None:
        self.engine = engine
        self.meta = meta
        self.objects = objects
        self.blocks = blocks
        self.limits = limits

    @property
    def settings(self) -> Settings:
        return self.meta.settings

    def object_size(self, size: int) -> int | None:
        """Bytes of the object that holds a block of `size` plain bytes; None where compression decides."""
        if self.blocks.options.compression not in ("", "none"):
            return None
        return size + self.objects.overhead if isinstance(self.objects, Encrypted) else size


def follow_limits(meta: "MetaClient", limits: Limits) -> None:
    """The limits are what the volume's settings say, now and when they change."""

    def follow(settings: Settings) -> None:
        limits.follow(settings.upload_limit, settings.download_limit)

    follow(meta.settings)
    meta.on_settings.append(follow)


@asynccontextmanager
async def open_volume(
    url: str,
    options: "ClientOptions | None" = None,
    *,
    io_retries: int = 10,
    cache_dir: str | None = "",
    limits: Limits | None = None,
    choices: StoreChoices | None = None,
    **chunk: object,
) -> AsyncIterator[Volume]:
    """`async with`: a volume without a session yet.  `chunk` goes to ChunkOptions; no cache by default.

    `limits` and the bucket follow the volume's settings from here on.

    Raises UserError.
    """
    from jfs.chunk import heap
    from jfs.chunk.cache import open_cache
    from jfs.chunk.store import BlockStore
    from jfs.meta.client import MetaClient

    heap.keep_freed()
    say_address(url)
    engine = open_engine(url)
    try:
        await engine.open()
        meta = await MetaClient.connect(engine, options)
        limits = limits or Limits()
        follow_limits(meta, limits)
        choices = choices or StoreChoices()
        bucket = Current(open_bucket(meta.settings, choices))
        follow_bucket(meta, bucket, choices)
        objects = open_objects(meta.settings, io_retries=io_retries, limits=limits, bucket=bucket)
        seen = msgspec.structs.replace(meta.settings, storage=choices.storage or meta.settings.storage)
        folders = cache_folders(seen, cache_dir, writeback=bool(chunk.get("writeback")))
        chunks = chunk_options(meta.settings, cache_dirs=folders, loop_disk=engine.disk(), **chunk)
        cache = open_cache(chunks)
        if cache is not None:
            warn_of_full_disks(chunks)
        blocks = BlockStore(objects, chunks, cache)
        try:
            yield Volume(engine, meta, objects, blocks, limits)
        finally:
            await blocks.close()
    finally:
        await engine.close()
