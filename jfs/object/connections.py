"""Connections to one server, kept open between requests."""

import collections
import http.client
import socket
import ssl
import threading
import time
import urllib.request
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from jfs.errors import UserError
from jfs.object.links import DEAD_S, HEAD, Answer, Exchange, Link, PlainLink, request_head
from jfs.object.store import Buffer

CONNECT_S: Final = 5.0
"""Longest wait for a connection to be made."""

IDLE_S: Final = 30.0
"""A connection that has been idle for longer is not trusted: servers and firewalls drop them, often without a word."""

WATCHED: Final = (
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_S * 1000),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
)
"""DEAD_S, and probes from the second second of silence on."""


class Tls(msgspec.Struct, frozen=True):
    """How to trust a server, and how to show who one is: paths of PEM files, empty for none."""

    skip_verify: bool = False
    ca_certs: str = ""
    cert: str = ""
    key: str = ""

    def context(self) -> ssl.SSLContext:
        """UserError for files that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca_certs or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None)
        except OSError as error:
            names = ", ".join(name for name in (self.ca_certs, self.cert, self.key) if name)
            raise UserError(f"the certificates {names} cannot be used: {error}") from error
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class Connections:
    """A pool of connections to `origin` (`https://host[:port]`); as many are in use as there are threads that ask.

    Proxies are taken from the environment (http_proxy, https_proxy, no_proxy).
    """

    def __init__(self, origin: str, *, keep: int = 16, tls: Tls | None = None) -> None:
        parts = urlsplit(origin)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._context = (tls or Tls()).context() if self._secure else None
        self._keep = keep
        self._idle: collections.deque[tuple[Link, float]] = collections.deque()
        self._lock = threading.Lock()
        self._closed = False
        self._proxy = _proxy_for(parts.scheme, self._host)
        plain = self._proxy is not None and not self._secure
        self._target = f"http://{parts.netloc}" if plain else ""
        self._more = self._proxy[2] if plain and self._proxy else {}

    def request(
        self, method: str, target: str, headers: dict[str, str], body: Buffer | None = None, *, timeout: float
    ) -> Answer:
        """One request and its whole answer, within `timeout` seconds.

        It may be sent twice, where a kept connection turns out to be dead: requests must be idempotent.  Raises OSError,
        http.client.HTTPException.
        """
        deadline = time.monotonic() + timeout
        head = request_head(method, self._target + target, headers | self._more, body)
        while True:
            link = self._take()
            kept = link is not None
            if link is None:
                link = self._connect(timeout)
            link.deadline = deadline
            try:
                answer, reusable = _exchange(link, method, head, body)
            except (ConnectionError, http.client.BadStatusLine):  # RemoteDisconnected is both
                link.close()
                if not kept:
                    raise
            except BaseException:
                link.close()
                raise
            else:
                if reusable:
                    self._give_back(link)
                else:
                    link.close()
                return answer

    def begin(self, target: str, headers: dict[str, str], *, size: int, timeout: float) -> Exchange | None:
        """Send a GET, whose answer has some `size` bytes; None where that would take waiting, or no connection is kept.

        Raises OSError.
        """
        if self._context is not None:
            return None
        link = self._take()
        if link is None:
            return None
        link.deadline = time.monotonic() + timeout
        head = request_head("GET", self._target + target, headers | self._more, None)
        try:
            if link.sock.send(head, socket.MSG_DONTWAIT) != len(head):
                raise BlockingIOError("a request of a few hundred bytes finds no room")
        except BaseException:
            link.close()
            raise
        return Exchange(link, self._give_back, size + HEAD)

    def _take(self) -> Link | None:
        """A connection that was used before."""
        now = time.monotonic()
        while True:
            with self._lock:
                last = self._idle.pop() if self._idle else None
            if last is None:
                return None
            link, since = last
            if now - since < IDLE_S and not link.readable():
                return link
            link.close()

    def _connect(self, timeout: float) -> Link:
        connection = self._new(min(timeout, CONNECT_S))
        try:
            connection.connect()
        except TimeoutError as error:
            connection.close()
            raise OSError(f"no connection within {connection.timeout:g} s") from error
        except BaseException:
            connection.close()
            raise
        for level, option, value in WATCHED:
            connection.sock.setsockopt(level, option, value)
        return PlainLink(connection.sock) if self._context is None else Link(connection.sock)

    def _new(self, wait: float) -> http.client.HTTPConnection:
        host, port = (self._host, self._port) if self._proxy is None else self._proxy[:2]
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=wait)
        connection = http.client.HTTPSConnection(host, port, timeout=wait, context=self._context)
        if self._proxy is not None:
            connection.set_tunnel(self._host, self._port, headers=self._proxy[2])
        return connection

    def _give_back(self, link: Link) -> None:
        """Keep it, and let go of those that nobody has needed for a while: the oldest are on the left."""
        now = time.monotonic()
        surplus = []
        with self._lock:
            while self._idle and now - self._idle[0][1] > IDLE_S:
                surplus.append(self._idle.popleft()[0])
            if not self._closed and len(self._idle) < self._keep:
                self._idle.append((link, now))
            else:
                surplus.append(link)
        for each in surplus:
            each.close()

    def close(self) -> None:
        """Close what is idle; what is in use closes when its request ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, collections.deque()
        for link, _ in idle:
            link.close()


def _exchange(link: Link, method: str, head: bytes, body: Buffer | None) -> tuple[Answer, bool]:
    """Send, then read the answer; whether the connection can be used again."""
    sent = True
    try:
        link.send(head, body)
    except (BrokenPipeError, ConnectionResetError):
        # A server that refuses a put closes before it has read all of it; what it said may still be there to read.
        if body is None:
            raise
        sent = False
    answer, kept = link.receive(method)
    return answer, sent and kept and not link.lenient


def _proxy_for(scheme: str, host: str) -> tuple[str, int, dict[str, str]] | None:
    """Host, port and headers of the proxy that the environment names for this server; this machine needs none."""
    found = urllib.request.getproxies().get(scheme)
    if not found or urllib.request.proxy_bypass(host) or host in ("localhost", "::1") or host.startswith("127."):
        return None
    parts = urlsplit(found if "://" in found else f"http://{found}")
    if parts.scheme != "http" or not parts.hostname:
        raise UserError(f"the proxy for {scheme} must be an http:// address, not {parts.scheme}://")
    headers = {}
    if parts.username:
        import base64

        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    return parts.hostname, parts.port or 80, headers
