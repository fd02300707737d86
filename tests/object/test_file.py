"""The file store's own promises: the peer's layout, no left-overs, what sync flushes."""

import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest

import jfs.object.file as file_module
from jfs.errors import StoreError, StoreFull, UserError
from jfs.object.file import FileStore, is_temporary


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(f"{tmp_path}/vol/")


def all_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_layout_and_modes(store: FileStore, tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        store.put("chunks/0/12/12345_0_3", b"abc")
    finally:
        os.umask(previous)
    path = tmp_path / "vol/chunks/0/12/12345_0_3"
    assert path.read_bytes() == b"abc"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert all_files(tmp_path) == ["vol/chunks/0/12/12345_0_3"]


@pytest.mark.parametrize(("code", "expected"), [(errno.ENOSPC, StoreFull), (errno.EIO, StoreError)])
@pytest.mark.parametrize("call", ["write", "rename"])
def test_a_failed_put_leaves_nothing(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, expected: type[StoreError]
) -> None:
    store.put("a/k", b"before")

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(expected, match="a/k"):
            store.put("a/k", b"after")
    assert all_files(tmp_path) == ["vol/a/k"]
    assert store.get("a/k") == b"before"


def test_short_writes_are_continued(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, memoryview(data)[:7]))
    store.put("k", b"0123456789" * 5)
    assert store.get("k") == b"0123456789" * 5


def test_short_reads_are_continued(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("k", b"0123456789" * 5)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 7), offset))
    assert store.get("k", 3) == (b"0123456789" * 5)[3:]


def test_list_skips_puts_in_progress(store: FileStore, tmp_path: Path) -> None:
    store.put("chunks/1_0_1", b"x")
    (tmp_path / "vol/chunks/.jfs.2_0_1.tmp.123").write_bytes(b"half")
    assert [found.key for found in store.list()] == ["chunks/1_0_1"]
    os.utime(tmp_path / "vol/chunks/.jfs.2_0_1.tmp.123", (1, 1))  # nobody is at it any more
    assert [found.key for found in store.list()] == ["chunks/.jfs.2_0_1.tmp.123", "chunks/1_0_1"]
    assert is_temporary(".jfs.2_0_1.tmp.123")
    assert not is_temporary(".jfs.x")


def test_list_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert list(FileStore(f"{tmp_path}/nowhere/").list()) == []


def test_unreadable_is_an_error_not_missing(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("k", b"x")

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(StoreError, match="Input/output error") as caught:
        store.get("k")
    assert type(caught.value) is StoreError


def test_a_relative_root_is_refused() -> None:
    with pytest.raises(UserError, match="absolute"):
        FileStore("here/")


def test_few_objects_are_flushed_with_all_folders_above(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    real_flush = file_module._flush

    def flush(path: str) -> None:
        flushed.append(path)
        real_flush(path)

    monkeypatch.setattr(file_module, "_flush", flush)
    store.put("chunks/0/0/1_0_1", b"x")
    store.sync(["chunks/0/0/1_0_1"])
    vol = f"{tmp_path}/vol"
    assert flushed[:2] == [f"{vol}/chunks/0/0/1_0_1", f"{vol}/chunks/0/0"]
    assert {f"{vol}/chunks/0", f"{vol}/chunks", vol, str(tmp_path)} <= set(flushed)
    flushed.clear()
    store.put("chunks/0/0/2_0_1", b"x")
    store.sync(["chunks/0/0/2_0_1"])
    assert flushed == [f"{vol}/chunks/0/0/2_0_1", f"{vol}/chunks/0/0"], "the folders above are durable already"


def test_many_objects_are_flushed_at_once(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(file_module, "syncfs", calls.append)
    names = [f"chunks/{number}_0_1" for number in range(file_module.SYNCFS_FROM)]
    for name in names:
        store.put(name, b"x")
    store.sync(names)
    assert len(calls) == 1


def test_every_file_system_that_holds_some_of_them_is_flushed(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Path("/dev/shm")
    assert elsewhere.stat().st_dev != tmp_path.stat().st_dev, "the test needs a second file system"
    flushed: list[int] = []
    monkeypatch.setattr(file_module, "syncfs", lambda fd: flushed.append(os.fstat(fd).st_dev))
    with tempfile.TemporaryDirectory(dir=elsewhere) as there:
        (tmp_path / "vol/chunks").mkdir(parents=True)
        (tmp_path / "vol/chunks/1").symlink_to(there)
        names = [f"chunks/{number % 3}/{number // 3}_0_1" for number in range(2 * file_module.SYNCFS_FROM)]
        for name in names:
            store.put(name, b"x")
        store.sync([*names, "chunks/removed/1_0_1"])
        assert sorted(flushed) == sorted([tmp_path.stat().st_dev, elsewhere.stat().st_dev])
        flushed.clear()
        store.sync([name for name in names if "/1/" not in name])
        assert flushed == [tmp_path.stat().st_dev]
        flushed.clear()
        FileStore(f"{tmp_path}/").sync_all()
        assert sorted(flushed) == sorted([tmp_path.stat().st_dev, elsewhere.stat().st_dev])
    flushed.clear()
    FileStore(f"{tmp_path}/never/made/").sync_all()
    assert flushed == []


@pytest.mark.parametrize("count", [1, file_module.SYNCFS_FROM])
def test_a_failed_flush_is_an_error(store: FileStore, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    names = [f"chunks/{number}_0_1" for number in range(count)]
    for name in names:
        store.put(name, b"x")

    def fail(_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(file_module, "syncfs", fail)
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(StoreError, match="Input/output error"):
        store.sync(names)


def test_syncfs_reports_a_bad_descriptor() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        file_module.syncfs(-1)
