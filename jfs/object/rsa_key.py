"""The RSA key of an encrypted volume: a PEM text, PKCS#1 or PKCS#8, with or without a passphrase.

The text is kept as it was given, so what is taken here must be readable by the peer too.
"""

import re
from typing import TYPE_CHECKING, Final

from jfs.errors import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

PASSPHRASE: Final = "JFS_RSA_PASSPHRASE"
"""The environment variable that both programs read."""

LEAST_BITS: Final = 1024
"""What the peer's crypto library works with at all."""
LEAST_NEW_BITS: Final = 2048
"""Shorter ones are within reach of those who factor numbers: no new volume gets one."""

_FIRST_BLOCK: Final = re.compile(r"^-----BEGIN ([A-Z0-9 ]+)-----\s*$", re.MULTILINE)
_PRIVATE: Final = frozenset(("RSA PRIVATE KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY"))


def load_key(pem: str, passphrase: str) -> "RSAPrivateKey":
    """The private key in the text; a passphrase that it does not need is not used.  UserError says what is wrong."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    first = _FIRST_BLOCK.search(pem)
    if first is None:
        raise UserError("the RSA key is not a PEM text (-----BEGIN PRIVATE KEY-----)")
    if first[1] not in _PRIVATE:
        raise UserError(f"the RSA key is a PEM text of a {first[1].lower()}: an RSA private key is wanted")
    encoded = pem[first.start() :].encode()
    try:
        try:
            key = load_pem_private_key(encoded, None)
        except TypeError:  # a passphrase is needed
            if not passphrase:
                raise UserError(
                    f"the RSA key has a passphrase: please set it in the environment variable {PASSPHRASE}"
                ) from None
            key = load_pem_private_key(encoded, passphrase.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(_why(str(error))) from None
    if not isinstance(key, RSAPrivateKey):
        raise UserError("the key to encrypt with is no RSA key")
    if key.key_size < LEAST_BITS:
        raise UserError(f"the RSA key has {key.key_size} bits, which is insecure: at least {LEAST_NEW_BITS} are wanted")
    return key


def _why(error: str) -> str:
    """The library's words in those of whoever holds the key."""
    if "password" in error.lower():
        return f"the passphrase in {PASSPHRASE} is not the RSA key's"
    if "unknown cipher" in error.lower():
        return (
            "the RSA key is encrypted with a cipher that is not supported: "
            "`openssl pkcs8 -topk8 -in KEY -out NEW` makes a text of the same key that is"
        )
    return f"the RSA key cannot be read: {error.partition('. See')[0]}"


def read_new_key(path: str, passphrase: str) -> str:
    """The PEM text in the file, for a new volume.  UserError where no volume should be encrypted with it."""
    try:
        with open(path, "rb") as file:
            pem = file.read().decode()
    except OSError as error:
        raise UserError(f"load RSA key from {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(
            f"load RSA key from {path}: the RSA key is not a PEM text (-----BEGIN PRIVATE KEY-----)"
        ) from None
    try:
        key = load_key(pem, passphrase)
    except UserError as error:
        raise UserError(f"load RSA key from {path}: {error}") from None
    if key.key_size < LEAST_NEW_BITS:
        raise UserError(
            f"load RSA key from {path}: it has {key.key_size} bits, at least {LEAST_NEW_BITS} are wanted "
            "(`openssl genrsa -aes256 -out KEY 2048`)"
        )
    return pem
