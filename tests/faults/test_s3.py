"""Mounts on a real S3 server behind a proxy that fails: under load, with an outside log of what was acknowledged."""

import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.faults.black_hole import Cable
from tests.faults.conftest import writing
from tests.faults.proxy import Fault, Proxy
from tests.faults.test_store import noise, write_and_sync
from tests.faults.test_writeback import check_everything, flush, staged
from tests.faults.writer import THREADS, acknowledged, back_at_work, failures, losses, read_log
from tests.mounts import JFS, Volume, format_volume
from tests.s3server import S3Server, free_ports

MIB = 1 << 20
# a loaded machine may add to the second that a client waits at most between two tries; the peer needs 10 s
RESUMES_S = 2.0
OUTAGES_AT_MOST = 3
"""A machine that has other work may be late for once; who waits for too long is late each time."""
LIFE = 400.0
"""Seconds, for so many."""
TROUBLE = ["trying again", "cannot be uploaded yet"]
UNREAD = ["cannot be read", "is bad", "does not match its checksum", "trying again", "read inode"]

measured = logging.getLogger("measured")
NewVolume = Callable[..., Volume]


@pytest.fixture
def proxy(s3_server: S3Server) -> Generator[Proxy, None, None]:
    """At the far end of a cable, so that packets can be lost on their way to it."""
    with Cable() as cable, Proxy(s3_server.port, free_ports(1), cable) as proxy:
        yield proxy


@pytest.fixture
def new_volume(
    tmp_path: Path, s3_server: S3Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> NewVolume:
    """Format a volume on S3 behind the proxy, in a bucket with the volume's name."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    number = abs(hash(request.node.nodeid)) % 10**8

    def make(name: str, *flags: str) -> Volume:
        name = f"{name}-{number}"
        bucket = ("--bucket", f"{proxy.endpoint}/{name}")
        return format_volume(JFS, tmp_path / name, name, *s3_server.format_flags, *bucket, *flags)

    return make


def folder_of_cache(volume: Volume) -> Path:
    return volume.folder / "cache"


def assert_all_there(volume: Volume, log: Path) -> None:
    """No step failed, and what the log says was acknowledged is in the store."""
    assert failures(log) == []
    check_everything(volume)
    with volume.mounted(JFS, "--cache-dir", str(volume.folder / "cold")) as mount:
        assert losses(mount.path / "work", log) == []


OUTAGES = {
    "away": (Fault.AWAY, 20.0),
    "503": (Fault.BUSY, 6.0),
    "frozen": (Fault.HANG, 6.0),
    "lost": (Fault.LOST, 15.0),
    "timing out": (Fault.SILENT, 6.0),
}


@pytest.mark.timeout(LIFE + 30)
@pytest.mark.parametrize("kind", OUTAGES)
def test_an_outage_under_load(new_volume: NewVolume, proxy: Proxy, tmp_path: Path, kind: str) -> None:
    """Two mounts at work, one with writeback: nobody sees an error, nothing is lost, work goes on soon afterwards."""
    fault, seconds = OUTAGES[kind]
    direct, lazy = new_volume("direct", "--hash-prefix"), new_volume("lazy", "--compress", "lz4")
    logs = {volume.name: tmp_path / f"{volume.name}.log" for volume in (direct, lazy)}
    timeouts = ("--put-timeout", "2s", "--get-timeout", "2s") if fault is Fault.SILENT else ()
    with (
        direct.mounted(JFS, *timeouts, expect_log=TROUBLE, life=LIFE) as mount,
        lazy.mounted(JFS, *timeouts, "--writeback", expect_log=TROUBLE, life=LIFE) as back,
    ):
        for each in (mount, back):
            (each.path / "work").mkdir()
        with (
            writing(mount.path / "work", logs[direct.name], 500, "--sync"),
            writing(back.path / "work", logs[lazy.name], 501, "--sync") as eager,
        ):
            for log in logs.values():
                eventually(lambda log=log: acknowledged(log) > 30, 60, "30 steps")
            for _ in range(OUTAGES_AT_MOST):
                with proxy.failing(fault, seconds=seconds):
                    goal = acknowledged(logs[lazy.name]) + 50
                    eventually(lambda goal=goal: acknowledged(logs[lazy.name]) > goal, 60, "50 steps with writeback")
                    eager.send_signal(signal.SIGSTOP)  # more of it would only take long to upload and to read
                eager.send_signal(signal.SIGCONT)
                first = max(proxy.resumed(volume.name) for volume in (direct, lazy))
                if first < RESUMES_S:
                    break
            eventually(lambda: len(back_at_work(logs[direct.name], proxy.ended)) == THREADS, 60, "all to be at work")
        assert "All staging chunks are flushed" in flush(back)
    each = [f"{after:.2f}" for after in back_at_work(logs[direct.name], proxy.ended).values()]
    measured.info("%s: first put %.2f s after its end, the writers' first fsync %s s", kind, first, ", ".join(each))
    assert first < RESUMES_S
    assert staged(folder_of_cache(lazy)) == []
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(assert_all_there, volume, logs[volume.name]) for volume in (direct, lazy)]:
            done.result()


@pytest.mark.parametrize("writeback", [False, True], ids=["direct", "writeback"])
def test_connections_reset_and_refused_now_and_then(
    new_volume: NewVolume, proxy: Proxy, tmp_path: Path, *, writeback: bool
) -> None:
    """Every third put is cut off half-way, then every third request is answered 503; what was put half is no object."""
    volume = new_volume("shaky")
    log = tmp_path / "log"
    with volume.mounted(JFS, *(["--writeback"] if writeback else []), expect_log=TROUBLE) as mount:
        (mount.path / "work").mkdir()
        with writing(mount.path / "work", log, 510, "--sync"):
            for fault in (Fault.RESET_REQUEST, Fault.BUSY):
                with proxy.failing(fault, share=0.3):
                    goal = acknowledged(log) + 60
                    eventually(lambda goal=goal: acknowledged(log) > goal, 60, "60 steps")
                    eventually(lambda fault=fault: proxy.struck[fault] > 10, 60, "10 puts to be harmed")
        assert "All staging chunks are flushed" in flush(mount) if writeback else True
    assert_all_there(volume, log)


def settled_files(log: Path) -> dict[str, bytes]:
    """What files must hold that no step was changing when the writer ended."""
    states, under_way = read_log(log)
    unsure = {step["name"] for step in under_way.values()}
    return {name: data for state in states.values() for name, data in state.files.items() if name not in unsure}


def read_all(root: Path, files: dict[str, bytes]) -> Counter[str]:
    """How many files were read well, and how many refused with EIO; wrong bytes are the end."""
    found: Counter[str] = Counter()
    for name, data in files.items():
        try:
            seen = (root / name).read_bytes()
        except OSError as error:
            assert error.strerror == "Input/output error"  # noqa: PT017
            found["refused"] += 1
        else:
            assert seen == data, f"{name}: wrong bytes"
            found["right"] += 1
    return found


@pytest.fixture
def written(new_volume: NewVolume, tmp_path: Path) -> tuple[Volume, dict[str, bytes]]:
    """A volume with some files in `work`; compressed, so that no block is read in parts: parts cannot be checked."""
    volume = new_volume("written", "--compress", "zstd")
    log = tmp_path / "log"
    with volume.mounted(JFS) as mount:
        (mount.path / "work").mkdir()
        with writing(mount.path / "work", log, 520):
            eventually(lambda: acknowledged(log) > 100, 60, "100 steps")
    return volume, settled_files(log)


HARMED_ANSWERS = {
    "reset": Fault.RESET_ANSWER,
    "cut short": Fault.CUT,
    "short and well-formed": Fault.SHORT,
    "wrong": Fault.WRONG,
}


@pytest.mark.parametrize("kind", HARMED_ANSWERS)
def test_harmed_answers_are_never_wrong_bytes(
    written: tuple[Volume, dict[str, bytes]], proxy: Proxy, tmp_path: Path, kind: str
) -> None:
    volume, files = written
    fault = HARMED_ANSWERS[kind]
    cold = ("--cache-dir", str(tmp_path / "cold"), "--io-retries", "1")
    with volume.mounted(JFS, *cold, expect_log=UNREAD) as mount:
        with proxy.failing(fault):
            assert read_all(mount.path / "work", dict(list(files.items())[:2]))["refused"] > 0
        with proxy.failing(fault, share=0.3):
            found = read_all(mount.path / "work", files)
        assert found["right"] > 10 * found["refused"], found
        assert proxy.struck[fault] > 5
        assert read_all(mount.path / "work", files) == {"right": len(files)}  # nothing bad was kept
    check_everything(volume)


@pytest.mark.parametrize("fault", [Fault.CUT, Fault.SHORT, Fault.RESET_ANSWER], ids=lambda fault: fault.name.lower())
def test_harmed_parts_of_blocks_are_never_wrong_bytes(new_volume: NewVolume, proxy: Proxy, fault: Fault) -> None:
    """Random reads of a plain volume fetch parts of blocks; they are as long as they were to be."""
    volume = new_volume("parts")
    data = noise(1, 12 * MIB)
    with volume.mounted(JFS) as mount:
        write_and_sync(mount.path / "f", data)
    with volume.mounted(
        JFS, "--io-retries", "2", "--cache-dir", str(volume.folder / "cold"), "--prefetch", "0", expect_log=UNREAD
    ) as mount:  # whole blocks that come in the background would leave nothing to be read in parts
        places = [(number * 7919 * 4096) % (12 * MIB - 8192) for number in range(60)]
        descriptor = os.open(mount.path / "f", os.O_RDONLY)
        try:
            with proxy.failing(fault, share=0.3):
                for place in places:
                    assert os.pread(descriptor, 5000, place) == data[place : place + 5000]
        finally:
            os.close(descriptor)
        assert proxy.struck[fault] > 5


def test_errors_surface_and_the_mount_stays_usable(new_volume: NewVolume, proxy: Proxy) -> None:
    """The tries are used up: fsync and close say so, names and attributes go on, and data as soon as the server is back."""
    volume = new_volume("surfacing")
    expected = [*UNREAD, "are lost", "given up", "put", "refused"]
    with volume.mounted(
        JFS, "--io-retries", "1", "--cache-dir", str(volume.folder / "cold"), expect_log=expected
    ) as mount:
        write_and_sync(mount.path / "before", noise(1, MIB))
        with proxy.failing(Fault.AWAY):
            with ThreadPoolExecutor() as pool:
                synced = pool.submit(write_and_sync, mount.path / "refused-by-fsync", noise(2, MIB))
                descriptor = os.open(mount.path / "refused-by-close", os.O_WRONLY | os.O_CREAT)
                os.write(descriptor, b"x" * 1000)
                for refused in (synced, pool.submit(os.close, descriptor)):
                    with pytest.raises(OSError, match="Input/output error"):
                        refused.result()
            (mount.path / "folder").mkdir()
            os.rename(mount.path / "folder", mount.path / "renamed")
            assert (mount.path / "before").stat().st_size == MIB
        assert (mount.path / "before").read_bytes() == noise(1, MIB)
        for name in ("refused-by-fsync", "refused-by-close", "after"):
            write_and_sync(mount.path / name, noise(3, 5 * MIB))
            assert (mount.path / name).read_bytes() == noise(3, 5 * MIB)
    check_everything(volume)


def test_a_slow_server_is_only_slow(new_volume: NewVolume, proxy: Proxy, tmp_path: Path) -> None:
    volume = new_volume("slow", "--block-size", "1024")
    data = noise(1, MIB + MIB // 4)
    with proxy.failing(Fault.SLOW):
        with volume.mounted(JFS, "--cache-dir", str(tmp_path / "cold")) as mount:
            write_and_sync(mount.path / "f", data)
        with volume.mounted(JFS, "--cache-dir", str(tmp_path / "colder")) as mount:
            assert (mount.path / "f").read_bytes() == data
    assert proxy.struck[Fault.SLOW] >= 4  # two blocks, both ways
