"""Cache folders that cannot be used from the start."""

import errno
import os
from pathlib import Path

import pytest

from jfs.chunk import cache_dir
from jfs.chunk.cache import DiskCache
from jfs.chunk.folders import lock_id
from jfs.errors import UserError
from tests.chunk.test_cache import BLOCK, UUID, key_of, options
from tests.chunk.test_cache import pattern as bytes_of
from tests.deadline import eventually

# -- folders that cannot be used


def break_opening(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """Let the folder below the path of that name fail."""

    def lock(folder: str, wanted: str | None = None) -> str:
        if f"/{name}/" in folder:
            raise OSError(code, os.strerror(code), folder)
        return lock_id(folder, wanted)

    monkeypatch.setattr(cache_dir, "lock_id", lock)


@pytest.mark.logs("cache folder .*/a/.* is not used: open: .* .it is tried again in 10 s")
@pytest.mark.parametrize("code", [errno.ENOTCONN, errno.EIO, errno.EACCES, errno.ENOTDIR, errno.ELOOP])
def test_one_folder_that_fails_at_the_start_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with monkeypatch.context() as patched:
        break_opening(patched, "a", code)
        cache = DiskCache(options(tmp_path / "a", tmp_path / "b"))
    failing, good = cache.dirs
    assert (failing.usable, good.usable) == (False, True)
    keys = [key_of(number) for number in range(10)]
    for key in keys:
        cache.add(key, bytes_of(BLOCK))
    cache.wait_written()
    assert all(good.get(key, BLOCK, 0, BLOCK) == bytes_of(BLOCK) for key in keys)
    for key in keys:
        cache.remove(key)
    monkeypatch.setattr(failing, "_retry_at", 0.0)
    eventually(lambda: failing.usable)
    cache.close()


@pytest.mark.logs("cache folder .*/file/.* is not used: open: Not a directory")
def test_a_folder_below_a_file_is_left_out_until_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    cache = DiskCache(options(tmp_path / "file", tmp_path / "good"))
    below, good = cache.dirs
    assert (below.usable, good.usable) == (False, True)
    (tmp_path / "file").unlink()
    below.try_again()
    assert below.usable
    assert (tmp_path / "file" / UUID / ".lock").exists()
    cache.close()


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOTDIR, errno.ENOENT, errno.ELOOP])
def test_nothing_but_wrong_folders_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    break_opening(monkeypatch, "a", code)
    with pytest.raises(UserError, match=f"cache folder .*/a/{UUID}: {os.strerror(code)}"):
        DiskCache(options(tmp_path / "a"))
    with pytest.raises(UserError, match=os.strerror(code)):
        DiskCache(options(tmp_path / "a" / "1", tmp_path / "a" / "2"))


@pytest.mark.logs("is not used: open", "no cache folder is left")
@pytest.mark.parametrize(
    "code", [errno.ENOTCONN, errno.ECONNABORTED, errno.ETIMEDOUT, errno.EREMOTEIO, errno.EHOSTDOWN, errno.ESTALE]
)
def test_a_dead_disk_alone_means_a_cache_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    with monkeypatch.context() as patched:
        break_opening(patched, "a", code)
        cache = DiskCache(options(tmp_path / "a"))
    cache.add(key_of(1), bytes_of(BLOCK))
    assert cache.get(key_of(1), BLOCK, 0, BLOCK) == bytes_of(BLOCK)
    cache.close()
