"""A connection against a server that says what the test wants."""

import trio

from jfs.tikv.connection import connect
from jfs.tikv.errors import RpcError
from jfs.tikv.http2 import ACK, PING, frame


async def test_pings_are_answered_soon() -> None:
    answered = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal answered
        said = b""
        for word in (b"12345678", b"later..."):
            await stream.send_all(frame(PING, 0, 0, word))
            while not said.endswith(frame(PING, ACK, 0, word)):
                said += await stream.receive_some()
            answered += 1
        nursery.cancel_scope.cancel()

    with trio.fail_after(2):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            connection = await connect(f"127.0.0.1:{listener.socket.getsockname()[1]}", None)
            await trio.sleep_forever()
    connection.close(RpcError("the test is over"))
    assert answered == 2
