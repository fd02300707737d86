"""The secrets in a volume's settings, sealed as the peer seals them.

The key comes from the volume's UUID, which stands beside them in clear: this keeps secrets out of sight (dumps, screens, logs),
not out of reach of whoever can read the metadata.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from jfs.errors import UserError
from jfs.meta.settings import REMOVED, SECRET_FIELDS, Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES: Final = 12


def _cipher(uuid: str) -> "AESGCM":
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(hashlib.md5(uuid.encode(), usedforsecurity=False).digest())


def sealed(settings: Settings) -> Settings:
    """A copy to store: every secret encrypted, if there is one at all.  Settings that are sealed stay as they are."""
    if settings.key_encrypted or not any(getattr(settings, field) for field in SECRET_FIELDS):
        return settings
    cipher = _cipher(settings.uuid)
    found = msgspec.structs.replace(settings, key_encrypted=True)
    for field in SECRET_FIELDS:
        if plain := getattr(settings, field):
            nonce = os.urandom(NONCE_BYTES)
            setattr(found, field, base64.b64encode(nonce + cipher.encrypt(nonce, plain.encode(), None)).decode())
    return found


def opened(settings: Settings, fields: Sequence[str] = SECRET_FIELDS) -> Settings:
    """A copy to use: these secrets in clear.  UserError for one that a dump dropped, or that is not this volume's."""
    for field in fields:
        if getattr(settings, field) == REMOVED:
            raise UserError(f"the volume's {field.replace('_', ' ')} was removed from its settings: {_remedy(field)}")
    if not settings.key_encrypted:
        return settings
    from cryptography.exceptions import InvalidTag

    cipher = _cipher(settings.uuid)
    found = msgspec.structs.replace(settings, key_encrypted=False)
    for field in fields:
        if text := getattr(settings, field):
            try:
                data = base64.b64decode(text, validate=True)
                plain = cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], None)
                setattr(found, field, plain.decode())
            except (binascii.Error, InvalidTag, ValueError):
                raise UserError(f"the volume's {field.replace('_', ' ')} cannot be decrypted with its UUID") from None
    return found


def with_keys(settings: Settings, keys: Mapping[str, str]) -> Settings:
    """A copy to store, with some of the object store's keys (`access_key`, `secret_key`, `session_token`) exchanged.

    Secrets that are stored in clear, by an old client, stay so; the first one to come is encrypted.
    """
    secret = any(getattr(settings, field) for field in SECRET_FIELDS)
    found = msgspec.structs.replace(settings, **{name: value for name, value in keys.items() if name == "access_key"})
    fresh = {name: value for name, value in keys.items() if name in SECRET_FIELDS}
    if not fresh:
        return found
    if secret and not settings.key_encrypted:
        return msgspec.structs.replace(found, **fresh)
    kept = {field: getattr(settings, field) for field in SECRET_FIELDS if field not in fresh}
    lone = sealed(msgspec.structs.replace(found, key_encrypted=False, **dict.fromkeys(kept, ""), **fresh))
    return msgspec.structs.replace(lone, key_encrypted=settings.key_encrypted or lone.key_encrypted, **kept)


def _remedy(field: str) -> str:
    """What to do about a secret that is gone."""
    if field == "encrypt_key":
        return "load a dump that was made with --keep-secret-key"
    return f"set it with `jfs config META-URL --{field.replace('_', '-')} ...`"
