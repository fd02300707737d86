"""RSA keys for tests, made once."""

from functools import cache
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

PKCS1: Final = PrivateFormat.TraditionalOpenSSL
PKCS8: Final = PrivateFormat.PKCS8


def rsa_key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    """A key of its own for each number."""
    return _made(number, bits)


@cache
def _made(number: int, bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def pem(key: rsa.RSAPrivateKey, form: PrivateFormat = PKCS8, passphrase: str = "") -> str:
    """The key as `openssl genrsa` would write it."""
    encryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, form, encryption).decode()


def key_file(folder: Path, key: rsa.RSAPrivateKey, form: PrivateFormat = PKCS8, passphrase: str = "") -> Path:
    """The key in a file."""
    path = folder / "key.pem"
    path.write_text(pem(key, form, passphrase))
    return path
