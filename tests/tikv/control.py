"""The tests' own door to the cluster: counters, faults, delays, regions, bulk loads."""

import http.client
import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

ANSWER_TIME = 600.0  # a load of millions of rows is one request


@dataclass(frozen=True)
class Count:
    """How often a call came, and how many keys (of a scan: pairs found; of tso: timestamps) it was about."""

    calls: int
    keys: int


@dataclass(frozen=True)
class Region:
    """The keys from `start` to before `end` (empty: no bound), led by a store."""

    id: int
    start: bytes
    end: bytes
    epoch: int
    store: int


class Control:
    """What a test does to a cluster and asks it. Wrong arguments are a ValueError with the server's words."""

    def __init__(self, port: int) -> None:
        self._port = port

    def counters(self) -> dict[str, Count]:
        """All calls since the start or the last reset, by their names."""
        return {call: Count(**count) for call, count in self._ask("GET", "/counters").items()}

    def reset_counters(self) -> None:
        """Count from zero."""
        self._ask("DELETE", "/counters")

    def fault(
        self,
        call: str,
        kind: str,
        *,
        times: int = 0,
        skip: int = 0,
        delay_ms: float = 0,
        store: int = 0,
        region: int = 0,
    ) -> int:
        """Let `call` ("kv" and "pd" are all calls of a service) fail as `kind` says; returns the fault's number.

        It meets the next `times` calls (0: all until it is cleared) after `skip` of them. README.md lists the kinds.
        """
        wanted = {"times": times, "skip": skip, "delay_ms": delay_ms, "store": store, "region": region}
        return int(self._ask("POST", "/faults", {"call": call, "kind": kind, **wanted})["id"])

    def faults(self) -> list[dict[str, Any]]:
        """The faults that were not cleared, with their `hits`."""
        return list(self._ask("GET", "/faults"))

    def hits(self, fault: int) -> int:
        """How many calls a fault met until now."""
        return int(next(each["hits"] for each in self.faults() if each["id"] == fault))

    def clear_faults(self, fault: int | None = None) -> None:
        """End one fault or all; calls that hang by it go on."""
        self._ask("DELETE", "/faults" if fault is None else f"/faults?id={fault}")

    def delay(self, *, kv_ms: float = 0, pd_ms: float = 0) -> None:
        """Let each call to a store or to PD take so long before anything is done, as over a network."""
        self._ask("PUT", "/delays", {"kv": kv_ms, "pd": pd_ms})

    def regions(self) -> list[Region]:
        """All regions in the order of their keys."""
        return [
            Region(each["id"], bytes.fromhex(each["start"]), bytes.fromhex(each["end"]), each["epoch"], each["store"])
            for each in self._ask("GET", "/regions")
        ]

    def region_of(self, key: bytes) -> Region:
        """The region that has the key."""
        return next(each for each in reversed(self.regions()) if each.start <= key)

    def split(self, key: bytes) -> None:
        """Start a new region at the key."""
        self._ask("POST", "/split", {"key": key.hex()})

    def transfer(self, region: int, store: int) -> None:
        """Let another store lead the region."""
        self._ask("POST", "/transfer", {"region": region, "store": store})

    def load(self, pairs: Iterable[tuple[bytes, bytes]]) -> int:
        """Commit pairs past all transactions, at one timestamp, which is returned; sorted ones are the fastest."""
        return int(self._ask("POST", "/load", _frames(pairs))["commit_ts"])

    def stats(self) -> dict[str, int]:
        """`rows`, `versions`, `locks` and who is `waiting` for one; the `heap` in bytes, the GC `safe_point`, `now`."""
        return dict(self._ask("GET", "/stats"))

    def _ask(self, method: str, path: str, body: dict[str, Any] | Iterator[bytes] | None = None) -> Any:
        content = json.dumps(body) if isinstance(body, dict) else body
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_TIME)) as connection:
            connection.request(method, path, content)
            answer = connection.getresponse()
            text = answer.read()
        if answer.status != http.client.OK:
            raise ValueError(text.decode().strip())
        return json.loads(text)


def _frames(pairs: Iterable[tuple[bytes, bytes]], size: int = 1 << 18) -> Iterator[bytes]:
    """The pairs as the server wants them, in pieces worth a write."""
    piece = bytearray()
    for key, value in pairs:
        piece += len(key).to_bytes(4, "big") + len(value).to_bytes(4, "big") + key + value
        if len(piece) >= size:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)
