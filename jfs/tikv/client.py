"""A client of a TiKV cluster: what `jfs.meta` uses."""

import ssl
from collections.abc import Sequence
from pathlib import Path

import trio

from jfs.tikv.backoff import PATIENCE_S
from jfs.tikv.cluster import Cluster
from jfs.tikv.commit import Commit
from jfs.tikv.locks import Locks
from jfs.tikv.messages import LATEST, Mutation, Op
from jfs.tikv.pd import Pd
from jfs.tikv.snapshot import Snapshot

__all__ = ["LATEST", "Client", "Mutation", "Op", "Snapshot", "tls_context"]


def tls_context(ca: Path, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """TLS as the cluster's other clients have it: its authority, and this client's certificate.  OSError, ssl.SSLError."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2"])
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


class Client:
    """Belongs to the trio run in which it is made.  Nothing is connected before it is asked for."""

    def __init__(
        self, endpoints: list[str], context: ssl.SSLContext | None = None, *, patience_s: float = PATIENCE_S
    ) -> None:
        """`endpoints`: PD's members, HOST:PORT.  A call is tried for `patience_s` before it is Unavailable."""
        self.token = trio.lowlevel.current_trio_token()
        self.cluster = Cluster(endpoints, context, patience_s)
        self.locks = Locks(self.cluster)

    @property
    def pd(self) -> Pd:
        return self.cluster.pd

    async def timestamp(self) -> int:
        """The cluster's time: a snapshot there has all that was committed until now.  Unavailable."""
        return await self.cluster.pd.timestamp()

    def snapshot(self, timestamp: int = LATEST) -> Snapshot:
        return Snapshot(self.cluster, self.locks, timestamp)

    async def commit(self, start_ts: int, mutations: Sequence[Mutation], *, began: float) -> int:
        """Commit what a transaction that began at `start_ts` has to write; its commit timestamp.

        `began` is when that was, on trio's clock.  Conflict and Unavailable: it did not happen.  Refused.  Undetermined.
        """
        attempt = Commit(self.cluster, self.locks, start_ts, mutations, began=began)
        with trio.CancelScope(shield=True):
            commit_ts = await attempt.run()
        return commit_ts  # noqa: RET504 - mypy reckons that a scope may swallow what ends it

    async def collect(self, safe_point: int) -> int:
        """Let the cluster forget what no snapshot from `safe_point` on can see; what the safe point is now.

        Unavailable.  Conflict where PD refuses, or a transaction from before is still alive.
        """
        await self.locks.clear(safe_point)
        return await self.cluster.pd.update_gc_safe_point(safe_point)

    def close(self) -> None:
        """End all connections; what runs in the background is left to others."""
        self.cluster.close()
