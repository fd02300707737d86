"""A TiKV cluster in one process: started on free ports, paused, killed and restarted on the same ones, always ended."""

import random
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tests.deadline import eventually
from tests.tikv.build import build
from tests.tikv.control import Control

# Below the range that the kernel and other servers of the tests take ports from.
LOWEST_PORT, HIGHEST_PORT = 15000, 22767

START_TIME = 30.0

CRASH = ("panic:", "fatal error:", "SIG")  # how the last words of a Go program begin


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on now."""
    held: list[socket.socket] = []
    try:
        while len(held) < count:
            candidate = socket.socket()
            try:
                candidate.bind(("127.0.0.1", random.randint(LOWEST_PORT, HIGHEST_PORT)))
            except OSError:
                candidate.close()
                continue
            held.append(candidate)
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


class Cluster:
    """PD and the stores of one cluster; `data` is a folder that keeps its content, None keeps it in memory."""

    def __init__(self, data: Path | None = None, splits: Sequence[bytes] = (), stores: int = 2) -> None:
        self._data = data
        self._splits = list(splits)
        self._stores = stores
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._ports: list[int] = []

    @property
    def pd(self) -> str:
        """PD's address, HOST:PORT."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None, "the cluster was not started"
        return self._process.pid

    @property
    def control(self) -> Control:
        """The tests' own door."""
        return Control(self._ports[-1])

    def url(self, prefix: str) -> str:
        """The meta URL of a volume under `prefix`."""
        return f"tikv://{self.pd}/{prefix}"

    def start(self) -> Self:
        """Start on free ports and return once every port answers."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`
        for _ in range(5):
            self._ports = free_ports(2 + self._stores)
            try:
                self._launch()
            except AssertionError:
                if "address already in use" not in self.log_tail():
                    raise
                continue  # somebody was faster
            break
        return self

    def stop(self) -> None:
        """End the server and forget its log; a server that died by itself is an AssertionError with its last words."""
        try:
            self.check()
        finally:
            self.kill()
            if self._log is not None:
                self._log.close()
                self._log = None

    def kill(self) -> None:
        """kill -9, paused or not; `restart` starts it again."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def restart(self) -> None:
        """A new process on the same ports, with the data that is kept."""
        self.kill()
        self._launch()

    def pause(self) -> None:
        """All of the cluster hangs, PD too, until `resume`; from the return on nothing is answered."""
        self._signal(signal.SIGSTOP)
        eventually(self._stopped, what="the TiKV test server stops")

    def resume(self) -> None:
        """Go on after `pause`."""
        self._signal(signal.SIGCONT)

    def died(self) -> str:
        """How the server ended by itself, with the end of its log; "" while it runs."""
        if self._process is None or self._process.poll() is None:
            return ""
        return f"the TiKV test server ended with {self._process.returncode}; its log ends with\n{self.log_tail()}"

    def check(self) -> None:
        """AssertionError if the server ended by itself."""
        if last_words := self.died():
            raise AssertionError(last_words)

    def restore(self) -> None:
        """Take back what a test did to the server: running, without faults and delays."""
        if self._process is None or self.died():
            self.restart()
        self.resume()
        self.control.clear_faults()
        self.control.delay()

    def log_tail(self, lines: int = 40) -> str:
        """What the server wrote last; of a crash, its cause and where it came from."""
        if self._log is None:
            return ""
        self._log.seek(0)
        written = self._log.read().decode(errors="replace").splitlines()
        crash = next((at for at, line in enumerate(written) if line.startswith(CRASH)), None)
        return "\n".join(written[-lines:] if crash is None else written[crash : crash + lines])

    def _stopped(self) -> bool:
        tasks = Path(f"/proc/{self.pid}/task").glob("*/stat")
        try:
            return all(each.read_text().rpartition(")")[2].split()[0] == "T" for each in tasks)
        except FileNotFoundError:  # a thread ended while it was looked at
            return False

    def _signal(self, number: int) -> None:
        self.check()
        assert self._process is not None, "the cluster was not started"
        self._process.send_signal(number)

    def _launch(self) -> None:
        pd, *stores, control = [f"127.0.0.1:{port}" for port in self._ports]
        self._process = subprocess.Popen(
            [build(), "-attached", "-pd", pd, "-kv", ",".join(stores), "-control", control, *self._options()],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
        )
        eventually(self._answers, timeout=START_TIME, what="the TiKV test server answers")

    def _options(self) -> list[str]:
        splits = ["-split", ",".join(key.hex() for key in self._splits)] if self._splits else []
        data = ["-data", str(self._data)] if self._data else []
        return splits + data

    def _answers(self) -> bool:
        self.check()
        try:
            self.control.counters()
        except OSError:
            return False
        return True

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
