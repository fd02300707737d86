"""A volume's settings: the JSON text that every client reads at start and again with each heartbeat.

The text is written as the peer writes it (its field order, an empty indent, empty fields left out), and a field that this
version does not know survives a rewrite.  Secrets stay as they are stored: encrypted where `key_encrypted` says so.
"""

import re
from typing import Any, Final

import msgspec

from jfs.errors import CorruptRecord, UserError

NAME_RULE: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
META_VERSION: Final = 1
MAX_SHARDS: Final = 256
REMOVED: Final = "removed"

FIELDS: Final = {
    "name": "Name",
    "uuid": "UUID",
    "storage": "Storage",
    "storage_class": "StorageClass",
    "tiers": "Tiers",
    "bucket": "Bucket",
    "access_key": "AccessKey",
    "secret_key": "SecretKey",
    "session_token": "SessionToken",
    "block_size": "BlockSize",
    "compression": "Compression",
    "shards": "Shards",
    "hash_prefix": "HashPrefix",
    "capacity": "Capacity",
    "inodes": "Inodes",
    "encrypt_key": "EncryptKey",
    "encrypt_algo": "EncryptAlgo",
    "key_encrypted": "KeyEncrypted",
    "upload_limit": "UploadLimit",
    "download_limit": "DownloadLimit",
    "trash_days": "TrashDays",
    "meta_version": "MetaVersion",
    "min_client_version": "MinClientVersion",
    "max_client_version": "MaxClientVersion",
    "dir_stats": "DirStats",
    "user_group_quota": "UserGroupQuota",
    "enable_acl": "EnableACL",
    "ranger_rest_url": "RangerRestUrl",
    "ranger_service": "RangerService",
    "change_log": "ChangeLog",
    "change_log_max_age": "ChangeLogMaxAge",
    "change_log_max_lines": "ChangeLogMaxLines",
    "kerb_conf": "KerbConf",
}
"""Attribute to field of the text, in the text's order."""

NEVER_OMITTED: Final = frozenset(("Name", "UUID", "Storage", "Tiers", "Bucket", "BlockSize", "TrashDays", "EnableACL"))
SECRET_FIELDS: Final = ("encrypt_key", "secret_key", "session_token")
"""Attributes that are sealed in the text, and never shown."""
SECRETS: Final = frozenset(FIELDS[field] for field in SECRET_FIELDS)
HTML_ESCAPES: Final = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


class Settings(msgspec.Struct, rename=FIELDS):
    """What was chosen at format, and what `config` has changed since.  Sizes as stored: `block_size` is KiB.

    Defaults are a reader's: what a field that is missing from the text means.
    """

    name: str = ""
    uuid: str = ""
    storage: str = ""
    storage_class: str = ""
    tiers: dict[str, dict[str, Any]] | None = None
    bucket: str = ""
    access_key: str = ""
    secret_key: str = ""
    session_token: str = ""
    block_size: int = 0
    compression: str = ""
    shards: int = 0
    hash_prefix: bool = False
    capacity: int = 0
    inodes: int = 0
    encrypt_key: str = ""
    encrypt_algo: str = ""
    key_encrypted: bool = False
    upload_limit: int = 0
    download_limit: int = 0
    trash_days: int = 0
    meta_version: int = 0
    min_client_version: str = ""
    max_client_version: str = ""
    dir_stats: bool = False
    user_group_quota: bool = False
    enable_acl: bool = False
    ranger_rest_url: str = ""
    ranger_service: str = ""
    change_log: bool = False
    change_log_max_age: int = 0
    change_log_max_lines: int = 0
    kerb_conf: Any = None
    unknown: dict[str, Any] = {}

    @classmethod
    def parse(cls, text: bytes) -> "Settings":
        """From the stored text.  CorruptRecord where it is none, UserError where it is for newer clients only."""
        try:
            fields = msgspec.json.decode(text, type=dict[str, Any])
            known = {name: value for name, value in fields.items() if name in KNOWN}
            settings = msgspec.convert(known, cls)
        except msgspec.MsgspecError as error:
            raise CorruptRecord("setting", str(error)) from error
        settings.unknown = {name: value for name, value in fields.items() if name not in KNOWN}
        if settings.meta_version > META_VERSION:
            raise UserError(
                f"incompatible metadata version {settings.meta_version} (at most {META_VERSION}): please upgrade the client"
            )
        if settings.tiers is None:
            settings.tiers = default_tiers(settings.storage_class)
        return settings

    @classmethod
    def fresh(
        cls,
        name: str,
        *,
        bucket: str,
        storage: str = "file",
        block_size: int = 4096,
        compression: str = "none",
        trash_days: int = 1,
        capacity: int = 0,
        inodes: int = 0,
        shards: int = 0,
        hash_prefix: bool = False,
        storage_class: str = "",
    ) -> "Settings":
        """A new volume's, with a UUID of its own.  UserError for a name that no volume may have."""
        import uuid

        check_name(name)
        if not 0 <= shards <= MAX_SHARDS:
            raise UserError(f"invalid number of shards {shards}: it must be 0 to {MAX_SHARDS}")
        return cls(
            name=name,
            uuid=str(uuid.uuid4()),
            storage=storage,
            storage_class=storage_class,
            tiers=default_tiers(storage_class),
            bucket=bucket,
            block_size=block_size,
            compression=compression,
            shards=shards,
            hash_prefix=hash_prefix,
            capacity=capacity,
            inodes=inodes,
            encrypt_algo="aes256gcm-rsa",
            trash_days=trash_days,
            meta_version=META_VERSION,
            min_client_version="1.1.0-A",
            dir_stats=True,
        )

    def default_class(self) -> str:
        """The storage class of new objects: tier 0 has the last word."""
        tier = (self.tiers or {}).get("0", {})
        return str(tier.get("StorageClass", self.storage_class))

    def set_default_class(self, storage_class: str) -> None:
        """As the peer does it: the tier changes, and the class that was chosen at format stays on record."""
        self.tiers = {**(self.tiers or {}), "0": {**default_tiers("")["0"], **(self.tiers or {}).get("0", {})}}
        self.tiers["0"]["StorageClass"] = storage_class

    def fields(self) -> dict[str, Any]:
        """By the names and in the order of the text, without what it omits; unknown fields last."""
        found = {
            name: value
            for attribute, name in FIELDS.items()
            if (value := getattr(self, attribute)) or name in NEVER_OMITTED
        }
        found.update(self.unknown)
        return found

    def text(self) -> bytes:
        """As stored, byte for byte what the peer writes."""
        return go_json(self.fields(), indent=0)

    def public(self) -> dict[str, Any]:
        """To show to people: `fields` with "removed" for each secret."""
        return {name: REMOVED if name in SECRETS else value for name, value in self.fields().items()}


KNOWN: Final = frozenset(FIELDS.values())


def go_json(value: object, indent: int) -> bytes:
    """JSON laid out and escaped as Go's encoder does it."""
    import json

    return json.dumps(value, indent=indent, ensure_ascii=False).translate(HTML_ESCAPES).encode()


def default_tiers(storage_class: str) -> dict[str, dict[str, Any]]:
    """The one tier of a volume that names none."""
    return {"0": {"ID": 0, "StorageClass": storage_class, "Tag": ""}}


def check_name(name: str) -> None:
    """UserError unless a volume may have this name: it becomes the first part of every object's key."""
    if not NAME_RULE.fullmatch(name):
        raise UserError(
            f"invalid name: {name}, only lower case letters, digits and - are allowed (not at either end), 3 to 63 of them"
        )
