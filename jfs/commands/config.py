"""`jfs config META-URL`: show the settings of a volume, or change those that are given."""

import logging
import time
from typing import Any, Final

from jfs import units
from jfs.commands import arguments
from jfs.commands.format import GIB, KEYS, place, warn_of_class
from jfs.errors import UserError
from jfs.meta import fingerprints, volume_format
from jfs.meta.run import read, run
from jfs.meta.secrets import sealed, with_keys
from jfs.meta.settings import SECRET_FIELDS, Settings, go_json
from jfs.meta.transaction import Engine
from jfs.volume import say_address, storage_is_tested, try_storage, with_engine

log = logging.getLogger(__name__)

CHANGEABLE: Final = (
    "storage",
    "bucket",
    "capacity",
    "inodes",
    "trash_days",
    "dir_stats",
    "upload_limit",
    "download_limit",
    "storage_class",
    *KEYS,
)

STORE: Final = frozenset(("storage", "bucket", "storage_class", *KEYS))
"""What the store is tested for before it is believed."""


@arguments.command("config", "META-URL", (1, 1))
@arguments.value("--storage", text="kind of object storage")
@arguments.value("--bucket", text="where the objects are")
@arguments.value("--access-key", text="key of the object storage")
@arguments.value("--secret-key", text="its secret")
@arguments.value("--session-token", text="token of temporary keys")
@arguments.value("--storage-class", text="storage class of new objects")
@arguments.value(
    "--capacity", kind=arguments.Size(GIB), text="limit of the volume's space, GiB without a unit; 0: none"
)
@arguments.value("--inodes", kind=arguments.Whole(), text="limit of the volume's inodes; 0: none")
@arguments.value(
    "--trash-days", kind=arguments.TRASH_DAYS, text="days that removed files stay in the trash; 0: no trash"
)
@arguments.switch("--dir-stats", default=None, text="keep statistics of every directory")
@arguments.value("--upload-limit", kind=arguments.Rate(), text="most that a client uploads, Mbps; 0: no limit")
@arguments.value("--download-limit", kind=arguments.Rate(), text="most that a client downloads, Mbps; 0: no limit")
@arguments.switch(
    "--fingerprint",
    default=None,
    text="keep (or with =false drop) the xxh3-128 of every new block in the metadata, and check what is read by it",
)
@arguments.switch(
    "--encrypt-secret", default=None, text="encrypt the secrets in the settings that are stored in plain text"
)
@arguments.switch("--yes", "-y", text="answer yes to every question")
@arguments.switch("--force", text="skip the checks")
@arguments.not_yet(
    "--tag",
    "--tier",
    "--min-client-version",
    "--max-client-version",
    "--changelog-max-age",
    "--changelog-max-lines",
    "--ranger-rest-url",
    "--ranger-service",
    "--kerberos-config-file",
    switches=("--enable-acl", "--user-group-quota", "--changelog"),
)
def command(arguments: tuple[str, ...], **options: Any) -> None:
    """Show the settings of a volume, or change those that are given."""
    say_address(arguments[0])
    with_engine(arguments[0], lambda engine: _config(engine, options))


async def _config(engine: Engine, options: dict[str, Any]) -> None:
    settings = await read(engine, volume_format.load_settings)
    given = {name: options[name] for name in CHANGEABLE if options[name] is not None}
    for name in ("storage", "bucket"):
        if given.get(name) == "":
            raise UserError(f'Invalid value "" for "{name}": the volume has one, and empty is none')
    if options["encrypt_secret"] is False:
        log.warning("option --encrypt-secret=false has no effect: secrets that are encrypted stay so")
    warn_of_class(given.get("storage", settings.storage), given.get("storage_class", ""))
    seal, mark = bool(options["encrypt_secret"]), options["fingerprint"]
    kept = await read(engine, fingerprints.kept)
    if not given and not seal and mark is None:
        extra = {"Fingerprint": fingerprints.KIND.decode()} if kept else {}
        print(go_json(settings.public() | extra, indent=2).decode())
        return
    mark = None if mark == kept else mark
    await _change(engine, settings, given, seal=seal, mark=mark, yes=options["yes"], force=options["force"])


async def _change(
    engine: Engine,
    settings: Settings,
    given: dict[str, Any],
    *,
    seal: bool,
    mark: bool | None,
    yes: bool,
    force: bool,
) -> None:
    """Check, store and tell the changes; `seal`: encrypt the secrets too; `mark`: turn fingerprints on or off."""
    if "storage" in given or "bucket" in given:
        storage = given.get("storage", settings.storage)
        given["bucket"] = place(storage, given.get("bucket", settings.bucket))
    lines = [] if mark is None else [f"fingerprint: {_show('', not mark)} -> {_show('', mark)}"]
    for name, value in given.items():
        if name in SECRET_FIELDS:
            lines.append(f"{name.replace('_', '-'):>10}: updated")
            continue
        before = settings.default_class() if name == "storage_class" else getattr(settings, name)
        if before == value:
            continue
        lines.append(f"{name.replace('_', '-'):>10}: {_show(name, before)} -> {_show(name, value)}")
        if name == "storage_class":
            settings.set_default_class(value)
        elif name not in KEYS:
            setattr(settings, name, value)
    settings = with_keys(settings, {name: value for name, value in given.items() if name in KEYS})
    if seal and not settings.key_encrypted:
        settings = sealed(settings)
        if settings.key_encrypted:
            lines.append("encrypt-secret: false -> true")
    if not lines:
        print("Nothing changed.")
        return
    if not force:
        await _check(engine, settings, given, mark=mark, yes=yes)
    await _store(engine, settings, mark)
    print("\n".join(lines))


async def _store(engine: Engine, settings: Settings, mark: bool | None) -> None:
    await run(engine, volume_format.update_settings, settings, time.time_ns())
    if mark is not None:
        await engine.prepare()  # the volume may be the peer's, and lack the table
        await fingerprints.turn(engine, on=mark)


async def _check(engine: Engine, settings: Settings, given: dict[str, Any], *, mark: bool | None, yes: bool) -> None:
    """The store answers where it is said to be; what would hurt is asked about first."""
    if STORE & given.keys() and storage_is_tested():
        try_storage(settings)
    from jfs.meta.usage import Usage

    usage = Usage()
    await usage.load(engine)
    stat = usage.statfs(settings)
    if 0 < given.get("capacity", 0) < stat.used_space:
        _confirm(f"New capacity is smaller than the {units.show_size(stat.used_space)} in use.", yes=yes)
    if 0 < given.get("inodes", 0) < stat.used_inodes:
        _confirm(f"New inodes limit is smaller than the {stat.used_inodes} in use.", yes=yes)
    if given.get("trash_days") == 0:
        _confirm("The trash will be off: removed files are gone at once, and what is in it expires.", yes=yes)
    if mark is False:
        _confirm("All fingerprints will be dropped: what is damaged in the store can be read unnoticed.", yes=yes)


def _confirm(warning: str, *, yes: bool) -> None:
    print(f"\033[1;33mWARNING\033[0m: {warning}")
    if yes:
        return
    try:
        answer = input("Proceed anyway? [y/N]: ")
    except EOFError:
        raise UserError("Aborted: there is nobody to answer; --yes answers all questions.") from None
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError("Aborted.")


def _show(name: str, value: Any) -> str:
    if name == "capacity":
        return units.show_size(value)
    if name == "inodes":
        return units.show_count(value)
    if name in ("upload_limit", "download_limit"):
        return units.show_rate(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
