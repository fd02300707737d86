"""The HTTP/2 of calls, without a server: bytes in, bytes out."""

import pytest
from hpack import Encoder

from jfs.tikv import http2
from jfs.tikv.errors import ProtocolError, RpcError
from jfs.tikv.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Http2,
    Stream,
    frame,
)

PATH = "/service/Method"
Frame = tuple[int, int, int, bytes]


class Told(Stream):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[bytes] = []
        self.ends: list[RpcError | None] = []

    def received(self, content: bytes) -> None:
        self.parts.append(content)

    def ended(self, error: RpcError | None) -> None:
        self.ends.append(error)


class Server:
    """The other end: what was written to it, as frames, and what it says."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.http = Http2(self.written.__iadd__, "host:1", secure=False)
        self.http.start()
        assert self.written.startswith(http2.PREFACE)
        del self.written[: len(http2.PREFACE)]
        self.frames()
        self.encoder = Encoder()
        self.encoder.header_table_size = 0

    def frames(self) -> list[Frame]:
        found = []
        while self.written:
            size = int.from_bytes(self.written[:3], "big")
            kind, flags = self.written[3], self.written[4]
            found.append((kind, flags, int.from_bytes(self.written[5:9], "big"), bytes(self.written[9 : 9 + size])))
            del self.written[: 9 + size]
        return found

    def call(self, message: bytes = b"question") -> Told:
        told = Told()
        self.http.open(PATH, told, message)
        return told

    def says(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self.http.feed(frame(kind, flags, stream, payload))

    def block(self, **headers: str) -> bytes:
        pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return bytes(self.encoder.encode([(":status", "200"), *pairs] if "grpc-status" not in dict(pairs) else pairs))

    def settings(self, **values: int) -> None:
        names = {"streams": 3, "window": 4, "frame": 5}
        self.says(
            SETTINGS, 0, 0, b"".join(names[n].to_bytes(2, "big") + v.to_bytes(4, "big") for n, v in values.items())
        )


def word(number: int) -> bytes:
    return number.to_bytes(4, "big")


def test_a_call() -> None:
    server = Server()
    told = server.call(b"question")
    (kind, flags, stream, _), data = server.frames()
    assert (kind, flags, stream) == (HEADERS, END_HEADERS, 1)
    assert data == (DATA, END_STREAM, 1, b"\0\0\0\0\x08question")
    answer = (
        frame(HEADERS, END_HEADERS, 1, server.block(content_type="application/grpc"))
        + frame(DATA, 0, 1, b"\0\0\0\0\x06an")
        + frame(DATA, PADDED, 1, b"\x03swer\0\0\0")
        + frame(HEADERS, END_HEADERS | END_STREAM, 1, server.block(grpc_status="0"))
    )
    for byte in answer:
        assert told.ends == []
        server.http.feed(bytes([byte]))
    assert b"".join(told.parts) == b"\0\0\0\0\x06answer"
    assert told.ends == [None]
    assert server.frames() == []
    assert server.http.idle


def test_an_error_has_its_text_and_code() -> None:
    server = Server()
    told = server.call()
    block = server.block(grpc_status="14", grpc_message="no such luck " + "x" * 300)
    server.says(HEADERS, END_STREAM | PRIORITY, 1, bytes(5) + block[:7])
    server.says(CONTINUATION, 0, 1, block[7:20])
    server.says(CONTINUATION, END_HEADERS, 1, block[20:])
    (error,) = told.ends
    assert error is not None
    assert error.code == 14
    assert error.sent
    assert "no such luck" in str(error)


def test_an_answer_that_is_not_of_grpc() -> None:
    server = Server()
    told = server.call()
    server.says(HEADERS, END_HEADERS, 1, bytes(server.encoder.encode([(":status", "503")])))
    assert "503" in str(told.ends[0])


def test_a_conversation_that_waits_in_line_keeps_all_its_messages_in_order() -> None:
    server = Server()
    server.settings(streams=1)
    server.call()
    server.frames()
    told = Told()
    server.http.open(PATH, told, b"one", last=False)
    server.http.send(told, b"two")
    server.http.send(told, b"three")
    assert server.frames() == []
    server.says(HEADERS, END_HEADERS | END_STREAM, 1, server.block(grpc_status="0"))
    (kind, _, stream, _), *rest = server.frames()
    assert (kind, stream) == (HEADERS, 3)
    assert {(each[0], each[1], each[2]) for each in rest} == {(DATA, 0, 3)}
    assert b"".join(each[3] for each in rest) == b"\0\0\0\0\x03one\0\0\0\0\x03two\0\0\0\0\x05three"


def test_windows_hold_a_message_back() -> None:
    server = Server()
    server.settings(window=10, frame=16384)
    server.frames()
    told = server.call(bytes(40))
    _, first = server.frames()
    assert (len(first[3]), first[1]) == (10, 0)
    server.says(WINDOW_UPDATE, 0, 1, word(20))
    assert [(len(each[3]), each[1]) for each in server.frames()] == [(20, 0)]
    server.settings(window=25)
    assert [(len(each[3]), each[1]) for each in server.frames() if each[0] == DATA] == [(15, END_STREAM)]
    assert told.ends == []


def test_a_large_message_goes_in_frames_that_the_server_takes() -> None:
    server = Server()
    server.says(WINDOW_UPDATE, 0, 0, word(1 << 20))
    server.settings(window=1 << 20)
    server.frames()
    server.call(bytes(40_000))
    sizes = [(len(each[3]), each[1]) for each in server.frames() if each[0] == DATA]
    assert sizes == [(16384, 0), (16384, 0), (40_005 - 2 * 16384, END_STREAM)]


def test_the_connection_has_a_window_too() -> None:
    server = Server()
    server.settings(window=1 << 20)
    server.frames()
    server.call(bytes(65_000))
    server.call(bytes(1000))
    assert sum(len(each[3]) for each in server.frames() if each[0] == DATA) == 65_535
    server.says(WINDOW_UPDATE, 0, 0, word(1000))
    assert sum(len(each[3]) for each in server.frames()) == 65_005 + 1005 - 65_535


def test_calls_wait_where_the_server_takes_no_more() -> None:
    server = Server()
    server.settings(streams=1)
    server.frames()
    first, second, third = server.call(), server.call(), server.call()
    assert {each[2] for each in server.frames()} == {1}
    server.http.reset(third)
    server.says(HEADERS, END_HEADERS | END_STREAM, 1, server.block(grpc_status="0"))
    assert first.ends == [None]
    assert {each[2] for each in server.frames()} == {3}
    server.says(HEADERS, END_HEADERS | END_STREAM, 3, server.block(grpc_status="0"))
    assert second.ends == [None]
    assert (third.ends, server.frames()) == ([], [])


def test_a_call_that_is_given_up() -> None:
    server = Server()
    told = server.call()
    server.frames()
    server.http.reset(told)
    assert server.frames() == [(RST_STREAM, 0, 1, word(8))]
    server.says(DATA, 0, 1, b"late")
    server.says(HEADERS, END_HEADERS | END_STREAM, 1, server.block(grpc_status="0"))
    assert (told.parts, told.ends) == ([], [])


def test_goaway_ends_only_what_the_server_has_not_seen() -> None:
    server = Server()
    seen, unseen = server.call(), server.call()
    server.says(GOAWAY, 0, 0, word(1) + word(0))
    assert not server.http.usable
    (error,) = unseen.ends
    assert error is not None
    assert not error.sent
    assert seen.ends == []
    server.says(HEADERS, END_HEADERS | END_STREAM, 1, server.block(grpc_status="0"))
    assert seen.ends == [None]


@pytest.mark.parametrize(("code", "sent"), [(7, False), (2, True)])
def test_a_stream_that_the_server_resets(code: int, sent: bool) -> None:
    server = Server()
    told = server.call()
    server.says(RST_STREAM, 0, 1, word(code))
    (error,) = told.ends
    assert error is not None
    assert error.sent == sent


def test_a_ping_and_settings_are_answered() -> None:
    server = Server()
    server.says(PING, 0, 0, b"12345678")
    server.says(PING, ACK, 0, b"12345678")
    server.says(SETTINGS, ACK, 0)
    server.settings(streams=7)
    assert server.frames() == [(SETTINGS, ACK, 0, b"")]
    assert server.http.owes
    server.http.pay()
    server.http.pay()
    assert server.frames() == [(PING, ACK, 0, b"12345678")]
    assert not server.http.owes


def test_windows_are_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "REFILL", 1000)
    server = Server()
    server.call()
    server.frames()
    server.says(DATA, 0, 1, bytes(600))
    assert server.frames() == []
    server.says(DATA, 0, 1, bytes(600))
    assert server.frames() == [(WINDOW_UPDATE, 0, 0, word(1200)), (WINDOW_UPDATE, 0, 1, word(1200))]


def test_a_lost_connection_ends_everything() -> None:
    server = Server()
    server.settings(streams=1)
    under_way, waiting = server.call(), server.call()
    server.http.fail(RpcError("lost"))
    assert under_way.ends[0] is not None
    assert under_way.ends[0].sent
    assert waiting.ends[0] is not None
    assert not waiting.ends[0].sent


@pytest.mark.parametrize(
    ("kind", "flags", "payload"),
    [
        (PUSH_PROMISE, 0, b""),
        (DATA, PADDED, b"\x05abc"),
        (WINDOW_UPDATE, 0, b"\0"),
        (SETTINGS, 0, b"\0\0\0"),
        (CONTINUATION, END_HEADERS, b""),
        (HEADERS, END_HEADERS, b"\xff\xff\xff\xff\xff"),
        (HEADERS, END_HEADERS, b"\xbe"),
    ],
)
def test_what_no_server_may_say(kind: int, flags: int, payload: bytes) -> None:
    server = Server()
    server.call()
    with pytest.raises(ProtocolError):
        server.says(kind, flags, 0 if kind == SETTINGS else 1, payload)


def test_headers_are_not_interrupted() -> None:
    server = Server()
    server.call()
    server.says(HEADERS, 0, 1, server.block(grpc_status="0"))
    with pytest.raises(ProtocolError):
        server.says(PING, 0, 0, bytes(8))


def test_a_frame_is_no_longer_than_was_agreed() -> None:
    server = Server()
    with pytest.raises(ProtocolError):
        server.http.feed(b"\xff\xff\xff" + bytes(6))
