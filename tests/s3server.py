"""A real S3 server for tests and benchmarks: SeaweedFS, with authentication on.

    server = start_s3_server(folder)
    server.endpoint, server.access_key, server.secret_key, server.bucket_url("name")
    server.stop()

Pytest gets one for the whole session from the fixture `s3_server`.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from jfs.errors import StoreError
from jfs.object.stores import StoreOptions, open_store
from tests.deadline import eventually

ACCESS_KEY = "jfs-test-key"
SECRET_KEY = "jfs-test/secret+key"
FIRST_PORT = 18400
LAST_PORT = 22700
START_S = 60.0


@dataclass
class S3Server:
    """A running server.  `port` is that of the S3 interface; the ones of the parts behind it come next."""

    folder: Path
    port: int
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket_url(self, bucket: str) -> str:
        """What `--bucket` takes."""
        return f"{self.endpoint}/{bucket}"

    @property
    def format_flags(self) -> list[str]:
        """`--storage` and the keys, for format."""
        return ["--storage", "s3", "--access-key", self.access_key, "--secret-key", self.secret_key]

    @property
    def options(self) -> StoreOptions:
        """For `open_store`."""
        return StoreOptions(access_key=self.access_key, secret_key=self.secret_key)

    def start(self) -> None:
        """Start, and wait until objects can be put."""
        config = self.folder / "s3.json"
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        config.write_text(json.dumps({"identities": [{"name": "jfs", "credentials": credentials, "actions": actions}]}))
        (self.folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")  # small buckets stay small
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command(config),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=self.folder,
            )
        try:
            eventually(self._serves, START_S, "the S3 server serves", pause=0.1)
        except BaseException as error:
            error.add_note((self.folder / "log").read_text(errors="replace")[-3000:])
            self.stop()
            raise

    def _command(self, config: Path) -> list[str]:
        binary = Path(sys.executable).with_name("weed")
        assert binary.exists(), f"{binary} is missing: run `make setup`"
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        s3, master, volume, filer = range(self.port, self.port + 4)
        return [
            *("setpriv", "--pdeathsig", "KILL", str(binary), "server", f"-dir={data}"),
            *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"),
            *(f"-master.port={master}", "-master.volumeSizeLimitMB=256"),
            *(f"-volume.port={volume}", "-volume.max=200", "-volume.preStopSeconds=0", "-volume.minFreeSpace=1MiB"),
            *("-filer", f"-filer.port={filer}", f"-filer.localSocket={self.folder}/filer.sock"),
            *("-s3", f"-s3.port={s3}", f"-s3.config={config}", f"-s3.localSocket={self.folder}/s3.sock"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),
        ]

    def _serves(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the S3 server ended with {self.process.returncode}"
        store = open_store("s3", self.bucket_url("first-bucket"), self.options)
        try:
            store.create()
            store.put("probe", b"x")
            return store.get("probe") == b"x"
        except StoreError:
            return False
        finally:
            store.close()

    def stop(self) -> None:
        """Kill it; what it stored is worth nothing afterwards."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
            self.process = None


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that are free, they and those 10000 above them (where gRPC goes)."""

    def free(port: int) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
        return True

    start = FIRST_PORT + os.getpid() * 10 % (LAST_PORT - FIRST_PORT)
    for port in [*range(start, LAST_PORT, count), *range(FIRST_PORT, start, count)]:
        if all(free(each) and free(each + 10000) for each in range(port, port + count)):
            return port
    raise AssertionError("no free ports for the S3 server")


def start_s3_server(folder: Path) -> S3Server:
    """A server of its own in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for tries_left in reversed(range(5)):
        server = S3Server(folder, free_ports(4))
        try:
            server.start()
        except AssertionError:
            if not tries_left or b"address already in use" not in (folder / "log").read_bytes():
                raise
        else:
            break  # nobody was faster
    return server
