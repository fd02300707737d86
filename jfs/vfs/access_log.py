"""`.accesslog`: one line for each request, for whoever has it open.

Line: `2026.11.23 19:31:07.664902 [uid:0,gid:0,pid:1] lookup (1,a): (2,[-rw-r--r--:0100644,1,0,0,..]) - OK <0.000123>`; a
failure ends in `- no such file or directory <0.000411>`.  While nobody reads it nothing is measured or formatted: the
adapter looks at `active` once for each request.
"""

import errno
import os
import time
from collections import deque
from datetime import datetime
from typing import Final

import trio

from jfs.errors import FsError

LINES: Final = 10_240
"""So many lines wait for a slow reader; then the newest are dropped."""

IDLE_S: Final = 1.0


class AccessLog:
    """Takes lines, gives them to the open readers."""

    def __init__(self) -> None:
        self._readers: set[AccessLogReader] = set()

    @property
    def active(self) -> bool:
        return bool(self._readers)

    def enter(self, reader: "AccessLogReader") -> None:
        self._readers.add(reader)

    def leave(self, reader: "AccessLogReader") -> None:
        self._readers.discard(reader)

    def note(self, who: tuple[int, int, int], call: str, result: str, error: int, began: float) -> None:
        """One request: (uid, gid, pid), `name (arguments)`, what it gave, its errno, when it began (monotonic seconds)."""
        took = time.perf_counter() - began
        when = datetime.fromtimestamp(time.time() - took)
        outcome = "OK" if error == 0 else os.strerror(error).lower()
        text = f"{call}{result} - {outcome}" if error == 0 else f"{call}: - {outcome}"
        uid, gid, pid = who
        line = f"{when:%Y.%m.%d %H:%M:%S.%f} [uid:{uid},gid:{gid},pid:{pid}] {text} <{took:.6f}>\n".encode()
        for reader in self._readers:
            reader.put(line)


class AccessLogReader:
    """One open `.accesslog`: lines from its open on."""

    writable = False

    def __init__(self, access_log: AccessLog) -> None:
        self._log = access_log
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._arrived = trio.Event()
        access_log.enter(self)

    def put(self, line: bytes) -> None:
        if len(self._lines) < LINES:
            self._lines.append(line)
            self._arrived.set()

    async def read(self, offset: int, size: int) -> bytes:
        """What there is; after an idle second a `#` line, so that the reader lives."""
        if not self._rest and not self._lines:
            self._arrived = trio.Event()
            with trio.move_on_after(IDLE_S):
                await self._arrived.wait()
        while self._lines and len(self._rest) < size:
            self._rest += self._lines.popleft()
        data = self._rest[:size] or b"#\n"
        self._rest = self._rest[size:]
        return data

    async def write(self, offset: int, data: bytes | memoryview) -> int:
        raise FsError(errno.EBADF)

    def close(self) -> None:
        self._log.leave(self)
