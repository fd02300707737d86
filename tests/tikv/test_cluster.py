"""The test cluster itself."""

from pathlib import Path

from tests.mounts import PEER
from tests.tikv.cluster import Cluster


def test_the_peer_formats_a_volume_on_the_cluster(tikv_cluster: Cluster, tmp_path: Path) -> None:
    url = tikv_cluster.url("peer-format")
    PEER.run("format", "--bucket", tmp_path / "objects", url, "myvol")
    assert "myvol" in PEER.run("status", url).stdout
