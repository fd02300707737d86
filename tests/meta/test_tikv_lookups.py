"""What a lookup finds while others change the name that it looks at."""

from typing import Any

import pytest

from jfs.meta.engines import open_engine
from jfs.meta.kv.tikv import TikvEngine
from jfs.meta.types import ROOT, ROOT_INO
from jfs.tikv import messages
from jfs.tikv.regions import Region
from tests.meta.volumes import connect, format_volume, make_file
from tests.tikv.cluster import Cluster


async def test_a_name_is_there_while_it_is_replaced(tikv_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name's record is read before the rename, the inode's after it, when the inode is gone."""
    url = tikv_cluster.url("replaced")
    await format_volume(open_engine(url), trash_days=0)
    engine = open_engine(url)
    assert isinstance(engine, TikvEngine)
    client, other = await connect(engine), await connect(open_engine(url))
    await make_file(other, b"f")
    new = await make_file(other, b"new")
    cluster = engine.client().cluster
    ask, renames = cluster.ask, 0

    async def asking(region: Region, path: str, *args: Any, **named: Any) -> bytes | None:
        nonlocal renames
        answer = await ask(region, path, *args, **named)
        if path == messages.GET and not renames:
            renames += 1
            await other.rename(ROOT, ROOT_INO, b"new", ROOT_INO, b"f", 0)
        return answer

    monkeypatch.setattr(cluster, "ask", asking)
    found = await client.lookup(ROOT, ROOT_INO, b"f")
    assert renames == 1
    assert found.ino == new.ino
