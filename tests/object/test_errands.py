"""Objects that are asked for without waiting: what comes of it on a server that answers as it is told to."""

import select
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jfs.errors import BadObject, ObjectMissing, StoreError
from jfs.object.s3 import S3Store, checksum
from jfs.object.sigv4 import Keys
from jfs.object.store import Errand, RequestOptions
from jfs.object.vendors import parse_place
from tests.object.fake_s3 import FakeS3, Reply, Request, error, make_certificate

DATA = bytes(range(256)) * 400
GOOD = Reply(200, DATA, {"x-amz-meta-crc32c": checksum(DATA)})


@contextmanager
def open_one(answer: Callable[[Request], Reply | None], *, at_hand: bool = True) -> Iterator[tuple[FakeS3, S3Store]]:
    with FakeS3(answer) as server:
        place = parse_place("s3", f"{server.endpoint}/b")
        options = RequestOptions(get_timeout=7.0)
        store = S3Store(place, lambda: Keys("me", "secret"), options, keys_at_hand=at_hand)
        yield server, store
        store.close()


@contextmanager
def asked(reply: Reply | None) -> Iterator[tuple[FakeS3, S3Store, Errand]]:
    """An errand on the connection that a first request has left; its answer is `reply`."""
    with open_one(lambda request: reply if request.target == "/b/k" else GOOD) as (server, store):
        assert store.get("first") == DATA
        errand = store.errand("k", len(DATA))
        assert errand is not None
        yield server, store, errand


def finish(errand: Errand) -> bytes:
    while True:
        assert select.select([errand], [], [], 60)[0], "nothing came"
        data = errand.go_on()
        if data is not None:
            return data


def test_a_kept_connection_runs_errands_and_is_kept() -> None:
    with asked(GOOD) as (server, store, errand):
        assert errand.deadline - time.monotonic() <= 7
        assert finish(errand) == DATA
        assert store.get("last") == DATA
        assert server.connections == 1
        first, second, _ = server.requests
        assert (second.method, second.target) == ("GET", "/b/k")
        assert first.headers.keys() == second.headers.keys()


def test_nothing_has_come_yet() -> None:
    gate = threading.Event()

    def answer(request: Request) -> Reply:
        assert request.target == "/b/first" or gate.wait(60)
        return GOOD

    with open_one(answer) as (_, store):
        store.get("first")
        errand = store.errand("k", len(DATA))
        assert errand is not None
        assert errand.go_on() is None
        gate.set()
        assert finish(errand) == DATA


def test_an_answer_in_pieces_and_larger_than_it_was_thought() -> None:
    with asked(Reply(200, b"x" * 50, trickle=0.001)) as (_, _, errand):
        assert finish(errand) == b"x" * 50
    with asked(Reply(200, DATA * 10)) as (_, _, errand):
        assert finish(errand) == DATA * 10


def test_no_errand_without_a_connection_or_keys_at_hand() -> None:
    with open_one(lambda request: GOOD) as (_, store):
        assert store.errand("k", 5) is None
    with open_one(lambda request: GOOD, at_hand=False) as (_, store):
        store.get("k")
        assert store.errand("k", 5) is None


def test_none_over_tls(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    with FakeS3(lambda request: GOOD, context) as server:
        place = parse_place("s3", f"{server.endpoint}/b?tls-insecure-skip-verify=true")
        store = S3Store(place, lambda: None, keys_at_hand=True)
        assert store.get("k") == DATA
        assert store.errand("k", len(DATA)) is None
        store.close()


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (error(404, "NoSuchKey"), ObjectMissing, "no such object"),
        (error(503, "SlowDown"), StoreError, "503 SlowDown"),
        (Reply(200, DATA, {"x-amz-meta-crc32c": "1"}), BadObject, "checksum"),
        (Reply(206, DATA), StoreError, "206"),
        (Reply(502, b'<?xml version="1.0" encoding="gb2312"?><html/>'), StoreError, "502 <.xml"),
        (None, StoreError, "ended early"),
        (Reply(200, b"half", length=8, hang_up=True), StoreError, "ended early"),
        (Reply(200, b"1\r\n!\r\n0\r\n\r\n", {"transfer-encoding": "chunked"}, length=-1), StoreError, "not plain"),
    ],
)
def test_what_can_come_of_it(reply: Reply | None, kind: type[StoreError], words: str) -> None:
    with asked(reply) as (_, store, errand):
        with pytest.raises(kind, match=words):
            finish(errand)
        assert store.get("last") == DATA


@pytest.mark.logs("ZeroDivisionError")
def test_whatever_comes_of_it_is_a_fault_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    def unforeseen(*_: object) -> None:
        raise ZeroDivisionError

    with asked(GOOD) as (_, _, errand):
        monkeypatch.setattr(S3Store, "intact", unforeseen)
        with pytest.raises(StoreError, match="ZeroDivisionError"):
            finish(errand)


def test_a_connection_on_which_too_much_came_is_not_used_again() -> None:
    with asked(Reply(200, DATA + b"!", length=len(DATA))) as (server, store, errand):
        assert finish(errand) == DATA
        assert store.get("last") == DATA
        assert server.connections == 2


def test_nor_is_one_whose_errand_was_given_up() -> None:
    with asked(Reply(200, b"late", trickle=0.01)) as (server, store, errand):
        errand.drop()
        assert errand.fileno() == -1
        assert store.get("last") == DATA
        assert server.connections == 2
