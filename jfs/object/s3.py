"""Objects in a bucket that speaks S3.

Requests are made and signed here, on kept-open connections: what a general client does around a request costs more than the
request (0.15 against 1 ms of processor time for 128 KiB).  Nothing is retried here; that is `Retry`'s job.

Every object carries the CRC-32C of its bytes in its metadata, as the peer's do, and a whole read is checked against it.
"""

import contextlib
import errno
import http.client
import logging
import ssl
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

import google_crc32c
import msgspec

from jfs.errors import BadObject, ObjectMissing, StoreError, StoreFull, UserError
from jfs.object.connections import Connections
from jfs.object.links import Answer, Exchange
from jfs.object.sigv4 import Keys, Signer, path_of, query_of
from jfs.object.store import Buffer, Errand, ObjectInfo, RequestOptions
from jfs.object.vendors import AWS, DEFAULT_REGION, Place, environment_region

CHECKSUM: Final = "x-amz-meta-crc32c"
PAGE: Final = 1000
PIECE: Final = 256 << 10
FULL: Final = frozenset(("XMinioStorageFull", "QuotaExceeded", "StorageQuotaExceeded"))
UNREADABLE: Final = (ET.ParseError, ValueError, LookupError)
"""What parsing XML raises: for an encoding of several bytes a character, ValueError; for one that nobody knows, LookupError."""
MISSING: Final = frozenset(("NoSuchKey", "NotFound", "404"))
OURS: Final = frozenset(("BucketAlreadyOwnedByYou", "BucketAlreadyExists"))
HINTS: Final = {
    "SignatureDoesNotMatch": "is the secret key right?",
    "InvalidAccessKeyId": "is the access key right?",
    "InvalidToken": "is the session token right?",
    "ExpiredToken": "the session token must be renewed",
}

log = logging.getLogger(__name__)


class Refused(StoreError):
    """The server said no; `status` and `code` are its words for why."""

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class S3Store:
    """A bucket.  Safe to share between threads."""

    def __init__(
        self,
        place: Place,
        keys: Callable[[], Keys | None],
        options: RequestOptions | None = None,
        *,
        keys_at_hand: bool = False,
    ) -> None:
        """`keys_at_hand`: asking for the keys takes no waiting."""
        self.place = place
        self.options = options or RequestOptions()
        self._keys = keys
        self._keys_at_hand = keys_at_hand
        self._lock = threading.Lock()
        self._reach: tuple[Connections, Signer, str] | None = None
        if place.region:
            self._reach = self._reached(place)

    # -- requests

    def _reached(self, place: Place) -> tuple[Connections, Signer, str]:
        connections = Connections(f"{place.scheme}://{place.host}", keep=self.options.connections, tls=place.tls)
        return connections, Signer(place.host, place.region, self._keys), place.path

    def _reach_out(self) -> tuple[Connections, Signer, str]:
        """Connections, signer and path; the bucket's region is asked for once, if the URL did not tell it."""
        if self._reach is None:
            with self._lock:
                if self._reach is None:
                    region = ask_region(self.place, self.options.get_timeout)
                    endpoint = f"s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")
                    self.place = msgspec.structs.replace(self.place, region=region, endpoint=endpoint)
                    self._reach = self._reached(self.place)
        return self._reach

    def _call(
        self,
        call: str,
        method: str,
        key: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Buffer | None = None,
    ) -> Answer:
        """A request and a good answer.  StoreError says which call failed, and how, whatever the server answers."""
        timeout = self.options.put_timeout if method == "PUT" else self.options.get_timeout
        try:
            connections, signer, prefix = self._reach_out()
            path = prefix + path_of(key)[1:] if key else prefix
            words = query_of(query) if query else ""
            signed = signer.headers(method, path, words, headers)
            answer = connections.request(method, f"{path}?{words}" if words else path, signed, body, timeout=timeout)
            if answer.status // 100 != 2:
                raise self.refusal(call, key, answer)
            return answer
        except TimeoutError as error:
            if error.errno == errno.ETIMEDOUT:  # the kernel's own: nothing comes from there at all
                raise StoreError(f"{call}: {self.place.host}: the connection is dead") from error
            raise StoreError(f"{call}: {self.place.host} did not answer within {timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise StoreError(f"{call}: {self.place.host}: {_words(error)}") from error
        except (StoreError, UserError):
            raise
        except Exception as error:
            raise self.unforeseen(call, error) from error

    def unforeseen(self, call: str, error: Exception) -> StoreError:
        """Nobody can tell all that servers answer: no exception of it, of whatever type, is more than a failed request."""
        log.error("%s: %s: %s", call, self.place.host, type(error).__name__, exc_info=error)
        return StoreError(f"{call}: {self.place.host}: {type(error).__name__}: {error}")

    def refusal(self, call: str, key: str, answer: Answer) -> StoreError:
        code, message = parse_error(answer.body)
        if answer.status == 404 and key and (code in MISSING or not answer.body):
            return ObjectMissing(f"{key}: {call}: no such object")
        said = " ".join(
            part for part in (str(answer.status), code + (":" if code and message else ""), message) if part
        )
        hint = HINTS.get(code, "")
        if code == "RequestTimeTooSkewed":
            hint = clock_difference(answer.headers.get("date", ""), time.time())
        region = answer.headers.get("x-amz-bucket-region", "")
        if answer.status // 100 == 3 or code == "AuthorizationHeaderMalformed":
            where = f"in region {region}" if region else answer.headers.get("location", "elsewhere")
            hint = f"the bucket is {where}"
        text = f"{call}: {said}" + (f" ({hint})" if hint else "")
        if code in FULL or answer.status == 507:
            return StoreFull(text)
        return Refused(text, answer.status, code)

    # -- the store

    def describe(self) -> str:
        return self.place.describe()

    def create(self) -> None:
        """Keys that may not list are no proof of anything: whether they may put will show."""
        try:
            self._call("ListObjects", "GET", "", {"max-keys": "1"})
            return
        except Refused as error:
            if error.code == "AccessDenied":
                return
            if error.code != "NoSuchBucket":
                raise
        place = self.place
        body = b""
        if AWS.fullmatch(place.endpoint) and place.region != DEFAULT_REGION:
            body = (
                '<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><LocationConstraint>'
                f"{place.region}</LocationConstraint></CreateBucketConfiguration>"
            ).encode()
        try:
            self._call("CreateBucket", "PUT", "", body=body)
        except Refused as error:
            if error.code not in OURS:
                raise

    def local_path(self, key: str) -> str | None:
        return None

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            self.head(key)
            return b""
        if offset == 0 and length is None:
            return self._get_whole(key)
        last = "" if length is None else str(offset + length - 1)
        try:
            answer = self._call("GetObject", "GET", key, headers={"range": f"bytes={offset}-{last}"})
        except Refused as error:
            if error.status == 416:  # the object ends before the range begins
                return b""
            raise
        if answer.status != 206:  # a server that knows no ranges
            return answer.body[offset:] if length is None else answer.body[offset : offset + length]
        _check_range(key, answer, offset, length)
        return answer.body

    def _get_whole(self, key: str) -> bytes:
        for _ in range(2):  # what was damaged on its way comes well the second time
            answer = self._call("GetObject", "GET", key)
            if self.intact(answer):
                return answer.body
            log.warning("object %s does not match its checksum", key)
        raise BadObject(f"{key}: its bytes do not match the checksum in its metadata")

    def intact(self, answer: Answer) -> bool:
        """Whether an object's bytes are those of its checksum, where it has one and it counts."""
        expected = answer.headers.get(CHECKSUM)
        return expected is None or not self.place.checksum or expected == checksum(answer.body)

    def errand(self, key: str, size: int) -> Errand | None:
        """On a kept connection, so there are as many as threads have needed before; None over TLS, which is work."""
        if self._reach is None or not self._keys_at_hand:
            return None
        connections, signer, prefix = self._reach
        path = prefix + path_of(key)[1:]
        try:
            exchange = connections.begin(path, signer.headers("GET", path), size=size, timeout=self.options.get_timeout)
        except OSError as error:
            log.debug("GetObject: %s: %s", self.place.host, _words(error))
            return None
        return None if exchange is None else _GetErrand(self, key, exchange)

    def put(self, key: str, data: Buffer) -> None:
        headers = {"content-type": "application/octet-stream"}
        if self.place.checksum:
            headers[CHECKSUM] = checksum(data)
        if self.options.storage_class:
            headers["x-amz-storage-class"] = self.options.storage_class
        self._call("PutObject", "PUT", key, headers=headers, body=data)

    def delete(self, key: str) -> None:
        with contextlib.suppress(ObjectMissing):
            self._call("DeleteObject", "DELETE", key)

    def head(self, key: str) -> ObjectInfo:
        answer = self._call("HeadObject", "HEAD", key)
        try:
            mtime = parsedate_to_datetime(answer.headers["last-modified"]).timestamp()
            return ObjectInfo(key, int(answer.headers["content-length"]), mtime)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StoreError(f"HeadObject: {key}: an answer without size or date: {error}") from error

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        last = after
        token = ""
        while True:
            parameters = {"max-keys": str(PAGE), "prefix": prefix}
            if self.place.list_v1:
                parameters["marker"] = token or last
            else:
                parameters["list-type"] = "2"
                parameters.update({"continuation-token": token} if token else {"start-after": last})
            answer = self._call("ListObjects", "GET", "", {name: value for name, value in parameters.items() if value})
            before = token
            page, token, more = parse_listing(answer.body, v1=self.place.list_v1)
            for info in page:
                if info.key <= after:  # some servers give the marker itself
                    continue
                if info.key <= last:
                    raise StoreError(f"ListObjects: the listing is out of order: {info.key!r} after {last!r}")
                last = info.key
                yield info
            if not more:
                return
            if not page and token in ("", before):
                raise StoreError(f"ListObjects: the listing does not go on after {last!r}")

    def sync(self, keys: Iterable[str]) -> None:
        """Put means stored."""

    def sync_all(self) -> None:
        """Put means stored."""

    def close(self) -> None:
        if self._reach is not None:
            self._reach[0].close()


class _GetErrand:
    """A GET under way, for the loop."""

    def __init__(self, store: S3Store, key: str, exchange: Exchange) -> None:
        self.deadline = exchange.deadline
        self.fileno = exchange.fileno
        self.drop = exchange.drop
        self._store = store
        self._key = key
        self._exchange = exchange

    def go_on(self) -> bytes | None:
        try:
            return self._take()
        except (OSError, http.client.HTTPException) as error:
            raise StoreError(f"GetObject: {self._store.place.host}: {_words(error)}") from error
        except StoreError:
            raise
        except Exception as error:
            raise self._store.unforeseen("GetObject", error) from error

    def _take(self) -> bytes | None:
        answer = self._exchange.go_on()
        if answer is None:
            return None
        if answer.status != 200:
            raise self._store.refusal("GetObject", self._key, answer)
        if not self._store.intact(answer):
            raise BadObject(f"{self._key}: its bytes do not match the checksum in its metadata")
        return answer.body


def ask_region(place: Place, timeout: float) -> str:
    """The region of a bucket of Amazon's, which it tells to anybody; of one that is not there: where it shall be made."""
    connections = Connections(f"{place.scheme}://{place.endpoint}", tls=place.tls)
    try:
        answer = connections.request("HEAD", f"/{place.bucket}", {"host": place.endpoint}, timeout=timeout)
    except (OSError, http.client.HTTPException) as error:
        raise StoreError(f"HeadBucket: {place.endpoint}: {_words(error)}") from error
    finally:
        connections.close()
    return answer.headers.get("x-amz-bucket-region") or environment_region()


def checksum(data: Buffer) -> str:
    """CRC-32C as it stands in the metadata.  A buffer that may change is read in pieces that stay in the processor's cache."""
    if isinstance(data, bytes):
        return str(google_crc32c.value(data))
    found = 0
    with memoryview(data) as view:
        for start in range(0, len(view), PIECE):
            found = google_crc32c.extend(found, bytes(view[start : start + PIECE]))
    return str(found)


def _check_range(key: str, answer: Answer, offset: int, length: int | None) -> None:
    """The server may give less than was asked for only at the object's end."""
    said = answer.headers.get("content-range", "")
    unit, _, rest = said.partition(" ")
    span, _, total = rest.partition("/")
    first, _, last = span.partition("-")
    try:
        good = unit == "bytes" and int(first) == offset and int(last) - int(first) + 1 == len(answer.body)
        if good and total != "*":
            wanted = int(total) - offset if length is None else min(length, int(total) - offset)
            good = wanted == len(answer.body)
    except ValueError:
        good = False
    if not good:
        raise StoreError(f"GetObject: {key}: asked for {length} bytes at {offset}, got {said!r}")


def _local(tag: str) -> str:
    """A tag without its namespace."""
    return tag.rpartition("}")[2]


def parse_error(body: bytes) -> tuple[str, str]:
    """Code and message of an error's XML; of anything else, its first line."""
    if not body:
        return "", ""
    try:
        found = {_local(element.tag): (element.text or "").strip() for element in ET.fromstring(body)}
    except UNREADABLE:
        found = {}
    if "Code" not in found:
        return "", body[:200].decode(errors="replace").strip().partition("\n")[0]
    return found["Code"], found.get("Message", "")


def parse_listing(body: bytes, *, v1: bool) -> tuple[list[ObjectInfo], str, bool]:
    """A page of objects, where the next page starts (maybe ""), and whether there is one.  StoreError."""
    try:
        root = ET.fromstring(body)
        page = []
        facts: dict[str, str] = {}
        for element in root:
            name = _local(element.tag)
            if name == "Contents":
                fields = {_local(child.tag): child.text or "" for child in element}
                mtime = datetime.fromisoformat(fields["LastModified"]).timestamp()
                page.append(ObjectInfo(fields["Key"], int(fields["Size"]), mtime))
            else:
                facts[name] = element.text or ""
    except (*UNREADABLE, OverflowError) as error:  # what is missing is a LookupError too
        raise StoreError(f"ListObjects: an answer that is no listing: {error}") from error
    more = facts.get("IsTruncated", "").lower() == "true"
    return page, facts.get("NextMarker" if v1 else "NextContinuationToken", ""), more


def clock_difference(date: str, now: float) -> str:
    """What a server that refuses a request for its time should have us know."""
    try:
        ahead = now - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return "is this machine's clock right?"
    return f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"


def _words(error: Exception) -> str:
    """What went wrong with a connection, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, http.client.IncompleteRead):
        return f"the answer ended early, after {len(error.partial)} bytes"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
