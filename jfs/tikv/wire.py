"""Protocol Buffers' wire format, as much of it as TiKV's messages use: varints and length-delimited fields.

A message that is written is the concatenation of its fields; a field whose value is the default is left out.  A message that
is read is a dict from field number to value: an int, or bytes that may be a message in turn.  Of a field that comes more
than once the dict has the last one; `all_of` has them all.
"""

import struct
from collections.abc import Iterable
from typing import Any, Final

Message = dict[int, Any]

_SMALL: Final = tuple(bytes([n]) for n in range(128))
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_U64: Final = struct.Struct("<Q")
_U32: Final = struct.Struct("<I")


class Malformed(ValueError):
    """These bytes are no message."""


def varint(value: int) -> bytes:
    if value < 128:
        return _SMALL[value]
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A field of an unsigned integer, enum or bool."""
    return varint(field << 3) + varint(value) if value else b""


def data(field: int, value: bytes) -> bytes:
    """A field of bytes, text or a message.  Empty ones are written too: a message without fields is not a missing one."""
    return varint(field << 3 | _BYTES) + varint(len(value)) + value


def repeated(field: int, values: Iterable[bytes]) -> bytes:
    tag = varint(field << 3 | _BYTES)
    parts: list[bytes] = []
    for value in values:
        parts += (tag, varint(len(value)), value)
    return b"".join(parts)


def packed(field: int, values: Iterable[int]) -> bytes:
    content = b"".join(map(varint, values))
    return data(field, content) if content else b""


def parse(message: bytes) -> Message:
    """The fields of a message.  Malformed."""
    found: Message = {}
    for field, value in fields(message):
        found[field] = value
    return found


def all_of(message: bytes, wanted: int) -> list[Any]:
    """Every value of one field, in order.  Malformed."""
    return [value for field, value in fields(message) if field == wanted]


def fields(message: bytes) -> list[tuple[int, Any]]:
    """Field numbers and values in the order in which they were sent.  Malformed."""
    found: list[tuple[int, Any]] = []
    at, end = 0, len(message)
    try:
        while at < end:
            tag = message[at]
            at += 1
            if tag > 127:
                tag, at = _varint_at(message, at - 1)
            kind = tag & 7
            if kind == _BYTES:
                size = message[at]
                at += 1
                if size > 127:
                    size, at = _varint_at(message, at - 1)
                stop = at + size
                found.append((tag >> 3, message[at:stop]))
                at = stop
            elif kind == _VARINT:
                value = message[at]
                at += 1
                if value > 127:
                    value, at = _varint_at(message, at - 1)
                found.append((tag >> 3, value))
            else:
                value, at = _fixed_at(message, at, kind)
                found.append((tag >> 3, value))
    except (IndexError, struct.error):
        raise Malformed("a message ends within a field") from None
    if at != end:
        raise Malformed("a message ends within a field")
    return found


def _varint_at(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            raise Malformed("a number has more than 64 bits")


def _fixed_at(message: bytes, at: int, kind: int) -> tuple[int, int]:
    if kind == _FIXED64:
        return _U64.unpack_from(message, at)[0], at + 8
    if kind == _FIXED32:
        return _U32.unpack_from(message, at)[0], at + 4
    raise Malformed(f"there is no wire type {kind}")
