"""A connection against a server that says what the test wants."""

import socket
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from jfs.tikv.channel import Channel
from jfs.tikv.connection import Connection, connect
from jfs.tikv.errors import DEADLINE_EXCEEDED, RpcError
from jfs.tikv.http2 import ACK, PING, frame
from jfs.tikv.timestamps import Timestamps

Serve = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def served(serve: Serve) -> AsyncGenerator[str, None]:
    """The address of a server that does this with each connection."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def say_nothing(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


async def ping(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(frame(PING, 0, 0, b"12345678"))
        await stream.receive_some()


async def test_pings_are_answered_soon() -> None:
    answered = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        said = b""
        for word in (b"12345678", b"later..."):
            await stream.send_all(frame(PING, 0, 0, word))
            while not said.endswith(frame(PING, ACK, 0, word)):
                said += await stream.receive_some()
        answered.set()

    with trio.fail_after(30):
        async with served(serve) as address:
            connection = await connect(address, None, 20.0)
            await answered.wait()
            connection.close(RpcError("the test is over"))


async def asks(connection: Connection, channel: Channel, turns: int) -> None:
    with pytest.raises(RpcError, match=r"does not answer within 0\.5 s") as caught:
        if turns % 2:
            await channel.call("/service/Method", b"")
        else:
            await Timestamps(connection, b"").next()
    assert caught.value.code == DEADLINE_EXCEEDED


@pytest.mark.parametrize("serve", [say_nothing, ping])
async def test_who_waits_is_told_that_the_answer_is_late(serve: Serve) -> None:
    """A server that says something at least is not left."""
    with trio.fail_after(30):
        async with served(serve) as address:
            channel = Channel(address, None, 0.5)
            connection = await channel.connection()
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for turn in range(4):
                    nursery.start_soon(asks, connection, channel, turn)
            assert trio.current_time() - began >= 0.5
            assert connection.usable == (serve is ping)
            channel.close()


async def test_a_standstill_of_this_process_is_not_the_server_s() -> None:
    """What it said meanwhile is read before it is held to have said nothing."""
    for _ in range(6):
        stands = threading.Event()

        def serve(listener: socket.socket, stands: threading.Event = stands) -> None:
            with listener, listener.accept()[0] as client:
                stands.wait()
                client.sendall(frame(PING, 0, 0, b"12345678"))
                while client.recv(1000):
                    pass

        listener = socket.create_server(("127.0.0.1", 0))
        server = threading.Thread(target=serve, args=[listener])
        server.start()
        channel = Channel(f"127.0.0.1:{listener.getsockname()[1]}", None, 0.1)
        connection = await channel.connection()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_late, channel)
            await trio.testing.wait_all_tasks_blocked()
            stands.set()
            time.sleep(0.2)
        assert connection.usable
        channel.close()
        server.join()


async def is_late(channel: Channel) -> None:
    with pytest.raises(RpcError, match="does not answer"):
        await channel.call("/service/Method", b"")


async def test_who_is_cancelled_is_not_told() -> None:
    with trio.fail_after(30):
        async with served(ping) as address:
            channel = Channel(address, None, 0.5)
            with trio.move_on_after(0.05):
                await channel.call("/service/Method", b"")
            connection = await channel.connection()
            assert connection.http.idle
            await asks(connection, channel, 1)  # a call that comes after is watched as well
            channel.close()
