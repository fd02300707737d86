"""HTTP/2 as gRPC uses it, the client's side, without any input or output: bytes come in by `feed` and go out by `write`.

Rules: nothing here waits.  A message that the server's windows have no room for stays with its stream until they have; a
stream that the server has no place for waits in line.  What a stream gets, it is told by `received` and `ended`, exactly one
`ended` for each.  The server is told to keep no header table, so a block of headers means the same each time it comes, and
the usual ones are decoded once.
"""

import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Final

from hpack import Decoder
from hpack.exceptions import HPACKError

from jfs.tikv.errors import UNAVAILABLE, ProtocolError, RpcError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
PUSH_PROMISE: Final = 5
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 1, 1, 4, 8, 32
TABLE_SIZE, MAX_STREAMS, WINDOW, MAX_FRAME = 1, 3, 4, 5
REFUSED_STREAM, CANCEL = 7, 8

LARGEST_WINDOW: Final = (1 << 31) - 1
LAST_STREAM: Final = (1 << 31) - 1
REFILL: Final = 1 << 29
"""So much is received before the server's windows are opened again."""
DEFAULT_WINDOW: Final = 65535
FRAME_SIZE: Final = 1 << 18
"""Of what the server sends."""
KNOWN_BLOCKS: Final = 256

_MESSAGE: Final = struct.Struct(">BI")
_SETTING: Final = struct.Struct(">HI")
_WORD: Final = struct.Struct(">I")
_FRAME: Final = struct.Struct(">HBBBI")

Headers = dict[str, str]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return _FRAME.pack(size >> 8, size & 255, kind, flags, stream) + payload


def _literal(text: str) -> bytes:
    content = text.encode()
    if len(content) < 127:
        return bytes([len(content)]) + content
    rest = len(content) - 127
    out = bytearray([127])
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out) + content


class Stream(ABC):
    """One call or one conversation."""

    __slots__ = ("consumed", "half_closed", "id", "unsent", "window")

    def __init__(self) -> None:
        self.id = 0
        self.window = 0
        self.consumed = 0
        self.unsent: bytearray | None = None
        self.half_closed = False

    @abstractmethod
    def received(self, content: bytes) -> None:
        """A part of what the server says."""

    @abstractmethod
    def ended(self, error: RpcError | None) -> None:
        """Nothing more comes: the server has said all, or there was an error."""


class Http2:
    """One connection."""

    def __init__(self, write: Callable[[bytes], None], authority: str, *, secure: bool) -> None:
        self._write = write
        self._head_end = (
            b"\x01" + _literal(authority) + b"\x0f\x10" + _literal("application/grpc") + b"\x00\x02te\x08trailers"
        )
        self._head_start = b"\x83" + (b"\x87" if secure else b"\x86") + b"\x04"
        self._heads: dict[str, bytes] = {}
        self._streams: dict[int, Stream] = {}
        self._waiting: deque[tuple[str, Stream, bytes, bool]] = deque()
        self._next = 1
        self._window = DEFAULT_WINDOW
        self._first_window = DEFAULT_WINDOW
        self._largest_frame = 16384
        self._most_streams = 100
        self._consumed = 0
        self._rest = b""
        self._block: tuple[int, int, bytes] | None = None
        """Stream, flags and beginning of a block of headers that goes on in the next frame."""
        self._decoder = Decoder()
        self._decoder.header_table_size = 0
        self._decoder.max_allowed_table_size = 0
        self._known: dict[bytes, Headers] = {}
        self._owed = b""
        self.usable = True
        """Whether new streams may be opened."""

    def start(self) -> None:
        settings = ((TABLE_SIZE, 0), (2, 0), (WINDOW, LARGEST_WINDOW), (MAX_FRAME, FRAME_SIZE))
        self._write(
            PREFACE
            + frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*each) for each in settings))
            + frame(WINDOW_UPDATE, 0, 0, _WORD.pack(LARGEST_WINDOW - DEFAULT_WINDOW))
        )

    # -- what goes out

    def open(self, path: str, stream: Stream, message: bytes, *, last: bool = True) -> None:
        """Begin a call with its message; the `last` one of a unary call is the only one."""
        if len(self._streams) >= self._most_streams:
            self._waiting.append((path, stream, message, last))
            return
        stream.id = number = self._next
        self._next = number + 2
        if self._next > LAST_STREAM:
            self.usable = False
        stream.window = self._first_window
        self._streams[number] = stream
        stream.half_closed = last
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self._head_start + _literal(path) + self._head_end
        size = len(message) + 5
        if stream.unsent or size > self._window or size > stream.window or size > self._largest_frame:
            self._write(frame(HEADERS, END_HEADERS, number, head))
            # What was said while the stream waited in line comes after what it begins with.
            stream.unsent = bytearray(_MESSAGE.pack(0, size - 5) + message) + (stream.unsent or b"")
            self._pump(stream)
            return
        self._window -= size
        stream.window -= size
        self._write(
            b"".join(
                (
                    _FRAME.pack(0, len(head), HEADERS, END_HEADERS, number),
                    head,
                    _FRAME.pack(size >> 8, size & 255, DATA, END_STREAM if last else 0, number),
                    _MESSAGE.pack(0, size - 5),
                    message,
                )
            )
        )

    def send(self, stream: Stream, message: bytes) -> None:
        """One more message of an open stream."""
        if stream.unsent is None:
            stream.unsent = bytearray()
        stream.unsent += _MESSAGE.pack(0, len(message))
        stream.unsent += message
        self._pump(stream)

    def reset(self, stream: Stream) -> None:
        """Nobody waits for this stream any more; it is not told of its end."""
        if self._streams.pop(stream.id, None) is not None:
            self._write(frame(RST_STREAM, 0, stream.id, _WORD.pack(CANCEL)))
            self._admit()
        else:
            self._waiting = deque(each for each in self._waiting if each[1] is not stream)

    def _pump(self, stream: Stream) -> None:
        unsent = stream.unsent
        frames: list[bytes] = []
        while unsent:
            size = min(len(unsent), self._window, stream.window, self._largest_frame)
            if size <= 0:
                break
            piece = bytes(unsent[:size])
            del unsent[:size]
            self._window -= size
            stream.window -= size
            last = stream.half_closed and not unsent
            frames.append(frame(DATA, END_STREAM if last else 0, stream.id, piece))
        if frames:
            self._write(b"".join(frames))
        if not unsent:
            stream.unsent = None

    def _pump_all(self) -> None:
        for stream in list(self._streams.values()):
            if stream.unsent:
                self._pump(stream)

    def _admit(self) -> None:
        while self._waiting and len(self._streams) < self._most_streams and self.usable:
            path, stream, message, last = self._waiting.popleft()
            self.open(path, stream, message, last=last)

    # -- what comes in

    def feed(self, received: bytes) -> None:
        """What the server sent.  ProtocolError."""
        if self._rest:
            received = self._rest + received
        at, end = 0, len(received)
        while end - at >= 9:
            high, low, kind, flags, number = _FRAME.unpack_from(received, at)
            stop = at + 9 + (high << 8 | low)
            if stop > end:
                if stop - at - 9 > FRAME_SIZE:
                    raise ProtocolError(f"a frame of {stop - at - 9} bytes, which is longer than was agreed")
                break
            self._frame(kind, flags, number & LAST_STREAM, received[at + 9 : stop])
            at = stop
        self._rest = received[at:] if at else received

    def fail(self, error: RpcError) -> None:
        """The connection is lost: so are all streams."""
        self.usable = False
        streams, self._streams = self._streams, {}
        waiting, self._waiting = self._waiting, deque()
        for stream in streams.values():
            stream.ended(error)
        for _, stream, _, _ in waiting:
            stream.ended(RpcError(str(error), sent=False))

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and kind != CONTINUATION:
            raise ProtocolError("a block of headers is interrupted")
        if kind == DATA:
            self._data(flags, number, payload)
        elif kind == HEADERS:
            self._headers(flags, number, _unpadded(flags, payload))
        elif kind == CONTINUATION:
            self._continuation(flags, number, payload)
        elif kind == WINDOW_UPDATE:
            self._window_update(number, _word(payload))
        else:
            self._control(kind, flags, number, payload)

    def _control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == PING:
            if not flags & ACK:
                self._owed += frame(PING, ACK, 0, payload)
        elif kind == SETTINGS:
            if not flags & ACK:
                self._settings(payload)
        elif kind == RST_STREAM:
            self._was_reset(number, _word(payload))
        elif kind == GOAWAY:
            self._goaway(_word(payload) & LAST_STREAM)
        elif kind == PUSH_PROMISE:
            raise ProtocolError("the server pushes, which it was told not to")

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._consumed += size
        if self._consumed >= REFILL:
            self._write(frame(WINDOW_UPDATE, 0, 0, _WORD.pack(self._consumed)))
            self._consumed = 0
        stream = self._streams.get(number)
        if stream is None:
            return  # one that was reset
        if flags & PADDED:
            payload = _unpadded(PADDED, payload)
        stream.consumed += size
        if stream.consumed >= REFILL:
            self._write(frame(WINDOW_UPDATE, 0, number, _WORD.pack(stream.consumed)))
            stream.consumed = 0
        stream.received(payload)
        if flags & END_STREAM:
            self._end(stream, RpcError("the server ended a call without saying how it went"))

    def _headers(self, flags: int, number: int, block: bytes) -> None:
        if flags & PRIORITY:
            block = block[5:]
        if flags & END_HEADERS:
            self._block = None
            self._block_done(flags, number, block)
        else:
            self._block = (number, flags, block)

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise ProtocolError("headers go on that had not begun")
        _, first, block = self._block
        if len(block) > FRAME_SIZE:
            raise ProtocolError("a block of headers without an end")
        self._headers(first & END_STREAM | flags & END_HEADERS, number, block + payload)

    def _block_done(self, flags: int, number: int, block: bytes) -> None:
        headers = self._known.get(block)
        if headers is None:
            headers = self._decode(block)
        stream = self._streams.get(number)
        if stream is None:
            return
        if not flags & END_STREAM:
            if headers.get(":status") != "200":
                self.reset(stream)
                stream.ended(RpcError(f"HTTP status {headers.get(':status')} for a gRPC call"))
            return
        status = headers.get("grpc-status")
        if status == "0":
            self._end(stream, None)
            return
        said = headers.get("grpc-message") or f"HTTP status {headers.get(':status')}"
        code = int(status) if status is not None and status.isdigit() else UNAVAILABLE
        self._end(stream, RpcError(f"{said} (gRPC status {code})", code=code))

    def _decode(self, block: bytes) -> Headers:
        try:
            headers = {str(name): str(value) for name, value in self._decoder.decode(block)}
        except HPACKError as error:
            raise ProtocolError(f"headers that cannot be decoded: {error}") from error
        if len(self._known) < KNOWN_BLOCKS:
            self._known[block] = headers
        return headers

    def _end(self, stream: Stream, error: RpcError | None) -> None:
        del self._streams[stream.id]
        if not stream.half_closed or stream.unsent:
            self._write(frame(RST_STREAM, 0, stream.id, _WORD.pack(CANCEL)))
        stream.ended(error)
        if self._waiting:
            self._admit()

    def _was_reset(self, number: int, code: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.ended(RpcError(f"the server reset the call (HTTP/2 error {code})", sent=code != REFUSED_STREAM))
            self._admit()

    def _goaway(self, last: int) -> None:
        """The server takes no more streams than it had; those it has seen, it answers."""
        self.usable = False
        why = RpcError("the server closes the connection", sent=False)
        for number in [each for each in self._streams if each > last]:
            self._streams.pop(number).ended(why)
        waiting, self._waiting = self._waiting, deque()
        for _, stream, _, _ in waiting:
            stream.ended(why)

    @property
    def owes(self) -> bool:
        """Whether the server waits for a word that is in no hurry.

        Servers measure by pings how much they may send at once, with each request anew if they can: each answer would cost
        as much as a request.
        """
        return bool(self._owed)

    def pay(self) -> None:
        """Say what is owed."""
        owed, self._owed = self._owed, b""
        if owed:
            self._write(owed)

    @property
    def idle(self) -> bool:
        return not self._streams

    def _settings(self, payload: bytes) -> None:
        if len(payload) % _SETTING.size:
            raise ProtocolError("settings of an odd size")
        for name, value in _SETTING.iter_unpack(payload):
            if name == WINDOW:
                for stream in self._streams.values():
                    stream.window += value - self._first_window
                self._first_window = value
            elif name == MAX_FRAME:
                self._largest_frame = value
            elif name == MAX_STREAMS:
                self._most_streams = value
        self._write(frame(SETTINGS, ACK, 0))
        self._pump_all()
        self._admit()

    def _window_update(self, number: int, increment: int) -> None:
        if number == 0:
            self._window += increment
            self._pump_all()
            return
        stream = self._streams.get(number)
        if stream is not None:
            stream.window += increment
            if stream.unsent:
                self._pump(stream)


def _word(payload: bytes) -> int:
    if len(payload) < 4:
        raise ProtocolError("a frame that is too short")
    return int(_WORD.unpack_from(payload)[0])


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ProtocolError("more padding than frame")
    return payload[1 : len(payload) - payload[0]]
