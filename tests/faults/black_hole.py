"""A network of one cable, and a hole in it: packets vanish without a word, and pass again later.

with Cable() as cable:
    cable.listen(port)  # a listener at the far end, `cable.far`
    cable.cut()
    cable.mend()
"""

import contextlib
import ctypes
import os
import re
import socket
import subprocess
import threading
from pathlib import Path
from typing import Self

CLONE_NEWNET = 0x40000000


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Cable:
    """A pair of interfaces, the far one in a network namespace of its own."""

    def __init__(self) -> None:
        number = os.getpid() % 16000
        self.namespace = f"jfs-{number}"
        self.near_end, self.far_end = f"jfsn{number}", f"jfsf{number}"
        self.near, self.far = (f"10.213.{number // 64}.{number % 64 * 4 + last}" for last in (1, 2))

    def __enter__(self) -> Self:
        with contextlib.suppress(subprocess.CalledProcessError):  # of a run that was killed and had this number
            ip("netns", "delete", self.namespace)
        ip("netns", "add", self.namespace)
        ip("link", "add", self.near_end, "type", "veth", "peer", "name", self.far_end, "netns", self.namespace)
        ip("address", "add", f"{self.near}/30", "dev", self.near_end)
        ip("link", "set", self.near_end, "up")
        self._there("link", "set", self.far_end, "up")
        self.mend()
        # a neighbour that is known for good: nobody asks for it, so nobody finds that it does not answer
        found = re.search(r"link/ether (\S+)", self._there("link", "show", self.far_end))
        assert found is not None
        ip("neighbour", "replace", self.far, "lladdr", found[1], "dev", self.near_end, "nud", "permanent")
        return self

    def __exit__(self, *_: object) -> None:
        ip("netns", "delete", self.namespace)
        with contextlib.suppress(subprocess.CalledProcessError):  # goes with the namespace, sooner or later
            ip("link", "delete", self.near_end)

    def _there(self, *words: str) -> str:
        return ip("-n", self.namespace, *words)

    def cut(self) -> None:
        """The far end knows its own address no more, and drops what is sent to it."""
        self._there("address", "delete", f"{self.far}/30", "dev", self.far_end)

    def mend(self) -> None:
        self._there("address", "add", f"{self.far}/30", "dev", self.far_end)

    def listen(self, port: int) -> socket.socket:
        """A socket that listens at the far end."""
        made: list[socket.socket] = []

        def make() -> None:  # the thread is there for good, and ends with it
            libc = ctypes.CDLL(None, use_errno=True)
            with (Path("/run/netns") / self.namespace).open() as namespace:
                assert libc.setns(namespace.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            made.append(socket.create_server((self.far, port), backlog=128))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]
