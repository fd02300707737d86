"""Connections: kept, replaced, timed, encrypted, and through proxies."""

import http.client
import socket
import ssl
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

from jfs.errors import UserError
from jfs.object import connections as connections_module
from jfs.object import links as links_module
from jfs.object.connections import IDLE_S, Connections, Tls
from jfs.object.links import HEAD, LARGE, parse_head
from tests.object.fake_s3 import FakeS3, Reply, Request, make_certificate


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "no_proxy",
        "NO_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)


def echo(request: Request) -> Reply:
    return Reply(200, request.method.encode() + b" " + request.body)


def ask(connections: Connections, method: str = "GET", body: bytes | None = None, timeout: float = 10.0) -> bytes:
    return connections.request(method, "/b/k", {"host": "h"}, body, timeout=timeout).body


def test_a_connection_is_used_again() -> None:
    with FakeS3(echo) as server:
        connections = Connections(server.endpoint)
        for _ in range(5):
            assert ask(connections, "PUT", b"x" * 100_000) == b"PUT " + b"x" * 100_000
        assert server.connections == 1
        connections.close()


def test_no_more_are_kept_than_asked_for_and_none_after_closing() -> None:
    barrier = threading.Barrier(4)

    def together(request: Request) -> Reply:
        barrier.wait(60)
        return Reply(200, b"x")

    with FakeS3(together) as server:
        connections = Connections(server.endpoint, keep=2)
        for _ in range(2):
            threads = [threading.Thread(target=ask, args=(connections,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        assert server.connections == 4 + 2
        connections.close()
        server.answer = echo
        ask(connections)
        ask(connections)
        assert server.connections == 4 + 2 + 2


def test_what_nobody_needs_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is in use again and again stays, the others of a busy minute go."""
    barrier = threading.Barrier(3)

    def together(request: Request) -> Reply:
        barrier.wait(60)
        return Reply(200, b"x")

    with FakeS3(together) as server:
        connections = Connections(server.endpoint)
        threads = [threading.Thread(target=ask, args=(connections,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(connections._idle) == 3
        server.answer = echo
        ask(connections)
        assert len(connections._idle) == 3
        later = time.monotonic() + IDLE_S + 1
        monkeypatch.setattr("jfs.object.connections.time.monotonic", lambda: later)
        ask(connections)
        assert len(connections._idle) == 1
        connections.close()


def test_a_kept_connection_that_died_is_replaced() -> None:
    with FakeS3(echo) as server:
        connections = Connections(server.endpoint)
        ask(connections)
        server.drop_all()
        assert ask(connections, "PUT", b"again") == b"PUT again"
        connections.close()


def test_a_server_that_hangs_up_on_kept_connections_only() -> None:
    """It looks alive until the request is on its way."""
    seen: set[int] = set()

    def once_a_connection(request: Request) -> Reply | None:
        if server.connections in seen:
            return None
        seen.add(server.connections)
        return Reply(200, b"x")

    with FakeS3(once_a_connection) as server:
        connections = Connections(server.endpoint)
        assert ask(connections) == ask(connections) == b"x"
        assert server.connections == 2
        connections.close()


def test_a_server_that_hangs_up_always() -> None:
    with FakeS3(lambda request: None) as server:
        connections = Connections(server.endpoint)
        with pytest.raises(http.client.RemoteDisconnected):
            ask(connections)
        connections.close()


def test_a_connection_that_shall_not_be_used_again() -> None:
    with FakeS3(lambda request: Reply(200, b"x", {"connection": "close"}, hang_up=True)) as server:
        connections = Connections(server.endpoint)
        assert ask(connections) == ask(connections) == b"x"
        assert server.connections == 2
        connections.close()


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, b"half", length=8, hang_up=True),
        Reply(200, b"5\r\nhello\r\n", {"transfer-encoding": "chunked"}, length=-1, hang_up=True),
        Reply(200, b"no length at all", length=-1, hang_up=True),
    ],
    ids=["content-length", "chunked", "none"],
)
def test_an_answer_that_ends_early_is_an_error(reply: Reply) -> None:
    with FakeS3(lambda request: reply) as server:
        connections = Connections(server.endpoint)
        with pytest.raises(http.client.HTTPException):
            ask(connections)
        connections.close()


def test_chunks() -> None:
    chunked = Reply(200, b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", {"transfer-encoding": "chunked"}, length=-1)
    with FakeS3(lambda request: chunked) as server:
        connections = Connections(server.endpoint)
        assert ask(connections) == ask(connections) == b"hello!"
        assert server.connections == 1
        connections.close()


@pytest.mark.parametrize("size", ["fffffffffffff", "10000001"])
def test_no_memory_is_set_aside_for_a_chunk_on_its_word(size: str) -> None:
    chunked = Reply(200, f"{size}\r\nx".encode(), {"transfer-encoding": "chunked"}, length=-1, hang_up=True)
    with FakeS3(lambda request: chunked) as server:
        connections = Connections(server.endpoint)
        tracemalloc.start()
        with pytest.raises(http.client.IncompleteRead):
            ask(connections)
        assert tracemalloc.get_traced_memory()[1] < 2 * LARGE
        tracemalloc.stop()
        connections.close()


def test_an_answer_in_more_chunks_than_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jfs.object.links.LARGE", 8)
    chunked = Reply(200, b"5\r\nhello\r\n" * 2 + b"0\r\n\r\n", {"transfer-encoding": "chunked"}, length=-1)
    with FakeS3(lambda request: chunked) as server:
        connections = Connections(server.endpoint)
        with pytest.raises(http.client.HTTPException, match="an answer of more than 8 bytes"):
            ask(connections)
        connections.close()


@pytest.mark.parametrize("stray", [{}, {"x-amz-meta-long": "x" * HEAD}], ids=["short", "longer than is looked at"])
def test_a_head_that_comes_in_pieces(stray: dict[str, str]) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    more = "".join(f"{name}: {value}\r\n" for name, value in stray.items()).encode()
    answer = b"HTTP/1.1 200 OK\r\n" + more + b"Content-Length: 6\r\n\r\nhello!"

    def serve() -> None:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            connection.recv(1000)
            for byte in answer[:30], answer[30:-8], answer[-8:-3], answer[-3:]:
                time.sleep(0.02)  # a packet of its own, whatever is read of it
                connection.sendall(byte)
        connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    connections = Connections(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert ask(connections) == ask(connections) == b"hello!"
    connections.close()
    thread.join(60)
    listener.close()


GOOD = "HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 7"


def test_a_plain_head() -> None:
    assert parse_head(GOOD.encode()) == (200, {"server": "x", "content-length": "7"})
    assert parse_head(b"HTTP/1.1 204 No Content") == (204, {})
    assert parse_head(b"HTTP/1.1 404\r\ncontent-length:0") == (404, {"content-length": "0"})


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 200 OK",
        "HTTP/1.1 100 Continue\r\ncontent-length: 0",
        GOOD.replace("1.1", "1.0"),
        GOOD.replace("200", "2x0"),
        GOOD.replace("7", "-7"),
        GOOD.replace("7", "7" * 12),
        GOOD + "\r\ncontent-length: 8",
        GOOD + "\r\ntransfer-encoding: chunked",
        GOOD + "\r\n folded",
        GOOD + "\r\nno colon",
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 7",
    ],
)
def test_other_heads_are_left_to_http_client(head: str) -> None:
    assert parse_head(head.encode()) is None


def test_headers_cannot_be_smuggled_in() -> None:
    connections = Connections("http://127.0.0.1:1")
    with pytest.raises(ValueError, match="line break"):
        connections.request("GET", "/", {"host": "h", "x-amz-meta-a": "b\r\nx-amz-acl: all"}, timeout=1)


def test_the_deadline_covers_all_of_the_request() -> None:
    """The server takes the connection, and nothing that comes on it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections = Connections(f"http://127.0.0.1:{listener.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            ask(connections, "PUT", bytes(20 << 20), timeout=0.5)
        assert time.monotonic() - began < 10
        connections.close()


@pytest.mark.parametrize("kind", ["silent", "trickling"])
def test_the_deadline_covers_all_of_the_answer(kind: str) -> None:
    release = threading.Event()

    def slow(request: Request) -> Reply:
        if kind == "silent":
            release.wait(30)
        return Reply(200, b"x" * 1000, trickle=0.05)

    with FakeS3(slow) as server:
        connections = Connections(server.endpoint)
        with pytest.raises(TimeoutError):
            ask(connections, timeout=0.5)
        release.set()
        connections.close()


def test_a_server_that_takes_no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jfs.object.connections.CONNECT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = []
        for _ in range(3):  # the kernel drops what comes after a full queue
            each = socket.socket()
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
            waiting.append(each)
        connections = Connections(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(OSError, match=r"no connection within 0\.3 s"):
            ask(connections)
        connections.close()
        for each in waiting:
            each.close()


def test_what_a_server_says_before_it_has_read_all_is_heard() -> None:
    """As those do that refuse a put for its keys."""
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        connection, _ = listener.accept()
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 403 No\r\ncontent-length: 6\r\nconnection: close\r\n\r\nwhy so")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):
            pass
        connection.close()

    thread = threading.Thread(target=refuse)
    thread.start()
    connections = Connections(f"http://127.0.0.1:{listener.getsockname()[1]}")
    answer = connections.request("PUT", "/b/k", {"host": "h"}, bytes(20 << 20), timeout=10)
    assert (answer.status, answer.body) == (403, b"why so")
    connections.close()
    thread.join(60)
    listener.close()


# -- TLS


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return make_certificate(tmp_path)


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    return context


def test_a_certificate_that_nobody_vouches_for(certificate: tuple[Path, Path]) -> None:
    with FakeS3(echo, server_context(certificate)) as server:
        connections = Connections(server.endpoint)
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(connections)
        connections.close()


@pytest.mark.parametrize("how", ["ca-certs", "skip"])
def test_tls(certificate: tuple[Path, Path], how: str) -> None:
    tls = Tls(skip_verify=True) if how == "skip" else Tls(ca_certs=str(certificate[0]))
    with FakeS3(echo, server_context(certificate)) as server:
        connections = Connections(server.endpoint, tls=tls)
        data = bytes(range(256)) * 10_000
        assert ask(connections, "PUT", data) == b"PUT " + data
        assert ask(connections) == b"GET "
        assert server.connections == 1
        connections.close()


def test_a_clients_certificate(certificate: tuple[Path, Path]) -> None:
    context = server_context(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificate[0])
    own = Tls(ca_certs=str(certificate[0]), cert=str(certificate[0]), key=str(certificate[1]))
    with FakeS3(echo, context) as server:
        connections = Connections(server.endpoint, tls=own)
        assert ask(connections) == b"GET "
        connections.close()


def test_certificates_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the certificates /none\.pem cannot be used: .*No such file"):
        Connections("https://h", tls=Tls(ca_certs="/none.pem"))
    (tmp_path / "bad.pem").write_text("nonsense")
    with pytest.raises(UserError, match="cannot be used"):
        Connections("https://h", tls=Tls(cert=str(tmp_path / "bad.pem")))


@pytest.mark.parametrize(("kind", "size"), [("plain", 20 << 20), ("plain", 300_000), ("tls", 20 << 20)])
def test_a_server_that_is_too_busy_to_read_is_not_dead(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    """It takes no more and acknowledges every probe, for longer than the kernel would bear with it; a small body is on its way
    by then, a large one waits for room.
    """
    monkeypatch.setattr(connections_module, "WATCHED", [(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1500)])
    monkeypatch.setattr(links_module, "LOOK_S", 0.1)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    got: list[int] = []

    def serve() -> None:
        connection, _ = listener.accept()
        if kind == "tls":
            connection = server_context(certificate).wrap_socket(connection, server_side=True)
        time.sleep(3.5)
        with connection, connection.makefile("rb") as stream:
            while stream.readline().strip():
                pass
            got.append(len(stream.read(size)))
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    thread = threading.Thread(target=serve)
    thread.start()
    scheme, tls = ("https", Tls(skip_verify=True)) if kind == "tls" else ("http", None)
    connections = Connections(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", tls=tls)
    assert ask(connections, "PUT", bytes(size), timeout=30) == b"ok"
    assert got == [size]
    connections.close()
    thread.join(60)
    listener.close()


# -- proxies


def test_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeS3(echo) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:p%40ss@127.0.0.1:{proxy.port}")
        connections = Connections("http://s3.example:9000")
        assert ask(connections) == b"GET "
        [request] = proxy.requests
        assert request.target == "http://s3.example:9000/b/k"
        assert request.headers["proxy-authorization"] == "Basic bWU6cEBzcw=="
        connections.close()
        direct = Connections(proxy.endpoint)  # a server on this machine
        ask(direct)
        assert proxy.requests[-1].target == "/b/k"
        direct.close()
        monkeypatch.setenv("no_proxy", "s3.invalid")
        bypassing = Connections("http://s3.invalid")
        with pytest.raises(OSError, match=r"not known|resolution|No address"):
            ask(bypassing)
        bypassing.close()


def test_tls_goes_through_a_proxy_in_a_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeS3(lambda request: Reply(407, b"", hang_up=True)) as proxy:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
        connections = Connections("https://s3.example")
        with pytest.raises(OSError, match="407"):
            ask(connections)
        [request] = proxy.requests
        assert (request.method, request.target) == ("CONNECT", "s3.example:443")
        connections.close()


def test_a_proxy_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(UserError, match="must be an http:// address, not socks5://"):
        Connections("https://s3.example")
