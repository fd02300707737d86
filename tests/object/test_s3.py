"""The S3 store: on a real server, and on one that answers what no real one would."""

import errno
import itertools
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qsl

import google_crc32c
import msgspec
import pytest

from jfs.errors import BadObject, ObjectMissing, StoreError, StoreFull
from jfs.object.connections import Connections
from jfs.object.credentials import key_source
from jfs.object.links import LARGE
from jfs.object.s3 import Refused, S3Store, clock_difference
from jfs.object.sigv4 import Signer
from jfs.object.store import RequestOptions
from jfs.object.stores import open_store, volume_part
from jfs.object.vendors import parse_place
from tests.object.fake_s3 import FakeS3, Reply, Request, error, listing
from tests.s3server import S3Server

names = itertools.count()


@pytest.fixture(autouse=True)
def no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "JFS_S3_VHOST_STYLE"):
        monkeypatch.delenv(name, raising=False)


# -- on a real server


@pytest.fixture
def real(s3_server: S3Server) -> Iterator[S3Store]:
    """A bucket of its own, not made yet."""
    url = s3_server.bucket_url(f"s3-test-{next(names)}")
    store = S3Store(parse_place("s3", url), key_source("s3", s3_server.access_key, s3_server.secret_key))
    yield store
    store.close()


def test_a_bucket_is_made_where_it_is_missing(real: S3Store) -> None:
    with pytest.raises(StoreError, match="404 NoSuchBucket"):
        list(real.list())
    real.create()
    real.create()
    assert list(real.list()) == []


def test_without_a_bucket_no_object_is_called_missing(real: S3Store) -> None:
    with pytest.raises(StoreError, match="NoSuchBucket") as raised:
        real.get("k")
    assert not isinstance(raised.value, ObjectMissing)


@pytest.mark.parametrize(
    ("access", "secret", "said"),
    [
        (None, "wrong", r"403 SignatureDoesNotMatch: .*\(is the secret key right\?\)"),
        ("nobody", None, r"403 InvalidAccessKeyId: .*\(is the access key right\?\)"),
        ("anonymous", None, r"403 AccessDenied"),
    ],
)
def test_wrong_keys(s3_server: S3Server, access: str | None, secret: str | None, said: str) -> None:
    options = msgspec.structs.replace(
        s3_server.options, access_key=access or s3_server.access_key, secret_key=secret or s3_server.secret_key
    )
    store = open_store("s3", s3_server.bucket_url("first-bucket"), options)
    for call, work in {
        "PutObject": lambda: store.put("k", bytes(1 << 20)),
        "GetObject": lambda: store.get("k"),
        "ListObjects": lambda: list(store.list()),
        "DeleteObject": lambda: store.delete("k"),
    }.items():
        with pytest.raises(StoreError, match=f"^{call}: {said}") as raised:
            work()
        assert "wrong" not in str(raised.value)
    store.close()


def test_listings_go_on_page_after_page(real: S3Store) -> None:
    real.create()
    keys = [f"p/{number:05}" for number in range(2500)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: real.put(key, key.encode()), keys))
    assert [info.key for info in real.list("p/")] == keys
    assert [info.key for info in real.list("p/", keys[1000])] == keys[1001:]
    old = S3Store(msgspec.structs.replace(real.place, list_v1=True), real._keys)
    assert [info.key for info in old.list("p/")] == keys
    old.close()


def test_objects_carry_their_checksum_and_class(s3_server: S3Server, real: S3Store) -> None:
    real.create()
    for data in (b"hello", bytearray(b"hello"), memoryview(bytearray(b"xhello"))[1:]):
        real.put("k", data)
        answer = real._call("HeadObject", "HEAD", "k")
        assert answer.headers["x-amz-meta-crc32c"] == str(google_crc32c.value(b"hello"))
    cold = S3Store(real.place, real._keys, RequestOptions(storage_class="STANDARD_IA"))
    cold.put("k", b"hello")
    assert real._call("HeadObject", "HEAD", "k").headers["x-amz-storage-class"] == "STANDARD_IA"
    plain = S3Store(msgspec.structs.replace(real.place, checksum=False), real._keys)
    plain.put("k", b"hello")
    assert "x-amz-meta-crc32c" not in real._call("HeadObject", "HEAD", "k").headers
    cold.close()
    plain.close()


@pytest.mark.logs("does not match its checksum")
def test_an_object_that_does_not_match_its_checksum(real: S3Store) -> None:
    real.create()
    real._call("PutObject", "PUT", "k", headers={"x-amz-meta-crc32c": "7"}, body=b"hello")
    with pytest.raises(BadObject, match="k: its bytes do not match the checksum"):
        real.get("k")
    assert real.get("k", 1, 2) == b"el"


def test_odd_keys(real: S3Store) -> None:
    real.create()
    for key in ("a b", "plus+", "p%41", "q?x=1&y", "#hash", "ü/€", "a=b;c,d", "tilde~", "(1)!*'", '"quoted"'):
        real.put(key, key.encode())
        assert real.get(key) == key.encode()
        assert [info.key for info in real.list(key)] == [key]
        real.delete(key)
    assert list(real.list()) == []


# -- on one that says what a test wants


def fake_store(server: FakeS3, kind: str = "s3", path: str = "/b", **options: object) -> S3Store:
    place = parse_place(kind, server.endpoint + path)
    return S3Store(place, key_source(kind, "a", "s", "tok"), msgspec.convert(options, RequestOptions))


def answering(*replies: Reply) -> Iterator[Reply]:
    """These, one after the other, the last one for ever."""
    yield from replies[:-1]
    while True:
        yield replies[-1]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(503, "SlowDown", "Reduce your request rate"), "GetObject: 503 SlowDown: Reduce your request rate"),
        (error(400, "ExpiredToken"), r"400 ExpiredToken: said so \(the session token must be renewed\)"),
        (
            error(301, "PermanentRedirect", x_amz_bucket_region="eu-1"),
            r"301 PermanentRedirect: said so \(the bucket is in region eu-1\)",
        ),
        (
            Reply(307, b"", {"location": "https://elsewhere/"}),
            r"GetObject: 307 \(the bucket is https://elsewhere/\)",
        ),
        (Reply(502, b"<html>Bad gateway</html>\nmore"), "GetObject: 502 <html>Bad gateway</html>$"),
        (Reply(404, b"<html>no such page</html>"), "GetObject: 404 <html>no such page</html>"),
        (error(404, "NoSuchBucket"), "GetObject: 404 NoSuchBucket: said so"),
        (
            Reply(200, b"x", length=10, hang_up=True),
            "GetObject: 127.0.0.1:[0-9]+: the answer ended early, after 1 bytes",
        ),
    ],
)
def test_what_servers_say(reply: Reply, message: str) -> None:
    with FakeS3(lambda request: reply) as server:
        store = fake_store(server)
        with pytest.raises(StoreError, match=message) as raised:
            store.get("k")
        assert not isinstance(raised.value, ObjectMissing | StoreFull)
        store.close()


def page(encoding: str) -> bytes:
    """An error page as a gateway in front of the server may word it."""
    return f'<?xml version="1.0" encoding="{encoding}"?><html><body>Bad Gateway</body></html>'.encode()


@pytest.mark.parametrize("encoding", ["gb2312", "big5", "nobody-knows", "utf-16"])
def test_pages_in_encodings_that_are_not_read(encoding: str) -> None:
    with FakeS3(lambda request: Reply(502, page(encoding))) as server:
        store = fake_store(server)
        for call in (lambda: store.get("k"), lambda: store.put("k", b"x"), lambda: list(store.list())):
            with pytest.raises(Refused, match=r"502 <\?xml"):
                call()
        server.answer = lambda request: Reply(200, page(encoding))
        with pytest.raises(StoreError, match="an answer that is no listing"):
            list(store.list())
        store.close()


@pytest.mark.parametrize("length", [LARGE + 1, 10**15, 10**25])
def test_an_answer_that_says_it_is_huge(length: int) -> None:
    with FakeS3(lambda request: Reply(200, b"x", length=length)) as server:
        store = fake_store(server)
        for call in (lambda: store.get("k"), lambda: store.put("k", b"x")):
            with pytest.raises(StoreError, match=r"Object: 127.0.0.1:\d+: an answer of \d+ bytes"):
                call()
        store.close()


@pytest.mark.logs("ZeroDivisionError")
@pytest.mark.parametrize("where", ["request", "refusal", "keys"])
def test_whatever_an_answer_brings_about_is_a_fault_of_the_store(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell what a server will answer: no kind of exception of it may get further."""

    def unforeseen(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of all things")

    with FakeS3(lambda request: Reply(502, b"no")) as server:
        store = fake_store(server)
        monkeypatch.setattr(
            *{"request": (Connections, "request"), "refusal": (S3Store, "refusal"), "keys": (Signer, "headers")}[where],
            unforeseen,
        )
        with pytest.raises(StoreError, match=r"GetObject: 127.0.0.1:\d+: ZeroDivisionError: of all things"):
            store.get("k")
        store.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"last-modified": "Fri, 02 Jan 99999999999999999999 03:04:05 GMT"},
        {"last-modified": "Fri, 02 Jan 2026 03:04:05 +9999999999999999"},
        {"last-modified": "nonsense"},
        {},
    ],
)
def test_a_head_with_an_odd_date(headers: dict[str, str]) -> None:
    with FakeS3(lambda request: Reply(200, b"x", headers)) as server:
        store = fake_store(server)
        with pytest.raises(StoreError, match="an answer without size or date"):
            store.head("k")
        store.close()


@pytest.mark.parametrize("reply", [error(404, "NoSuchKey"), Reply(404), error(404, "NotFound")])
def test_missing(reply: Reply) -> None:
    with FakeS3(lambda request: reply) as server:
        store = fake_store(server)
        for call in (store.get, store.head, lambda key: store.get(key, 5, 5)):
            with pytest.raises(ObjectMissing, match=r"^k: "):
                call("k")
        store.delete("k")
        store.close()


@pytest.mark.parametrize("reply", [error(507, "XMinioStorageFull"), error(403, "QuotaExceeded"), Reply(507)])
def test_full(reply: Reply) -> None:
    with FakeS3(lambda request: reply) as server:
        store = fake_store(server)
        with pytest.raises(StoreFull):
            store.put("k", b"x")
        store.close()


def test_clocks_that_differ() -> None:
    skewed = error(403, "RequestTimeTooSkewed", "The difference is too large", date="Fri, 02 Jan 2026 03:04:05 GMT")
    with FakeS3(lambda request: skewed) as server:
        store = fake_store(server)
        with pytest.raises(StoreError, match=r"The difference is too large \(this machine's clock is \d+ s ahead of"):
            store.get("k")
        store.close()
    now = 1767323045.0
    assert clock_difference("Fri, 02 Jan 2026 03:04:05 GMT", now - 100) == (
        "this machine's clock is 100 s behind the server's"
    )
    for date in ("nonsense", "Fri, 02 Jan 99999999999999999999 03:04:05 GMT"):
        assert clock_difference(date, now) == "is this machine's clock right?"


def test_a_server_that_is_not_there() -> None:
    with FakeS3(lambda request: Reply()) as server:
        place = server.endpoint
    store = S3Store(parse_place("s3", place + "/b"), key_source("s3", "a", "s"))
    with pytest.raises(StoreError, match=r"PutObject: 127\.0\.0\.1:\d+: connection refused"):
        store.put("k", b"x")
    store.close()


def test_a_dead_connection_is_not_called_a_slow_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gives up a connection long before the request's own timeout."""

    def dead(*_: object, **__: object) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr(Connections, "request", dead)
    store = S3Store(parse_place("s3", "http://127.0.0.1:1/b"), key_source("s3", "a", "s"))
    with pytest.raises(StoreError, match=r"PutObject: 127\.0\.0\.1:1: the connection is dead"):
        store.put("k", b"x")
    store.close()


@pytest.mark.parametrize("call", ["get", "put"])
def test_the_timeout_of_each_direction(call: str) -> None:
    with FakeS3(lambda request: Reply(200, b"x" * 10_000, trickle=0.05)) as server:
        store = fake_store(server, **{f"{call}_timeout": 0.3})
        with pytest.raises(StoreError, match=r"Object: 127\.0\.0\.1:\d+ did not answer within 0\.3 s"):
            store.get("k") if call == "get" else store.put("k", b"x")
        store.close()


@pytest.mark.logs("does not match its checksum")
def test_what_was_damaged_on_its_way_is_fetched_again() -> None:
    good = {"x-amz-meta-crc32c": str(google_crc32c.value(b"hello"))}
    replies = answering(Reply(200, b"hallo", good), Reply(200, b"hello", good))
    with FakeS3(lambda request: next(replies)) as server:
        store = fake_store(server)
        assert store.get("k") == b"hello"
        assert len(server.requests) == 2
        store.close()


def test_ranges_on_a_server_that_knows_none() -> None:
    with FakeS3(lambda request: Reply(200, b"0123456789")) as server:
        store = fake_store(server)
        assert (store.get("k", 3, 4), store.get("k", 8, 10), store.get("k", 3)) == (b"3456", b"89", b"3456789")
        store.close()


@pytest.mark.parametrize(
    ("said", "body"),
    [
        ("bytes 3-5/10", b"345"),  # fewer than asked for, and not for the end's sake
        ("bytes 0-3/10", b"0123"),
        ("bytes 3-6/10", b"345"),
        ("", b"3456"),
        ("pages 3-6/10", b"3456"),
    ],
)
def test_another_range_than_was_asked_for(said: str, body: bytes) -> None:
    with FakeS3(lambda request: Reply(206, body, {"content-range": said})) as server:
        store = fake_store(server)
        with pytest.raises(StoreError, match="asked for 4 bytes at 3"):
            store.get("k", 3, 4)
        store.close()


def test_a_request() -> None:
    with FakeS3(lambda request: Reply()) as server:
        store = fake_store(server, storage_class="COLD")
        store.put("v/a b", memoryview(b"hello"))
        [request] = server.requests
        assert (request.method, request.target, request.body) == ("PUT", "/b/v/a%20b", b"hello")
        assert request.headers["x-amz-security-token"] == "tok"
        assert request.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert request.headers["x-amz-storage-class"] == "COLD"
        assert "expect" not in request.headers
        for name in ("host", "x-amz-security-token", "x-amz-storage-class", "x-amz-meta-crc32c"):
            assert name in request.headers["authorization"]
        store.close()


def test_the_bucket_in_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "")
    with FakeS3(lambda request: Reply(200, b"x")) as server:
        monkeypatch.setenv("http_proxy", server.endpoint)  # a proxy resolves any name
        for kind, url, host in [
            ("s3", "http://bkt.s3.eu-1.amazonaws.com", "bkt.s3.eu-1.amazonaws.com"),
            ("cos", "http://bkt-1.cos.ap-x.myqcloud.com", "bkt-1.cos.ap-x.myqcloud.com"),
            ("tos", "http://bkt.tos-cn-x.volces.com", "bkt.tos-s3-cn-x.volces.com"),
        ]:
            store = S3Store(parse_place(kind, url), key_source(kind, "a", "s"))
            assert store.get("v/k") == b"x"
            assert server.requests[-1].target == f"http://{host}/v/k"
            assert server.requests[-1].headers["host"] == host
            store.close()


def test_anonymous_requests() -> None:
    with FakeS3(lambda request: Reply(200, b"x")) as server:
        store = S3Store(parse_place("s3", server.endpoint + "/b"), key_source("s3", "anonymous"))
        assert store.get("k") == b"x"
        assert "authorization" not in server.requests[0].headers
        store.close()


# -- listings


def test_a_listing_in_the_old_way() -> None:
    replies = answering(listing("a", "b", more="b", v1=True), listing("b", "c", v1=True))
    with FakeS3(lambda request: next(replies)) as server:
        store = fake_store(server)
        store.place = msgspec.structs.replace(store.place, list_v1=True)
        # the second page begins with the marker itself, as some vendors' do
        with pytest.raises(StoreError, match="out of order"):
            list(store.list())
        assert [request.target for request in server.requests] == ["/b/?max-keys=1000", "/b/?marker=b&max-keys=1000"]
        store.close()


def test_a_listing_out_of_order() -> None:
    with FakeS3(lambda request: listing("b", "a")) as server:
        store = fake_store(server)
        with pytest.raises(StoreError, match="out of order: 'a' after 'b'"):
            list(store.list())
        store.close()


def test_an_empty_page_in_the_middle() -> None:
    replies = answering(listing("a", more="t1"), listing(more="t2"), listing("b"))
    with FakeS3(lambda request: next(replies)) as server:
        store = fake_store(server)
        assert [info.key for info in store.list("", "0")] == ["a", "b"]
        assert [request.target.partition("?")[2] for request in server.requests] == [
            "list-type=2&max-keys=1000&start-after=0",
            "continuation-token=t1&list-type=2&max-keys=1000",
            "continuation-token=t2&list-type=2&max-keys=1000",
        ]
        store.close()


def test_a_listing_that_goes_in_a_circle() -> None:
    replies = answering(listing("a", more="t1"), listing(more="t1"))
    with FakeS3(lambda request: next(replies)) as server:
        store = fake_store(server)
        with pytest.raises(StoreError, match="does not go on after 'a'"):
            list(store.list())
        store.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"<List><Contents><Key>k</Key></Contents></List>",
        listing("a").body.replace(b">7<", b">" + b"7" * 5000 + b"<"),
    ],
)
def test_what_is_no_listing(body: bytes) -> None:
    with FakeS3(lambda request: Reply(200, body)) as server:
        store = fake_store(server)
        with pytest.raises(StoreError, match="an answer that is no listing"):
            list(store.list())
        store.close()


# -- buckets


def creating(first: Reply) -> "tuple[list[Request], FakeS3]":
    requests: list[Request] = []

    def answer(request: Request) -> Reply:
        requests.append(request)
        return first if request.method == "GET" else error(409, "BucketAlreadyOwnedByYou")

    return requests, FakeS3(answer)


def test_a_bucket_that_somebody_else_made_meanwhile() -> None:
    requests, server = creating(error(404, "NoSuchBucket"))
    with server:
        store = fake_store(server)
        store.create()
        assert [request.method for request in requests] == ["GET", "PUT"]
        store.close()


def test_keys_that_may_not_list() -> None:
    requests, server = creating(error(403, "AccessDenied"))
    with server:
        store = fake_store(server)
        store.create()
        assert [request.method for request in requests] == ["GET"]
        store.close()


def test_a_bucket_of_amazons_is_made_in_its_region(monkeypatch: pytest.MonkeyPatch) -> None:
    requests, server = creating(error(404, "NoSuchBucket"))
    with server:
        monkeypatch.setenv("http_proxy", server.endpoint)
        for region, body in [("us-east-1", b""), ("eu-1", b"<LocationConstraint>eu-1</LocationConstraint>")]:
            store = S3Store(parse_place("s3", f"http://bkt.s3.{region}.amazonaws.com"), key_source("s3", "a", "s"))
            store.create()
            assert body in requests[-1].body
            assert bool(body) == bool(requests[-1].body)
            store.close()


@pytest.mark.parametrize(
    ("reply", "region"),
    [
        (Reply(301, b"", {"x-amz-bucket-region": "eu-1"}), "eu-1"),
        (Reply(403, b"", {"x-amz-bucket-region": "cn-north-1"}), "cn-north-1"),
        (Reply(404), "us-east-1"),
    ],
)
def test_the_region_of_a_bucket_alone(monkeypatch: pytest.MonkeyPatch, reply: Reply, region: str) -> None:
    with FakeS3(lambda request: reply if request.method == "HEAD" else Reply(200, b"x")) as server:
        monkeypatch.setenv("http_proxy", server.endpoint)
        place = msgspec.structs.replace(parse_place("s3", "mybucket"), scheme="http")
        store = S3Store(place, key_source("s3", "a", "s"))
        assert store.get("k") == store.get("k") == b"x"
        asked, *rest = [request.target for request in server.requests]
        end = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        assert asked == "http://s3.amazonaws.com/mybucket"
        assert rest == [f"http://mybucket.s3.{region}.{end}/k"] * 2
        assert f"/{region}/s3/" in server.requests[-1].headers["authorization"]
        store.close()


def test_refusals_tell_their_code() -> None:
    with FakeS3(lambda request: error(400, "Strange")) as server:
        store = fake_store(server)
        with pytest.raises(Refused) as raised:
            store.put("k", b"")
        assert (raised.value.status, raised.value.code) == (400, "Strange")
        store.close()


# -- with patience


class Moody:
    """A bucket in memory whose server fails two requests of three, in every way there is."""

    def __init__(self, seed: int) -> None:
        self.objects: dict[str, bytes] = {}
        self.dice = random.Random(seed)
        self.lock = threading.Lock()

    def __call__(self, request: Request) -> Reply | None:
        with self.lock:
            mood = self.dice.randrange(12)
            if mood == 0:
                return None
            if mood in (1, 2):
                return error(self.dice.choice([500, 503]), "SlowDown")
            reply = self.answer(request)
        if mood == 3 and reply.body:  # done, and the answer is lost on its way
            return Reply(reply.status, reply.body[:-1], reply.headers, length=len(reply.body), hang_up=True)
        if mood == 4:
            return None
        if mood == 5:
            return Reply(502, b"<html>Bad gateway</html>")
        if mood == 6:
            return Reply(reply.status, reply.body, {**reply.headers, "connection": "close"}, hang_up=True)
        if mood == 7 and reply.body:
            return Reply(reply.status, b"!" + reply.body[1:], reply.headers)
        return reply

    def answer(self, request: Request) -> Reply:
        key, _, query = request.target.removeprefix("/b/").partition("?")
        if request.method == "PUT":
            self.objects[key] = request.body
            return Reply()
        if request.method == "DELETE":
            self.objects.pop(key, None)
            return Reply(204)
        if query:
            start = dict(parse_qsl(query)).get("start-after", dict(parse_qsl(query)).get("continuation-token", ""))
            keys = sorted(name for name in self.objects if name > start)
            return listing(*keys[:3], more=keys[2] if len(keys) > 3 else "")
        if key not in self.objects:
            return error(404, "NoSuchKey")
        data = self.objects[key]
        return Reply(200, data, {"x-amz-meta-crc32c": str(google_crc32c.value(data))})


@pytest.mark.logs("trying again", "does not match its checksum")
@pytest.mark.parametrize("seed", range(3))
def test_a_moody_server_costs_patience_only(seed: int) -> None:
    moody = Moody(seed)
    with FakeS3(moody) as server:
        store = volume_part(fake_store(server), "v")

        def work(number: int) -> None:
            data = bytes([number]) * (10_000 + number)
            key = f"chunks/{number}"
            store.put(key, data)
            for _ in range(3):
                try:
                    assert store.get(key) == data
                    break
                except BadObject:  # damaged twice in a row
                    continue
            if number % 2:
                store.delete(key)
                with pytest.raises(ObjectMissing):
                    store.get(key)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(20)))
        left = sorted(f"chunks/{number}" for number in range(0, 20, 2))
        assert sorted(moody.objects) == [f"v/{key}" for key in left]
        assert [info.key for info in store.list()] == left
        store.close()
