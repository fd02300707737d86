"""Whose keys sign the requests: those that are given, the vendor's environment variables, or the AWS default chain."""

import os
import threading
from collections.abc import Callable
from typing import Any

from jfs.errors import StoreError, UserError
from jfs.object.sigv4 import Keys
from jfs.object.vendors import VENDORS

ANONYMOUS = "anonymous"


def key_source(
    kind: str, access_key: str = "", secret_key: str = "", session_token: str = ""
) -> Callable[[], Keys | None]:
    """A function that gives the keys of the moment; None: requests are not signed.  UserError where there are none."""
    if access_key == ANONYMOUS:
        return lambda: None
    names = VENDORS[kind].keys
    if not access_key and not secret_key and names:
        access_key, secret_key, found = ([os.environ.get(name, "") for name in names] + [""])[:3]
        session_token = found or session_token
    if access_key:
        if not secret_key:
            raise UserError(f"an access key without a secret key for {kind} storage: give --secret-key too")
        keys = Keys(access_key, secret_key, session_token)
        return lambda: keys
    if secret_key:
        raise UserError(f"a secret key without an access key for {kind} storage: give --access-key too")
    if kind in ("s3", "minio", "wasabi"):
        return AwsChain()
    raise UserError(
        f"{kind} storage needs keys: give --access-key and --secret-key, or set {' and '.join(names[:2])} "
        f"(--access-key {ANONYMOUS}: requests without a signature)"
    )


class AwsChain:
    """botocore's default chain (environment, ~/.aws, roles of containers and instances), which renews what expires."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._credentials: Any = None

    def __call__(self) -> Keys:
        from botocore.exceptions import BotoCoreError

        try:
            with self._lock:
                if self._credentials is None:
                    import botocore.session

                    self._credentials = botocore.session.get_session().get_credentials()
            found = None if self._credentials is None else self._credentials.get_frozen_credentials()
        except BotoCoreError as error:
            raise StoreError(f"AWS keys: {error}") from error
        if found is None or not found.access_key:
            raise StoreError(
                "no keys: give --access-key and --secret-key, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or give this machine a role"
            )
        return Keys(found.access_key, found.secret_key, found.token or "")
