"""Signatures: botocore is the oracle."""

import datetime as dt
import time

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from jfs.object.sigv4 import UNSIGNED, Keys, Signer, path_of, query_of

NOW = 1_790_000_000.0
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


class Oracle(S3SigV4Auth):
    """botocore's, with our clock, an unsigned payload and the headers that we sign."""

    def payload(self, request: AWSRequest) -> str:
        return UNSIGNED

    def headers_to_sign(self, request: AWSRequest) -> object:
        found = super().headers_to_sign(request)
        del found["user-agent"]
        return found


def authorization_of(
    monkeypatch: pytest.MonkeyPatch, method: str, url: str, keys: Keys, extra: dict[str, str], region: str
) -> str:
    """What botocore would send."""
    import botocore.auth

    moment = dt.datetime.fromtimestamp(NOW, dt.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: moment.replace(tzinfo=None))
    request = AWSRequest(method, url, headers=dict(extra))
    Oracle(Credentials(keys.access_key, keys.secret_key, keys.session_token or None), "s3", region).add_auth(request)
    return str(request.headers["Authorization"])


@given(
    key=TEXT,
    parameters=st.dictionaries(TEXT, TEXT, max_size=3),
    secret=TEXT,
    token=st.sampled_from(["", "t/o+k=en"]),
    method=st.sampled_from(["GET", "PUT", "DELETE", "HEAD"]),
    extra=st.sampled_from(
        [{}, {"range": "bytes=0-1"}, {"x-amz-storage-class": "STANDARD_IA", "x-amz-meta-crc32c": "7"}]
    ),
)
def test_as_botocore_signs(
    key: str, parameters: dict[str, str], secret: str, token: str, method: str, extra: dict[str, str]
) -> None:
    keys = Keys("AKID", secret, token)
    path, query = path_of("bucket", key), query_of(parameters)
    signer = Signer("host.example:9000", "eu-west-1", lambda: keys, clock=lambda: NOW)
    ours = signer.headers(method, path, query, extra)
    with pytest.MonkeyPatch.context() as monkeypatch:
        url = f"http://host.example:9000{path}" + (f"?{query}" if query else "")
        assert ours["authorization"] == authorization_of(monkeypatch, method, url, keys, extra, "eu-west-1")


def test_parameters_are_sorted_by_their_names() -> None:
    """Not as the strings that they make: many characters come before the sign that ends a name."""
    assert query_of({"a-b": "2", "a": "1", "a b": "3"}) == "a=1&a%20b=3&a-b=2"


def test_keys_of_the_moment_and_of_the_day_are_used() -> None:
    keys = [Keys("A", "a"), Keys("B", "b")]
    now = [NOW, NOW + 86400]
    signer = Signer("h", "r", lambda: keys[0], clock=lambda: now[0])
    first = signer.headers("GET", "/")
    assert signer.headers("GET", "/") == first
    keys.pop(0)
    assert "Credential=B/" in signer.headers("GET", "/")["authorization"]
    now.pop(0)
    day = time.strftime("%Y%m%d", time.gmtime(NOW + 86400))
    assert f"Credential=B/{day}/r/s3/aws4_request" in signer.headers("GET", "/")["authorization"]


def test_anonymous_requests_are_not_signed() -> None:
    assert Signer("h", "r", lambda: None).headers("GET", "/", "", {"range": "bytes=0-1"}) == {
        "host": "h",
        "range": "bytes=0-1",
    }


def test_keys_do_not_show_their_secrets() -> None:
    assert "s3cret" not in repr(Keys("AKID", "s3cret", "s3cret-token"))
