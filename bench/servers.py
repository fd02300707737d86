"""The servers behind the volumes: a TiKV cluster and an S3 server, started for the first who asks, the same for all programs."""

import os
import shutil
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.s3server import S3Server, start_s3_server
from tests.tikv.cluster import Cluster


class Servers:
    """Of one comparison: what one round has stored does not weigh on the next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()

    @cached_property
    def tikv(self) -> Cluster:
        return self._stack.enter_context(Cluster())

    @cached_property
    def s3(self) -> S3Server:
        self._stack.callback(shutil.rmtree, self._folder)
        server = start_s3_server(self._folder)
        self._stack.callback(server.stop)
        return server

    def tikv_url(self, name: str) -> str:
        return self.tikv.url(name)

    def format_flags(self, bucket: str) -> list[str]:
        """Of `format`, for a volume in a bucket of its own."""
        return [*self.s3.format_flags, "--bucket", self.s3.bucket_url(bucket)]

    def rclone_settings(self) -> dict[str, str]:
        """The environment in which rclone knows the server as `bench:`."""
        settings = {
            "TYPE": "s3",
            "PROVIDER": "SeaweedFS",
            "ENDPOINT": self.s3.endpoint,
            "ACCESS_KEY_ID": self.s3.access_key,
            "SECRET_ACCESS_KEY": self.s3.secret_key,
        }
        return {f"RCLONE_CONFIG_BENCH_{name}": value for name, value in settings.items()} | {
            "RCLONE_CONFIG": os.devnull
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
