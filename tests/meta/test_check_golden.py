"""The checks agree with the peer: volumes that it wrote have nothing wrong in them."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from jfs.meta.check import check
from jfs.meta.client import ClientOptions, MetaClient
from jfs.meta.kv.memory import MemoryEngine
from jfs.meta.sql.sqlite3 import Sqlite3Engine
from jfs.meta.transaction import Engine
from tests.meta.volumes import do

GOLDEN = Path(__file__).parents[1] / "golden"
LATER_NS = 10**10 * 10**9


async def found_in(engine: Engine) -> list[tuple[str, str]]:
    """What is wrong, long after the last session's lease."""
    client = await MetaClient.connect(engine, ClientOptions(read_only=True), now_ns=lambda: LATER_NS)
    return [(finding.kind, finding.message) async for finding in check(client)]


@pytest.mark.parametrize("name", ["ops", "notrash"])
async def test_key_value_volumes(name: str) -> None:
    snapshot = json.loads((GOLDEN / f"{name}-snapshot.json").read_text())
    engine = MemoryEngine()

    async def load(tx: Any) -> None:
        for record in snapshot["keys"]:
            tx.kv.set(bytes.fromhex(record["key"]), bytes.fromhex(record["value"]))

    await do(engine, load)
    assert [finding for finding in await found_in(engine) if finding[0] != "session"] == []


def fill(path: Path, tables: dict[str, Any]) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for table, content in tables.items():
        connection.execute(f"DELETE FROM {table}")
        for row in content["rows"]:
            values = [next(iter(value.values())) if isinstance(value, dict) else value for value in row]
            values = [
                bytes.fromhex(value) if isinstance(was, dict) else value for was, value in zip(row, values, strict=True)
            ]
            marks = ",".join("CAST(? AS TEXT)" if isinstance(was, dict) and "texthex" in was else "?" for was in row)
            connection.execute(f"INSERT INTO {table} VALUES ({marks})", values)
    connection.close()


@pytest.mark.parametrize("name", ["ops", "notrash"])
async def test_relational_volumes(name: str, tmp_path: Path) -> None:
    engine = Sqlite3Engine(str(tmp_path / "meta.db"), create=True)
    await engine.prepare()
    fill(tmp_path / "meta.db", json.loads((GOLDEN / "sqlite-ops.json").read_text())[name]["final"])
    assert [finding for finding in await found_in(engine) if finding[0] != "session"] == []
    await engine.close()
