"""Objects encrypted on their way into a store, in the peer's format.

    u16 length of the wrapped key (big-endian) | u8 length of the nonce | wrapped key | nonce | ciphertext | 16-byte tag

Every object has a random 32-byte key of its own, wrapped by RSA-OAEP (SHA-256 for both hashes, label `keys`) with the volume's
key, so a nonce never meets the same key twice.  The price is one RSA operation per object: 0.02 ms to wrap and 0.2 ms to
unwrap with 2048 bits (0.05 and 1.25 ms with 4096), beside 0.4 to 0.7 ms that AES-GCM takes for 4 MiB (ChaCha20-Poly1305: 1.3 ms).
Sharing a key between objects would save too little to be worth departing from that.

The tag covers the bytes but not the object's name: whoever can write to the store can put one object in the place of
another of the same plain size, or an older one in the place of a newer one, and no reader can tell.  The format has no room for more.
"""

import os
import struct
from typing import TYPE_CHECKING, Final

from jfs.errors import BadObject, UserError
from jfs.object.decorator import Decorator
from jfs.object.store import Buffer, Errand, ObjectStore

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

ALGORITHMS: Final = ("aes256gcm-rsa", "chacha20-rsa")

_HEADER: Final = struct.Struct(">HB")
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16


def check_algorithm(name: str) -> str:
    """The name as it is one of ALGORITHMS; old settings leave the first one out.  UserError for others."""
    if name and name not in ALGORITHMS:
        raise UserError(f"algorithm {name} is not supported; supported: {', '.join(ALGORITHMS)}")
    return name or ALGORITHMS[0]


class Sealer:
    """Seals and opens byte strings.  Safe to share between threads; the work is done without Python's lock."""

    def __init__(self, key: "RSAPrivateKey", algorithm: str) -> None:
        """`algorithm`: one of ALGORITHMS."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

        self._cipher: type[AESGCM | ChaCha20Poly1305] = ChaCha20Poly1305 if algorithm == "chacha20-rsa" else AESGCM
        self._key = key
        self._public = key.public_key()
        self._padding = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"keys")
        self.overhead: Final = _HEADER.size + (key.key_size + 7) // 8 + _NONCE_BYTES + _TAG_BYTES
        """Bytes that a sealed string has more than a plain one."""

    def seal(self, data: Buffer) -> bytes:
        """The bytes to store."""
        key = os.urandom(_KEY_BYTES)
        nonce = os.urandom(_NONCE_BYTES)
        wrapped = self._public.encrypt(key, self._padding)
        header = _HEADER.pack(len(wrapped), len(nonce))
        return b"".join((header, wrapped, nonce, self._cipher(key).encrypt(nonce, data, None)))

    def open(self, data: Buffer) -> bytes:
        """The plain bytes.  BadObject for what was not sealed with this key, or has changed since."""
        from cryptography.exceptions import InvalidTag

        if len(data) < _HEADER.size:
            raise BadObject(f"{len(data)} bytes are too few to be an encrypted object")
        key_bytes, nonce_bytes = _HEADER.unpack_from(data)
        start = _HEADER.size + key_bytes
        body = start + nonce_bytes
        if nonce_bytes != _NONCE_BYTES or len(data) < body + _TAG_BYTES:
            raise BadObject("it is not an encrypted object, or is cut short")
        view = memoryview(data)  # its slices are no copies
        try:
            key = self._key.decrypt(bytes(view[_HEADER.size : start]), self._padding)
        except ValueError:
            raise BadObject("its key cannot be unwrapped with the volume's RSA key") from None
        if len(key) != _KEY_BYTES:
            raise BadObject(f"its key has {len(key)} bytes instead of {_KEY_BYTES}")
        try:
            return self._cipher(key).decrypt(bytes(view[start:body]), view[body:], None)
        except InvalidTag:
            raise BadObject("its bytes are not those that were encrypted") from None


class Encrypted(Decorator):
    """`inner`, holding sealed objects.  Must be the outermost decorator: a part of an object takes all of it to get.

    `head` and `list` give the sizes that objects have in the store.
    """

    def __init__(self, inner: ObjectStore, sealer: Sealer) -> None:
        super().__init__(inner)
        self.sealer = sealer

    @property
    def overhead(self) -> int:
        """Bytes that an object has more in the store than its plain ones."""
        return self.sealer.overhead

    def describe(self) -> str:
        return self.inner.describe() + "(encrypted)"

    def local_path(self, key: str) -> str | None:
        """Never: what lies in a file is not what `get` gives."""
        return None

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Raises BadObject too, for an object that is not what was put."""
        sealed = self.inner.get(key)
        try:
            data = self.sealer.open(sealed)
        except BadObject as error:
            raise BadObject(f"{key}: {error}") from None
        end = len(data) if length is None else offset + length
        return data if offset == 0 and end >= len(data) else data[offset:end]

    def errand(self, key: str, size: int) -> Errand | None:
        """None: decrypting is work for a thread."""
        return None

    def put(self, key: str, data: Buffer) -> None:
        self.inner.put(key, self.sealer.seal(data))
