"""Storage names."""

from pathlib import Path

import pytest

from jfs.errors import StoreError, UserError
from jfs.object.encrypt import ALGORITHMS, Encrypted, Sealer
from jfs.object.limit import Limits
from jfs.object.memory import MemoryStore
from jfs.object.stores import SUPPORTED, impatient, open_store, volume_part
from jfs.object.vendors import VENDORS
from tests.keys import rsa_key


def test_a_volumes_objects_are_under_its_name(tmp_path: Path) -> None:
    store = volume_part(open_store("file", f"{tmp_path}/"), "myvol")
    store.put("juicefs_uuid", b"x")
    assert (tmp_path / "myvol/juicefs_uuid").read_bytes() == b"x"
    assert store.describe() == f"file://{tmp_path}/myvol/"


@pytest.mark.parametrize("encrypted", [False, True])
def test_one_try_instead_of_many(encrypted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = MemoryStore()
    patient = volume_part(bucket, "myvol", limits=Limits())
    store = Encrypted(patient, Sealer(rsa_key(), ALGORITHMS[0])) if encrypted else patient
    hasty = impatient(store)
    hasty.put("k", b"hello")
    assert store.get("k") == hasty.get("k") == b"hello"
    assert (b"hello" in bucket.get("myvol/k")) is not encrypted
    assert hasty.describe() == store.describe()
    tries = []

    def broken(key: str, *_: object) -> bytes:
        tries.append(key)
        raise StoreError("away")

    monkeypatch.setattr(bucket, "get", broken)
    with pytest.raises(StoreError, match="away"):
        hasty.get("k")
    assert tries == ["myvol/k"]


def test_a_store_without_patience_is_what_it_is() -> None:
    bucket = MemoryStore()
    assert impatient(bucket) is bucket


def test_mem() -> None:
    assert open_store("mem", "b").describe() == "mem://b/"


@pytest.mark.parametrize("storage", ["gluster", "wasb", "webdav"])
def test_the_peers_other_storages_are_not_there_yet(storage: str) -> None:
    with pytest.raises(UserError, match=f"storage {storage} is not supported; supported: file, mem, s3, minio"):
        open_store(storage, "b")


def test_every_vendor_is_supported() -> None:
    assert SUPPORTED.split(", ") == ["file", "mem", *VENDORS]


def test_an_unknown_storage() -> None:
    with pytest.raises(UserError, match="invalid storage 'floppy'"):
        open_store("floppy", "b")
