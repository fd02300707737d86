"""This client and the peer's at work on one volume and in one directory, while regions split, move and refuse."""

from pathlib import Path

import trio

from jfs.meta.client import MetaClient
from jfs.meta.engines import open_engine
from jfs.meta.types import ROOT, ROOT_INO
from tests.meta.volumes import assert_clean, connect, make_file
from tests.mounts import PEER, format_volume
from tests.tikv.cluster import Cluster
from tests.tikv.control import Control

NAMES = 60
PREFIX = b"both\xfd"


def peers_work(folder: Path) -> None:
    for number in range(NAMES):
        (folder / f"p{number}").write_text(f"content {number}")
    for number in range(0, NAMES, 2):
        (folder / f"p{number}").rename(folder / f"q{number}")
    for number in range(0, NAMES, 4):
        (folder / f"q{number}").unlink()


async def own_work(client: MetaClient, ino: int) -> None:
    for number in range(NAMES):
        await make_file(client, b"j%d" % number, parent=ino)
    for number in range(0, NAMES, 2):
        await client.rename(ROOT, ino, b"j%d" % number, ino, b"k%d" % number, 0)
    for number in range(0, NAMES, 4):
        await client.unlink(ROOT, ino, b"k%d" % number)


async def trouble(control: Control) -> None:
    turn = 0
    while True:
        for kind in ("not_leader", "epoch_not_match", "server_is_busy", "stale_command"):
            turn += 1
            # Not more than are met: the peer waits longer after each.
            control.clear_faults()
            control.fault("kv", kind, times=2)
            if turn < 12:
                control.split(PREFIX + b"A" + bytes([turn]))
            region = control.regions()[turn % len(control.regions())]
            control.transfer(region.id, turn % 2 + 1)
            await trio.sleep(0.2)


async def both(client: MetaClient, control: Control, folder: Path) -> None:
    ino = (await client.lookup(ROOT, ROOT_INO, b"shared")).ino
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trouble, control)
        async with trio.open_nursery() as workers:
            workers.start_soon(trio.to_thread.run_sync, peers_work, folder)
            workers.start_soon(own_work, client, ino)
        nursery.cancel_scope.cancel()
    control.clear_faults()


def expected(new: str, renamed: str) -> set[str]:
    return {f"{new}{n}" for n in range(1, NAMES, 2)} | {f"{renamed}{n}" for n in range(2, NAMES, 4)}


async def check(url: str) -> None:
    client = await connect(open_engine(url))
    await assert_clean(client)
    await client.engine.close()


async def work_along(url: str, control: Control, folder: Path) -> None:
    client = await connect(open_engine(url))
    await both(client, control, folder)
    await client.flush_usage()
    await client.engine.close()


def test_one_directory(tmp_path: Path) -> None:
    with Cluster() as cluster:
        url = cluster.url("both")
        volume = format_volume(PEER, tmp_path / "vol", "myvol", "--trash-days", "0", address=url)
        with volume.mounted(PEER) as mount:
            folder = mount.path / "shared"
            folder.mkdir()
            trio.run(work_along, url, cluster.control, folder)
            wanted = expected("p", "q") | expected("j", "k")
            assert {each.name for each in folder.iterdir()} == wanted
            assert (folder / "p7").read_text() == "content 7"
        PEER.run("fsck", url)
        trio.run(check, url)  # now that the peer has written its books
        assert cluster.control.stats()["locks"] == 0
