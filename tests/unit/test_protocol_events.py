import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.protocol.events import Event, EventParser, TooLargeError

BOUND = 64
values = st.binary(max_size=20).map(lambda b: bytes(c for c in b if c not in b"\r\n\0"))


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def events_of(parts: list[bytes]) -> list[Event]:
    parser = EventParser(BOUND)
    return [event for part in parts for event in parser.feed(part)]


@given(
    st.lists(st.tuples(values, values), max_size=6),
    st.sampled_from([b"\n", b"\r", b"\r\n"]),
    st.lists(st.integers(0, 10_000), max_size=8),
)
def test_events_do_not_depend_on_how_the_stream_is_cut(
    sent: list[tuple[bytes, bytes]], end: bytes, cuts: list[int]
) -> None:
    lines = [[b"id: " + key, b"data: " + data, b""] for key, data in sent]
    stream = b"".join(line + end for event in lines for line in event)
    expected = [Event(b"message", data, key or None) for key, data in sent]
    assert events_of([stream]) == expected
    assert events_of(cut(stream, cuts)) == expected


def test_fields_are_those_of_the_specification() -> None:
    stream = b"\xef\xbb\xbf: a comment\nevent: ping\ndata\ndata:two\ndata:  three\nother: x\n\n"
    assert events_of([stream]) == [Event(b"ping", b"\ntwo\n three", None)]
    parser = EventParser(BOUND)
    assert list(parser.feed(b"retry: 250\nretry: soon\nid: a\0b\nid: 7\n\n")) == [
        Event(b"message", b"", b"7")
    ]
    assert (parser.retry_s, parser.last_id) == (0.25, b"7")
    assert list(parser.feed(b"event: nothing\n\ndata: x\n\n")) == [Event(b"message", b"x", None)]


@pytest.mark.parametrize(
    "parts",
    [
        itertools.repeat(b"data: no end ", 100),
        itertools.repeat(b"data: many lines\n", 100),
        itertools.repeat(b"data\n", 100),
        [b"data: " + b"x" * BOUND + b"\n"],
    ],
)
def test_what_is_longer_than_the_bound_is_an_error_and_not_held(parts: list[bytes]) -> None:
    with pytest.raises(TooLargeError, match=str(BOUND)):
        events_of(list(parts))
