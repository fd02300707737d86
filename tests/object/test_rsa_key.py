"""PEM texts of RSA keys: the forms that are read, and one clear line for each that is not."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, PublicFormat

from jfs.errors import UserError
from jfs.object.rsa_key import load_key, read_new_key
from tests.keys import PKCS1, PKCS8, pem, rsa_key

KEY = rsa_key()
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.mark.parametrize("form", [PKCS1, PKCS8], ids=["pkcs1", "pkcs8"])
@pytest.mark.parametrize("passphrase", ["", "secret", "pass phrase é"])
def test_both_forms_with_and_without_a_passphrase(form: PrivateFormat, passphrase: str) -> None:
    assert load_key(pem(KEY, form, passphrase), passphrase).private_numbers() == KEY.private_numbers()


@pytest.mark.parametrize("form", [PKCS1, PKCS8], ids=["pkcs1", "pkcs8"])
def test_a_passphrase_that_is_not_needed(form: PrivateFormat) -> None:
    assert load_key(pem(KEY, form), "unused").private_numbers() == KEY.private_numbers()


@pytest.mark.parametrize("form", [PKCS1, PKCS8], ids=["pkcs1", "pkcs8"])
def test_a_missing_or_wrong_passphrase(form: PrivateFormat) -> None:
    with pytest.raises(
        UserError, match="has a passphrase: please set it in the environment variable JFS_RSA_PASSPHRASE"
    ):
        load_key(pem(KEY, form, "secret"), "")
    with pytest.raises(UserError, match="the passphrase in JFS_RSA_PASSPHRASE is not the RSA key's"):
        load_key(pem(KEY, form, "secret"), "wrong")


@pytest.mark.parametrize(
    "text",
    ["some words before\n" + pem(KEY), pem(KEY) + "\nand after\n", pem(KEY).replace("\n", "\r\n")],
    ids=["before", "after", "crlf"],
)
def test_text_around_a_key(text: str) -> None:
    assert load_key(text, "").private_numbers() == KEY.private_numbers()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a PEM text"),
        ("garbage\n", "not a PEM text"),
        (pem(KEY).replace("\n", ""), "not a PEM text"),
        (PUBLIC, "a PEM text of a public key: an RSA private key is wanted"),
        (PUBLIC + pem(KEY), "a PEM text of a public key"),  # the peer looks at the first one only
        ("\n".join(pem(KEY).splitlines()[:-1]), "the RSA key cannot be read"),
        (pem(KEY).replace("M", "N", 5), "the RSA key cannot be read"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "no RSA key"),  # type: ignore[arg-type]
        (pem(ec.generate_private_key(ec.SECP256R1())), "no RSA key"),  # type: ignore[arg-type]
        (pem(rsa_key(bits=1024)).replace("PRIVATE", "EC PRIVATE"), "of a ec private key"),
    ],
    ids=["empty", "garbage", "line", "public", "public first", "cut", "damaged", "ed25519", "ec", "label"],
)
def test_what_is_no_rsa_key(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_key(text, "")
    assert "\n" not in str(caught.value)


def test_a_cipher_that_the_library_lacks() -> None:
    lines = pem(KEY, PKCS1, "secret").replace("AES-256-CBC", "AES-192-CBC")
    with pytest.raises(UserError, match="encrypted with a cipher that is not supported: `openssl pkcs8 -topk8"):
        load_key(lines, "secret")


def test_short_keys_are_read_where_the_peer_reads_them_but_not_taken_anew(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text(pem(rsa_key(bits=1024)))
    assert load_key(path.read_text(), "").key_size == 1024
    with pytest.raises(UserError, match="it has 1024 bits, at least 2048 are wanted"):
        read_new_key(str(path), "")


def test_a_key_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text(pem(KEY, PKCS8, "secret"))
    assert read_new_key(str(path), "secret") == path.read_text()
    with pytest.raises(UserError, match=f"^load RSA key from {path}: the RSA key has a passphrase"):
        read_new_key(str(path), "")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="load RSA key from /nothing: No such file or directory"):
        read_new_key("/nothing", "")
    with pytest.raises(UserError, match="Is a directory"):
        read_new_key(str(tmp_path), "")
    (tmp_path / "key.der").write_bytes(b"\x30\x82\xff\xfe")
    with pytest.raises(UserError, match="not a PEM text"):
        read_new_key(str(tmp_path / "key.der"), "")
