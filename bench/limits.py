"""What the machine itself can do, without a distributed file system: the bound of each row."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.data import BIG, FILES, GIB, MIB, PIECE, SMALL, each, read, write
from bench.mounts import run, settle, wait
from bench.servers import Servers
from bench.timing import Rows, for_all, timed, touch
from bench.work import CLUSTER, COMPARISONS, LOCAL

BLOCK = 4 * MIB
CONNECTIONS = 16
REQUESTS = 1000
TRANSACTIONS = 300

MEMCPY = "memory, copy 4 MiB (MiB/s)"
DISK_WRITE, DISK_SYNC = "local file system, write (MiB/s)", "local file system, write and fsync (MiB/s)"
DISK_COLD, DISK_WARM = "local file system, read, cold (MiB/s)", "local file system, read, warm (MiB/s)"
DISK_SMALL, DISK_SMALL_READ = "local file system, write 128 KiB (files/s)", "local file system, read 128 KiB (files/s)"
S3_PUT, S3_GET = "botocore, PUT 4 MiB (MiB/s)", "botocore, GET 4 MiB (MiB/s)"
S3_SMALL_PUT, S3_SMALL_GET = "botocore, PUT 128 KiB (per s)", "botocore, GET 128 KiB (per s)"
FUSE_WRITE, FUSE_READ = "empty FUSE daemon, write (MiB/s)", "empty FUSE daemon, read (MiB/s)"
FUSE_STAT, FUSE_CREATE = "empty FUSE daemon, stat (files/s)", "empty FUSE daemon, create (files/s)"
TIKV = "tikv-client, transaction of 1 read and 3 writes (per s)"

FILE_DATA, FILE_STAGED, S3_DATA, S3_STAGED = (
    COMPARISONS[name].section for name in ("file", "file-writeback", "s3", "s3-writeback")
)
BIG_WRITE, BIG_COLD, BIG_WARM = (
    "big sequential write (MiB/s)",
    "big sequential read, cold (MiB/s)",
    "big sequential read, warm (MiB/s)",
)
SMALL_WRITE, SMALL_COLD, SMALL_WARM = (
    "128 KiB files, write (files/s)",
    "128 KiB files, read, cold (files/s)",
    "128 KiB files, read, warm (files/s)",
)

BOUNDS: list[tuple[str, str, tuple[str, ...]]] = [
    (FILE_DATA, BIG_WRITE, (DISK_WRITE, DISK_SYNC, FUSE_WRITE, MEMCPY)),
    (FILE_DATA, BIG_COLD, (DISK_COLD, FUSE_READ)),
    (FILE_DATA, BIG_WARM, (DISK_WARM, FUSE_READ)),
    (FILE_DATA, SMALL_WRITE, (DISK_SMALL, FUSE_CREATE)),
    (FILE_DATA, SMALL_WARM, (DISK_SMALL_READ, FUSE_STAT)),
    (FILE_STAGED, BIG_WRITE, (DISK_WRITE, DISK_SYNC, FUSE_WRITE)),
    (FILE_STAGED, SMALL_WRITE, (DISK_SMALL, FUSE_CREATE)),
    (S3_DATA, BIG_WRITE, (S3_PUT, FUSE_WRITE)),
    (S3_DATA, BIG_COLD, (S3_GET, FUSE_READ)),
    (S3_DATA, BIG_WARM, (DISK_WARM, FUSE_READ)),
    (S3_DATA, SMALL_WRITE, (S3_SMALL_PUT, FUSE_CREATE)),
    (S3_DATA, SMALL_COLD, (S3_SMALL_GET,)),
    (S3_STAGED, BIG_WRITE, (DISK_WRITE, DISK_SYNC, FUSE_WRITE)),
    (S3_STAGED, SMALL_WRITE, (DISK_SMALL, FUSE_CREATE)),
    (LOCAL, "10,000 empty files, create (files/s)", (FUSE_CREATE,)),
    (LOCAL, "10,000 empty files, stat (files/s)", (FUSE_STAT,)),
    (CLUSTER, "empty files, create (files/s)", (TIKV, FUSE_CREATE)),
    (CLUSTER, "empty files, stat (files/s)", (FUSE_STAT,)),
]
"""Section, row of jfs, and the limits that it cannot pass."""


def measure_limits(folder: Path, servers: Servers) -> Rows:
    folder.mkdir()
    return _memory() | _disk(folder) | _fuse(folder) | _s3(servers) | _tikv(servers)


def _memory() -> Rows:
    source, target = bytes(BLOCK), memoryview(bytearray(BLOCK))

    def copy() -> None:
        for _ in range(BIG // BLOCK):
            target[:] = source

    return {MEMCPY: BIG / MIB / timed(copy)}


def _disk(folder: Path) -> Rows:
    def synced() -> None:
        write(folder / "synced", PIECE, BIG // MIB)
        with (folder / "synced").open("rb+") as file:
            os.fsync(file)

    names = [folder / f"small-{number}" for number in range(FILES)]
    settle()
    rows = {DISK_WRITE: BIG / MIB / timed(lambda: write(folder / "big", PIECE, BIG // MIB))}
    settle()
    rows[DISK_SYNC] = BIG / MIB / timed(synced)
    os.sync()
    rows[DISK_COLD] = BIG / MIB / timed(lambda: read(folder / "big"))
    rows[DISK_WARM] = BIG / MIB / timed(lambda: read_cached(folder / "big"))
    rows[DISK_SMALL] = FILES / timed(lambda: each(lambda name: write(name, SMALL), names))
    rows[DISK_SMALL_READ] = FILES / timed(lambda: each(read_cached, names))
    return rows


def read_cached(name: Path) -> None:
    """From the kernel's pages, where it has them."""
    with name.open("rb", buffering=0) as file:
        buffer = bytearray(MIB)
        while file.readinto(buffer):
            pass


def _fuse(folder: Path) -> Rows:
    names = [f"{folder}/nothing/file-{number}" for number in range(10_000)]
    with _empty_daemon(folder / "nothing") as path:
        rows = {
            FUSE_WRITE: 4 * BIG / MIB / timed(lambda: write(path / "big", PIECE, 4 * BIG // MIB)),
            FUSE_READ: BIG / MIB / timed(lambda: read(path / "big")),
            FUSE_STAT: len(names) / timed(lambda: for_all(os.stat, names)),
        }
        absent = [f"{name}-absent" for name in names]
        rows[FUSE_CREATE] = len(names) / timed(lambda: for_all(touch, absent))
        return rows


@contextmanager
def _empty_daemon(path: Path) -> Iterator[Path]:
    path.mkdir()
    process = subprocess.Popen([sys.executable, "-m", "bench.noop", str(path)])
    try:
        wait(path.is_mount)
        yield path
    finally:
        run(["umount", str(path)])
        process.wait(30)


def _s3(servers: Servers) -> Rows:
    from botocore.config import Config
    from botocore.session import get_session

    server = servers.s3
    client = get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(
            max_pool_connections=CONNECTIONS,
            request_checksum_calculation="when_required",
            s3={"addressing_style": "path"},
        ),
    )
    client.create_bucket(Bucket="limits")
    blocks = GIB // BLOCK
    return {
        S3_PUT: GIB / MIB / timed(lambda: _requests(client, blocks, bytes(BLOCK))),
        S3_GET: GIB / MIB / timed(lambda: _requests(client, blocks)),
        S3_SMALL_PUT: REQUESTS / timed(lambda: _requests(client, REQUESTS, SMALL)),
        S3_SMALL_GET: REQUESTS / timed(lambda: _requests(client, REQUESTS)),
    }


def _requests(client: Any, count: int, body: bytes | None = None) -> None:
    """That many PUTs, or GETs, on all connections."""

    def one(number: int) -> None:
        key = f"object-{number}"
        if body is None:
            client.get_object(Bucket="limits", Key=key)["Body"].read()
        else:
            client.put_object(Bucket="limits", Key=key, Body=body)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(one, range(count)))


def _tikv(servers: Servers) -> Rows:
    from tests.tikv.client import with_client

    async def work(client: Any) -> None:
        for number in range(TRANSACTIONS):
            transaction = await client.begin(pessimistic=False)
            await transaction.get(b"limits-%d-0" % number)
            for part in range(3):
                await transaction.put(b"limits-%d-%d" % (number, part), bytes(80))
            await transaction.commit()

    return {TIKV: TRANSACTIONS / timed(lambda: with_client(servers.tikv, work))}
