"""What a broken stream leaves: bounded, in order, refused when it is too late."""

import pytest

from vsm.gateway.http import HttpSession
from vsm.gateway.http_exchange import Exchange, RefusedError, Request
from vsm.gateway.resumption import MAX_KEPT_OF_STREAM, Backlog, EventStream, parse_event_id


class Wire:
    """A connection whose bytes are kept."""

    chunks = False
    stays = False

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def unread_bytes(self) -> int:
        return 0

    def finished(self) -> None: ...

    def abort(self) -> None: ...


def attached(stream: EventStream) -> Wire:
    wire = Wire()
    stream.exchange = Exchange(wire, 0.0)
    return wire


def cut(stream: EventStream) -> None:
    assert stream.exchange is not None
    stream.exchange.disconnected()


def numbers(wire: Wire) -> list[int]:
    return [int(line[7:]) for line in wire.data.split(b"\r\n") if line.startswith(b"data: n")]


def test_what_follows_comes_once_and_in_order() -> None:
    stream = EventStream(Backlog(), 3, None)
    first = attached(stream)
    for number in range(3):
        stream.notify(b"n%d" % number)
    cut(stream)
    for number in range(3, 6):
        stream.notify(b"n%d" % number)
    second = Wire()
    stream.resume(Exchange(second, 0.0), after=2)
    stream.notify(b"n6")
    stream.answer(b"n7")
    assert numbers(first) == [0, 1, 2]
    assert numbers(second) == [2, 3, 4, 5, 6, 7]
    third = Wire()
    stream.resume(Exchange(third, 0.0), after=0)
    assert numbers(third) == list(range(8))


def test_a_stream_that_is_read_is_not_given_to_another() -> None:
    stream = EventStream(Backlog(), 1, None)
    attached(stream)
    stream.notify(b"n0")
    with pytest.raises(RefusedError):
        stream.resume(Exchange(Wire(), 0.0), after=0)


def test_too_late_is_said_and_not_papered_over() -> None:
    stream = EventStream(Backlog(), 1, None)
    attached(stream)
    for number in range(MAX_KEPT_OF_STREAM + 10):
        stream.notify(b"n%d" % number)
    cut(stream)
    assert len(stream.kept) == MAX_KEPT_OF_STREAM
    for after in (0, 9, MAX_KEPT_OF_STREAM + 11):
        with pytest.raises(RefusedError):
            stream.resume(Exchange(Wire(), 0.0), after=after)
    wire = Wire()
    stream.resume(Exchange(wire, 0.0), after=10)
    assert len(numbers(wire)) == MAX_KEPT_OF_STREAM


def test_all_streams_share_one_bound_and_the_oldest_goes_first() -> None:
    backlog = Backlog(most_bytes=1000)
    streams = [EventStream(backlog, number, None) for number in range(4)]
    for stream in streams:
        for _ in range(5):
            stream.notify(b"x" * 100)
    assert backlog.held_bytes <= 1000
    assert [len(stream.kept) for stream in streams] == [0, 0, 5, 5]
    for stream in streams:
        stream.clear()
    assert backlog.held_bytes == 0


@pytest.mark.parametrize(
    "text", ["", "-", "1", "1-", "-1", "a-1", "1-b", "1-1-1", "²-1", "9" * 10 + "-1"]
)
def test_ids_that_are_none_of_ours(text: str) -> None:
    assert parse_event_id(text) is None


def test_an_id_of_ours() -> None:
    assert parse_event_id("12-345") == (12, 345)


def test_a_stream_that_is_never_quiet_costs_no_more_than_what_is_kept() -> None:
    backlog = Backlog()
    stream = EventStream(backlog, 0, None)
    for number in range(20 * MAX_KEPT_OF_STREAM):
        stream.notify(b"n%d" % number)
    assert len(stream.kept) == MAX_KEPT_OF_STREAM
    assert len(backlog._order) <= 4 * MAX_KEPT_OF_STREAM


def test_the_bound_of_all_streams_holds_and_the_oldest_go_first() -> None:
    backlog = Backlog(most_bytes=1000)
    busy, quiet = EventStream(backlog, 1, None), EventStream(backlog, 2, None)
    quiet.notify(b"q" * 100)
    for number in range(5 * MAX_KEPT_OF_STREAM):
        busy.notify(b"%0100d" % number)
    assert not quiet.kept
    assert backlog.held_bytes == 1000
    quiet.notify(b"q" * 100)
    assert quiet.kept
    for stream in (busy, quiet):
        stream.clear()
    assert backlog.held_bytes == 0


def test_a_stream_that_ends_before_it_began_is_an_answer_without_events() -> None:
    stream = EventStream(Backlog(), 1, None)
    wire = attached(stream)
    assert stream.exchange is not None
    stream.exchange.end()
    assert wire.data.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("gone", [True, False])
def test_a_call_that_is_cancelled_leaves_no_stream_and_no_open_answer(
    *, begun: bool, gone: bool
) -> None:
    backlog = Backlog()
    session = HttpSession(0.0, Request(), backlog)
    other = session.open_stream(Exchange(Wire(), 0.0), b'"1"')
    exchange = Exchange(Wire(), 0.0)
    stream = session.open_stream(exchange, b"1")
    if begun:
        stream.notify(b"n")
    if gone:
        exchange.disconnected()
    session.wants_no_answer(b"1")
    assert exchange.over
    assert (list(session.streams.values()), backlog.held_bytes) == ([session.stream, other], 0)
    assert other.is_attached
    session.wants_no_answer(b"1")
    last = session.open_stream(Exchange(Wire(), 0.0), b"2")
    last.answer(b"n")
    assert last.number not in session.streams
    session.notify(b"n")
    assert session.stream in session.streams.values()
