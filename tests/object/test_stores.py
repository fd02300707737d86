"""Storage names."""

from pathlib import Path

import pytest

from jfs.errors import UserError
from jfs.object.stores import SUPPORTED, open_store, volume_part
from jfs.object.vendors import VENDORS


def test_a_volumes_objects_are_under_its_name(tmp_path: Path) -> None:
    store = volume_part(open_store("file", f"{tmp_path}/"), "myvol")
    store.put("juicefs_uuid", b"x")
    assert (tmp_path / "myvol/juicefs_uuid").read_bytes() == b"x"
    assert store.describe() == f"file://{tmp_path}/myvol/"


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
