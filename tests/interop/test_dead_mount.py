"""A mount that dies is cleaned up by the others: its session, the files that only it held, their data."""

import json
import os
from pathlib import Path

import pytest

from tests.deadline import eventually
from tests.interop.test_jobs import LATE
from tests.mounts import JFS, PEER, Client, Volume, format_volume
from tests.tikv.cluster import Cluster
from tests.tikv.fixtures import fresh_address
from tests.trees import outcome

HEARTBEAT = ("--heartbeat", "1")


def sessions(volume: Volume) -> list[int]:
    return sorted(session["Sid"] for session in json.loads(JFS.run("status", volume.url).stdout)["Sessions"])


@pytest.mark.parametrize(("dying", "living"), [(JFS, JFS), (JFS, PEER), (PEER, JFS)], ids=lambda client: client.name)
def test_what_a_dead_mount_held_goes(tmp_path: Path, tikv_cluster: Cluster, dying: Client, living: Client) -> None:
    address = fresh_address(tikv_cluster)
    volume = format_volume(JFS, tmp_path, "held", "--trash-days", "0", address=address)
    with volume.mounted(living, *HEARTBEAT, at=tmp_path / "living", expect_log=[LATE]) as other:
        (other.path / "kept").write_text("kept")
        before = sessions(volume)
        with volume.mounted(dying, *HEARTBEAT, at=tmp_path / "doomed", expect_log=[LATE]) as doomed:
            descriptor = os.open(doomed.path / "f", os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, bytes(3 << 20))
            os.fsync(descriptor)
            eventually((other.path / "f").exists, 30, "the file to be seen")
            os.unlink(doomed.path / "f")
            assert len(sessions(volume)) == 2
            assert len(volume.objects) == 2
            doomed.kill()
            gone = outcome(lambda: os.close(descriptor))  # the second: it was asked while the mount was dying
            assert str(gone).endswith(("not connected", "connection abort")), gone
        eventually(lambda: sessions(volume) == before, 60, "the dead mount's session to go", pause=0.5)
        eventually(lambda: len(volume.objects) == 1, 60, "the data of the file that nobody holds to go", pause=0.2)
        assert (other.path / "kept").read_text() == "kept"
    assert sessions(volume) == []
    assert json.loads(PEER.run("dump", volume.url).stdout)["Sustained"] == []
    for client in (JFS, PEER):
        client.run("fsck", volume.url)
