"""Messages as bytes: against examples of the format's documentation, and there and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jfs.tikv import messages, wire
from jfs.tikv.regions import decode_key, encode_key
from jfs.tikv.wire import Malformed

U64 = st.integers(0, (1 << 64) - 1)


@pytest.mark.parametrize(
    ("encoded", "fields"),
    [
        ("089601", [(1, 150)]),
        ("120774657374696e67", [(2, b"testing")]),
        ("1a03089601", [(3, bytes.fromhex("089601"))]),
        ("0901000000000000001502000000", [(1, 1), (2, 2)]),
        ("08ffffffffffffffffff01", [(1, (1 << 64) - 1)]),
        ("f80101", [(31, 1)]),
        ("", []),
    ],
)
def test_known_messages(encoded: str, fields: list[tuple[int, object]]) -> None:
    assert wire.fields(bytes.fromhex(encoded)) == fields


@pytest.mark.parametrize("encoded", ["08", "0880", "1205", "120574657374", "09010000", "0b", "08" + "ff" * 10 + "01"])
def test_what_is_no_message(encoded: str) -> None:
    with pytest.raises(Malformed):
        wire.fields(bytes.fromhex(encoded))


@given(st.lists(st.tuples(st.integers(1, 500), U64.filter(bool) | st.binary(max_size=300))))
def test_there_and_back(fields: list[tuple[int, int | bytes]]) -> None:
    message = b"".join(
        wire.number(field, value) if isinstance(value, int) else wire.data(field, value) for field, value in fields
    )
    assert wire.fields(message) == fields
    assert wire.parse(message) == dict(fields)


@given(st.lists(st.binary(max_size=200)), st.lists(U64))
def test_repeated(values: list[bytes], numbers: list[int]) -> None:
    assert wire.all_of(wire.repeated(7, values) + wire.number(3, 9), 7) == values
    content = wire.parse(wire.packed(2, numbers)).get(2, b"")
    assert content == b"".join(map(wire.varint, numbers))


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_encoded_keys_keep_their_order(one: bytes, other: bytes) -> None:
    assert decode_key(encode_key(one)) == one
    assert (one < other) == (encode_key(one) < encode_key(other))


SIZES = st.sampled_from([0, 1, 5, 100, 120, 121, 122, 123, 124, 125, 127, 128, 300])


@settings(deadline=None)
@given(
    st.lists(st.tuples(SIZES, SIZES, st.sampled_from(["pair", "pair", "pair", "error", "more", "reversed", "other"])))
)
def test_pairs_of_any_size_and_shape(shapes: list[tuple[int, int, str]]) -> None:
    good, bad, answer = [], [], b""
    for key_size, value_size, shape in shapes:
        key, value = b"k" * key_size, b"v" * value_size
        fields = [wire.data(2, key), wire.data(3, value)]
        if shape == "error":
            bad.append(value)
            fields = [wire.data(1, value), wire.data(2, key)]
        elif shape != "other":
            good.append((key, value))
        if shape == "more":
            fields.append(wire.number(9, 1 << 40))
        answer += wire.data(3 if shape == "other" else 2, b"".join(fields[:: -1 if shape == "reversed" else 1]))
    assert messages.pairs(answer) == (good, bad)
    for cut in range(len(answer)):
        try:
            found, _ = messages.pairs(answer[:cut])
        except Malformed:
            continue
        assert found == good[: len(found)]


def test_a_lock() -> None:
    message = (
        wire.data(1, b"p")
        + wire.number(2, 5)
        + wire.data(3, b"k")
        + wire.number(4, 3000)
        + wire.number(5, 2)
        + wire.number(6, 1)
        + wire.number(8, 1)
        + wire.number(9, 7)
        + wire.repeated(10, [b"a", b"b"])
    )
    assert messages.lock(message) == messages.Lock(b"k", b"p", 5, 3000, 2, 1, 0, True, 7, (b"a", b"b"))
