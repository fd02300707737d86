"""Encrypted objects: the peer's layout, and what does not authenticate."""

import os
import struct

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from jfs.errors import BadObject, ObjectMissing, UserError
from jfs.object.encrypt import ALGORITHMS, Encrypted, Sealer, check_algorithm
from jfs.object.memory import MemoryStore
from tests.keys import rsa_key

KEY, OTHER_KEY = rsa_key(0), rsa_key(1)
DATA = bytes(range(256)) * 4
OVERHEAD = 3 + 256 + 12 + 16


@pytest.fixture(params=ALGORITHMS)
def sealer(request: pytest.FixtureRequest) -> Sealer:
    return Sealer(KEY, request.param)


def encrypted(algorithm: str = ALGORITHMS[0]) -> tuple[Encrypted, MemoryStore]:
    inner = MemoryStore("bucket")
    return Encrypted(inner, Sealer(KEY, algorithm)), inner


@pytest.mark.parametrize("data", [b"", b"x", DATA, os.urandom(1 << 20)], ids=len)
def test_what_was_sealed_is_opened(sealer: Sealer, data: bytes) -> None:
    sealed = sealer.seal(data)
    assert len(sealed) == len(data) + sealer.overhead == len(data) + OVERHEAD
    assert sealer.open(sealed) == data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_will_do(sealer: Sealer, kind: type) -> None:
    assert sealer.open(kind(sealer.seal(kind(DATA)))) == DATA


@pytest.mark.parametrize(
    ("algorithm", "cipher"), [("aes256gcm-rsa", AESGCM), ("chacha20-rsa", ChaCha20Poly1305)], ids=ALGORITHMS
)
def test_the_layout(algorithm: str, cipher: type[AESGCM] | type[ChaCha20Poly1305]) -> None:
    sealed = Sealer(KEY, algorithm).seal(DATA)
    key_bytes, nonce_bytes = struct.unpack_from(">HB", sealed)
    assert (key_bytes, nonce_bytes) == (256, 12)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"keys")
    key = KEY.decrypt(sealed[3:259], oaep)
    assert len(key) == 32
    assert cipher(key).decrypt(sealed[259:271], sealed[271:], None) == DATA


def test_every_object_has_a_key_and_a_nonce_of_its_own(sealer: Sealer) -> None:
    sealed = [sealer.seal(DATA) for _ in range(3)]
    assert len({each[3:259] for each in sealed}) == len({each[259:271] for each in sealed}) == 3


def test_a_longer_key_makes_a_longer_header() -> None:
    sealer = Sealer(rsa_key(bits=3072), ALGORITHMS[0])
    assert len(sealer.seal(b"")) == sealer.overhead == OVERHEAD + 128


# one place in each part: the lengths, the wrapped key, the nonce, the ciphertext, the tag
@pytest.mark.parametrize("place", [0, 1, 2, 3, 100, 258, 259, 270, 271, 700, -16, -1])
@pytest.mark.parametrize("bit", [0x01, 0x80])
def test_a_flipped_bit_is_found(sealer: Sealer, place: int, bit: int) -> None:
    sealed = bytearray(sealer.seal(DATA))
    sealed[place] ^= bit
    with pytest.raises(BadObject):
        sealer.open(sealed)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 200, 259, 271, 286, 287, len(DATA) + OVERHEAD - 1])
def test_a_truncated_object_is_found(sealer: Sealer, length: int) -> None:
    with pytest.raises(BadObject):
        sealer.open(sealer.seal(DATA)[:length])


def test_bytes_at_the_end_are_found(sealer: Sealer) -> None:
    with pytest.raises(BadObject, match="not those that were encrypted"):
        sealer.open(sealer.seal(DATA) + b"\0")


def test_a_plain_object_is_found(sealer: Sealer) -> None:
    for data in (DATA, b"\0" * 5000, os.urandom(5000)):
        with pytest.raises(BadObject):
            sealer.open(data)


def test_another_volumes_key(sealer: Sealer) -> None:
    for algorithm in ALGORITHMS:
        with pytest.raises(BadObject, match="cannot be unwrapped with the volume's RSA key"):
            sealer.open(Sealer(OTHER_KEY, algorithm).seal(DATA))


def test_the_other_algorithm() -> None:
    with pytest.raises(BadObject, match="not those that were encrypted"):
        Sealer(KEY, ALGORITHMS[0]).open(Sealer(KEY, ALGORITHMS[1]).seal(DATA))


def test_a_key_of_another_length_is_found() -> None:
    """Whoever knows the public key can wrap anything."""
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"keys")
    wrapped = KEY.public_key().encrypt(b"k" * 16, oaep)
    sealed = struct.pack(">HB", 256, 12) + wrapped + b"n" * 12 + AESGCM(b"k" * 16).encrypt(b"n" * 12, DATA, None)
    with pytest.raises(BadObject, match="16 bytes instead of 32"):
        Sealer(KEY, ALGORITHMS[0]).open(sealed)


def test_algorithms_by_name() -> None:
    assert check_algorithm("") == "aes256gcm-rsa"
    assert [check_algorithm(name) for name in ALGORITHMS] == list(ALGORITHMS)
    with pytest.raises(UserError, match="sm4gcm is not supported; supported: aes256gcm-rsa, chacha20-rsa"):
        check_algorithm("sm4gcm")


# -- the store


def test_ranges_of_an_object() -> None:
    store, _ = encrypted()
    store.put("k", DATA)
    assert store.get("k") == DATA
    assert store.get("k", 0, len(DATA)) == DATA
    assert store.get("k", 10, 20) == DATA[10:30]
    assert store.get("k", 1000) == DATA[1000:]
    assert store.get("k", 1000, 100) == DATA[1000:]
    assert store.get("k", 5000, 10) == b""
    assert store.get("k", 0, 0) == b""


def test_the_store_holds_no_plain_bytes() -> None:
    store, inner = encrypted()
    store.put("k", b"secret " * 100)
    assert b"secret" not in inner.get("k")
    assert inner.head("k").size == store.head("k").size == 700 + store.overhead
    assert [info.size for info in store.list()] == [700 + store.overhead]
    assert store.local_path("k") is None
    assert store.errand("k", 700) is None
    assert store.describe() == "mem://bucket/(encrypted)"


def test_a_bad_object_is_named() -> None:
    store, inner = encrypted()
    inner.put("chunks/0/0/1_0_5", b"plain")
    with pytest.raises(BadObject, match=r"^chunks/0/0/1_0_5: "):
        store.get("chunks/0/0/1_0_5")
    with pytest.raises(ObjectMissing):
        store.get("chunks/0/0/2_0_5")


def test_swapped_objects_are_not_found() -> None:
    """The format does not bind an object to its name: this is known, and documented, and not ours to change."""
    store, inner = encrypted()
    store.put("a", b"first")
    store.put("b", b"other")
    inner.put("a", inner.get("b"))
    assert store.get("a") == b"other"
