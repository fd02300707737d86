"""The client over TLS: a proxy that ends the encryption stands before each server of the cluster."""

import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from jfs.errors import Unavailable
from jfs.tikv import channel
from jfs.tikv.client import Client, Mutation, Op, tls_context
from jfs.tikv.connection import Connection, connect
from tests.tikv.cluster import Cluster
from tests.tikv_client.clients import put

NOW = dt.datetime.now(dt.UTC)


class Authority:
    """Makes certificates, as files of a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.ca = folder / f"{name}.pem"
        basics = x509.BasicConstraints(ca=True, path_length=None)
        made = (
            self._builder(self._name, self._key).add_extension(basics, critical=True).sign(self._key, hashes.SHA256())
        )
        self.ca.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - dt.timedelta(days=1))
            .not_valid_after(NOW + dt.timedelta(days=1))
        )

    def issue(self, name: str, address: str = "127.0.0.1") -> tuple[Path, Path]:
        """Certificate and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(subject, key).add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        cert_file, key_file = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_file, key_file


async def pass_on(source: trio.abc.ReceiveStream, target: trio.abc.Stream) -> None:
    try:
        async for content in source:
            await target.send_all(content)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


class Proxies:
    """TLS servers, one for each plain one, made when a client connects there."""

    def __init__(self, nursery: trio.Nursery, context: ssl.SSLContext) -> None:
        self._nursery = nursery
        self._context = context
        self._ports: dict[str, int] = {}
        self.protocols: set[str | None] = set()

    async def connect(self, address: str, context: ssl.SSLContext | None, answer_s: float) -> Connection:
        """In place of the client's own: to the proxy of the address."""
        if address not in self._ports:

            async def serve(stream: trio.SocketStream) -> None:
                await self._serve(stream, int(address.rpartition(":")[2]))

            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self._ports[address] = listener.socket.getsockname()[1]
            self._nursery.start_soon(trio.serve_listeners, serve, [listener])
        return await connect(f"127.0.0.1:{self._ports[address]}", context, answer_s)

    async def _serve(self, stream: trio.SocketStream, port: int) -> None:
        secure = trio.SSLStream(stream, self._context, server_side=True, https_compatible=True)
        try:
            await secure.do_handshake()
        except trio.BrokenResourceError:
            return
        self.protocols.add(secure.selected_alpn_protocol())
        async with await trio.open_tcp_stream("127.0.0.1", port) as plain, trio.open_nursery() as nursery:
            nursery.start_soon(pass_on, secure, plain)
            await pass_on(plain, secure)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def proxies(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, address: str = "127.0.0.1"
) -> AsyncGenerator[Proxies, None]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(*authority.issue("server", address))
    async with trio.open_nursery() as nursery:
        made = Proxies(nursery, context)
        monkeypatch.setattr(channel, "connect", made.connect)
        yield made
        nursery.cancel_scope.cancel()


async def test_a_cluster_behind_tls(tikv_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path, "authority")
    async with proxies(monkeypatch, authority) as made:
        client = Client([tikv_cluster.pd], tls_context(authority.ca, *authority.issue("client")))
        large = bytes(range(256)) * (16 << 10)
        await put(client, Mutation(Op.PUT, b"secret/1", large), Mutation(Op.PUT, b"secret/2", b"small"))
        assert await client.snapshot().get(b"secret/2") == b"small"
        now = client.snapshot(await client.timestamp())
        assert await now.scan(b"secret/", b"secret0") == [(b"secret/1", large), (b"secret/2", b"small")]
        assert made.protocols == {"h2"}
        client.close()


@pytest.mark.parametrize("wrong", ["authority", "name", "no certificate"])
async def test_a_stranger_is_refused(
    tikv_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    authority, other = Authority(tmp_path, "authority"), Authority(tmp_path, "other")
    async with proxies(monkeypatch, authority, "127.0.0.2" if wrong == "name" else "127.0.0.1"):
        trusted = other if wrong == "authority" else authority
        files = (None, None) if wrong == "no certificate" else authority.issue("client")
        client = Client([tikv_cluster.pd], tls_context(trusted.ca, *files), patience_s=0.3)
        with trio.fail_after(30), pytest.raises(Unavailable):
            await client.timestamp()
        client.close()
