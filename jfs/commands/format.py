"""`jfs format META-URL NAME`: make a volume, or update the settings of one that is there."""

import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import click

from jfs.commands import arguments
from jfs.errors import NotFormatted, UserError
from jfs.meta import fingerprints, volume_format
from jfs.meta.engines import LOCAL_SCHEMES, split_url
from jfs.meta.run import read, run
from jfs.meta.secrets import opened, sealed, with_keys
from jfs.meta.settings import MAX_SHARDS, Settings, check_name, go_json
from jfs.meta.transaction import Engine, Transaction
from jfs.object.encrypt import ALGORITHMS
from jfs.object.rsa_key import PASSPHRASE, read_new_key
from jfs.volume import (
    LOCAL_STORES,
    UUID_KEY,
    open_objects,
    require_empty,
    say_address,
    storage_is_tested,
    test_objects,
    try_storage,
    with_engine,
)

log = logging.getLogger(__name__)

LEAST_BLOCK: Final = 64 << 10
MOST_BLOCK: Final = 16 << 20
GIB: Final = 1 << 30

COMPARED: Final = {
    "block_size": "block_size",
    "compress": "compression",
    "hash_prefix": "hash_prefix",
    "shards": "shards",
}
"""Options whose setting cannot change once a volume is made."""

KEYS: Final = ("access_key", "secret_key", "session_token")


@arguments.command("format", "META-URL NAME", (2, 2))
@arguments.value("--storage", default="file", text="kind of object storage")
@arguments.value("--bucket", text="where the objects go; for `file` a directory")
@arguments.value("--access-key", default="", text="key of the object storage; from ACCESS_KEY if not given")
@arguments.value("--secret-key", default="", text="its secret; from SECRET_KEY if not given")
@arguments.value("--session-token", default="", text="token of temporary keys; from SESSION_TOKEN if not given")
@arguments.value("--storage-class", default="", text="storage class of the objects")
@arguments.value(
    "--shards",
    kind=arguments.Whole(0, MAX_SHARDS),
    default=0,
    text="spread objects over so many buckets; %d in the bucket's name is their number",
)
@arguments.value(
    "--block-size", kind=arguments.Size(1 << 10), default=4 << 20, text="size of a block, KiB without a unit"
)
@arguments.value(
    "--compress", kind=arguments.OneOf("none", "lz4", "zstd"), default="none", text="how blocks are compressed"
)
@arguments.value("--encrypt-rsa-key", text="encrypt objects with the RSA private key in this file (PEM)")
@arguments.value(
    "--encrypt-algo", kind=arguments.OneOf(*ALGORITHMS), default=ALGORITHMS[0], text="how objects are encrypted"
)
@arguments.switch("--hash-prefix", text="spread objects over 256 prefixes")
@arguments.value(
    "--capacity", kind=arguments.Size(GIB), default=0, text="limit of the volume's space, GiB without a unit"
)
@arguments.value("--inodes", kind=arguments.Whole(), default=0, text="limit of the volume's inodes")
@arguments.value("--trash-days", kind=arguments.TRASH_DAYS, default=1, text="days that removed files stay in the trash")
@arguments.switch(
    "--fingerprint",
    default=None,
    text="keep the xxh3-128 of every new block in the metadata, and check what is read by it",
)
@arguments.switch("--force", text="format over what is there")
@arguments.switch("--no-update", text="leave a volume that is formatted already as it is")
@arguments.not_yet(
    "--tag",
    "--ranger-rest-url",
    "--ranger-service",
    "--kerberos-config-file",
    switches=("--enable-acl",),
)
@click.pass_context
def command(ctx: click.Context, /, arguments: tuple[str, ...], **options: Any) -> None:
    """Make a volume, or update the settings of one that is there."""
    url, name = arguments
    check_name(name)
    say_address(url)
    take_keys(options)
    text = _existing(url)
    if text is None or options["force"]:
        _create(ctx, url, name, options, text)
    elif not options["no_update"]:
        _update(ctx, url, name, options, Settings.parse(text))
    else:
        _report(Settings.parse(text))


def _existing(url: str) -> bytes | None:
    """The settings of the volume that is there; None where there is none, and nothing was made."""
    try:
        return with_engine(url, lambda engine: read(engine, volume_format.load_text))
    except NotFormatted:
        return None


def _write(url: str, operation: Callable[..., Awaitable[object]], settings: Settings, fingerprint: bool | None) -> None:
    """Store the settings; tables that are missing are made.  `fingerprint`: turn them on or off."""

    async def write(engine: Engine) -> None:
        await engine.prepare()
        await run(engine, operation, settings, time.time_ns())
        if fingerprint is not None:
            await fingerprints.turn(engine, on=fingerprint)
        await engine.sync()

    with_engine(url, write, create=True, loop=True)


def require_room(url: str) -> None:
    """UserError where an embedded database could not be made: said before anything is put into the store."""
    scheme, rest = split_url(url)
    folder = os.path.dirname(os.path.abspath(rest.partition("?")[0]))
    if scheme in LOCAL_SCHEMES and not os.access(folder, os.W_OK | os.X_OK):
        why = "cannot be written to" if os.path.isdir(folder) else "does not exist"
        raise UserError(f"the metadata database cannot be made: folder {folder} {why}")


def take_keys(options: dict[str, Any]) -> None:
    """Keys that are not given come from the environment, which keeps none of them for other programs."""
    for name in KEYS:
        found = os.environ.pop(name.upper(), "")
        options[name] = options[name] or found


def default_bucket() -> str:
    return "/var/jfs" if os.geteuid() == 0 else os.path.expanduser("~/.juicefs/local")


def place(storage: str, bucket: str | None) -> str:
    """The bucket as it is stored: for `file` an absolute directory with a slash at its end."""
    if storage != "file":
        return bucket or ""
    return os.path.abspath(bucket or default_bucket()).rstrip("/") + "/"


def warn_of_class(storage: str, storage_class: str) -> None:
    if storage_class and storage in LOCAL_STORES:
        log.warning("option --storage-class has no effect on %s storage", storage)


def block_size_kib(size: int) -> int:
    """A power of two from 64 KiB to 16 MiB, in KiB; what is not is adjusted, with a warning."""
    fitting = min(max(1 << (max(size, 1).bit_length() - 1), LEAST_BLOCK), MOST_BLOCK)
    if fitting != size:
        log.warning("block size %d is not a power of two from 64 KiB to 16 MiB; taken as %d KiB", size, fitting >> 10)
    return fitting >> 10


def _encryption(ctx: click.Context, options: dict[str, Any], old: Settings | None) -> tuple[str, str]:
    """The private key (a PEM text, "" for none) and the algorithm: chosen once, or the blocks that are there are lost."""
    if old is not None:
        _warn_of_encryption(ctx)
        return opened(old, ("encrypt_key",)).encrypt_key, old.encrypt_algo
    if options["encrypt_rsa_key"]:
        return read_new_key(options["encrypt_rsa_key"], os.environ.get(PASSPHRASE, "")), options["encrypt_algo"]
    if arguments.was_given(ctx, "encrypt_algo"):
        raise UserError("--encrypt-algo encrypts nothing without --encrypt-rsa-key")
    return "", options["encrypt_algo"]


def _warn_of_encryption(ctx: click.Context) -> None:
    """Scripts say the same again for a volume that is there, as they may for the peer."""
    for name in ("encrypt_rsa_key", "encrypt_algo"):
        if arguments.was_given(ctx, name):
            log.warning("option --%s is ignored: a volume's encryption cannot change", name.replace("_", "-"))


def _create(ctx: click.Context, url: str, name: str, options: dict[str, Any], text: bytes | None) -> None:
    old = None if text is None else Settings.parse(text)
    warn_of_class(options["storage"], options["storage_class"])
    settings = Settings.fresh(
        name,
        storage=options["storage"],
        bucket=place(options["storage"], options["bucket"]),
        block_size=block_size_kib(options["block_size"]),
        compression=options["compress"],
        trash_days=options["trash_days"],
        capacity=options["capacity"],
        inodes=options["inodes"],
        hash_prefix=options["hash_prefix"],
        shards=options["shards"],
        storage_class=options["storage_class"],
    )
    for key in KEYS:
        setattr(settings, key, options[key])
    settings.encrypt_key, settings.encrypt_algo = _encryption(ctx, options, old)
    if old is not None:
        settings.uuid = old.uuid
    require_room(url)
    store = open_objects(settings, io_retries=0)
    try:
        if storage_is_tested():
            test_objects(store)
            if text is None:
                require_empty(store)
        store.put(UUID_KEY, settings.uuid.encode())
        store.sync([UUID_KEY])
    finally:
        store.close()
    settings = sealed(settings)
    if text is None:
        _write(url, volume_format.create_volume, settings, options["fingerprint"])
    else:
        _write(url, _overwrite, settings, options["fingerprint"])
    _report(settings)


async def _overwrite(tx: Transaction, settings: Settings, now_ns: int) -> Settings:
    return await volume_format.update_settings(tx, settings, now_ns, force=True)


def _update(ctx: click.Context, url: str, name: str, options: dict[str, Any], settings: Settings) -> None:
    """Change what was given on the command line, and only that."""
    _warn_of_encryption(ctx)
    if name != settings.name:
        raise UserError(f"format: update format: cannot update volume name from {settings.name} to {name}")
    wanted = {key: options[key] for key in options if arguments.was_given(ctx, key)}
    if "block_size" in wanted:
        wanted["block_size"] = block_size_kib(wanted["block_size"])
    for option, field in COMPARED.items():
        before = getattr(settings, field) or ("none" if field == "compression" else 0)
        if option in wanted and wanted[option] != before:
            label = volume_format.FIXED_FIELDS[field]
            raise UserError(f"format: update format: cannot update volume {label} from {before} to {wanted[option]}")
    if "storage" in wanted or "bucket" in wanted:
        settings.storage = wanted.get("storage", settings.storage)
        settings.bucket = place(settings.storage, wanted.get("bucket", settings.bucket))
    for field in ("capacity", "inodes", "trash_days"):
        if field in wanted:
            setattr(settings, field, wanted[field])
    warn_of_class(settings.storage, options["storage_class"])
    if options["storage_class"]:
        settings.set_default_class(options["storage_class"])
    settings = with_keys(settings, {key: options[key] for key in KEYS if options[key]})
    try_storage(settings)
    _write(url, volume_format.update_settings, settings, options["fingerprint"])
    _report(settings)


def _report(settings: Settings) -> None:
    log.info("Volume is formatted as %s", go_json(settings.public(), indent=2).decode())
