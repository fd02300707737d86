"""Sessions: a client's lease on the volume, what it says about itself, and the end of its own and of stale ones."""

import datetime as dt
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Any, Final

import msgspec

from jfs.meta.transaction import Transaction
from jfs.meta.types import Ino, Session

SECOND: Final = 1_000_000_000
LEASES: Final = 5
FOREVER_S: Final = 365 * 24 * 3600
_SIOCGIFADDR: Final = 0x8915


def expiry(now_ns: int, heartbeat_s: float) -> int:
    """When a session that is refreshed every `heartbeat_s` (0: never) lapses, unix seconds."""
    return now_ns // SECOND + (int(LEASES * heartbeat_s) if heartbeat_s > 0 else FOREVER_S)


def rfc3339(seconds: int, nanos: int = 0) -> str:
    """Time in UTC, with as many decimals as it needs."""
    text = dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return f"{text}{fraction}Z"


def session_info(version: str, mountpoint: str, now_ns: int) -> bytes:
    """What a session says about itself: compact JSON in the peer's order of fields."""
    info: dict[str, Any] = {"Version": version, "HostName": socket.gethostname()}
    addresses = ip_addresses()
    if addresses:
        info["IPAddrs"] = addresses
    info["MountPoint"] = mountpoint
    info["MountTime"] = rfc3339(now_ns // SECOND, now_ns % SECOND)
    info["ProcessID"] = os.getpid()
    return msgspec.json.encode(info)


def ip_addresses() -> list[str]:
    """This host's addresses, loopback left out; without asking any server."""
    return _ipv4_addresses() + _ipv6_addresses()


def _ipv4_addresses() -> list[str]:
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # the interface has no IPv4 address
                continue
            found.append(socket.inet_ntop(socket.AF_INET, answer[20:24]))
    return [address for address in found if not address.startswith("127.")]


def _ipv6_addresses() -> list[str]:
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:  # a kernel without IPv6
        return []
    found = [socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0])) for line in lines]
    return [address for address in found if address != "::1"]


def describe(session: Session) -> dict[str, Any]:
    """A session as `status` shows it."""
    shown: dict[str, Any] = {"Sid": session.sid, "Expire": rfc3339(session.expire)}
    if session.info:
        try:
            shown.update(msgspec.json.decode(session.info, type=dict[str, Any]))
        except msgspec.MsgspecError:
            shown["Info"] = session.info.decode(errors="replace")
    return shown


# -- operations


async def new_session(tx: Transaction, expire: int, info: bytes) -> int:
    """Open a session; its id."""
    while True:
        sid = await tx.add_counter("nextSession", 1)
        if await tx.session(sid) is None:  # an id may be taken after a load, which starts the counter over
            tx.put_session(Session(sid, expire, info))
            return sid


async def refresh_session(tx: Transaction, sid: int, expire: int, info: bytes) -> bool:
    """Extend a session; False where somebody had ended it as stale (it is open again now)."""
    found = await tx.session(sid)
    tx.put_session(Session(sid, expire, info))
    return found is not None


async def all_sessions(tx: Transaction) -> list[Session]:
    return await tx.sessions()


async def stale_sessions(tx: Transaction, now_s: int) -> list[int]:
    """Sessions whose lease has lapsed."""
    return [session.sid for session in await tx.sessions() if session.expire < now_s]


async def begin_clean_up(tx: Transaction, sid: int, stale_before: int | None) -> list[Ino] | None:
    """Drop a session's locks; the inodes that it sustained.  None where it is alive (own sessions: `stale_before` None)."""
    if stale_before is not None:
        session = await tx.session(sid)
        if session is None or session.expire >= stale_before:
            return None
    await tx.release_locks(sid)
    return await tx.sustained(sid)


async def end_session(tx: Transaction, sid: int, stale_before: int | None) -> bool:
    """Remove the session's record, once nothing depends on it; False where it came back to life."""
    if stale_before is not None:
        session = await tx.session(sid)
        if session is not None and session.expire >= stale_before:
            return False
    tx.delete_session(sid)
    return True
