"""What is said of a channel: as full as its fullest part, and sufficient only below half."""

from math import log2
from types import SimpleNamespace
from typing import Any

import pytest

from vsm.board.heartbeat import ChannelRow
from vsm.commands.board import _channel
from vsm.commands.variety import _print_channels
from vsm.core import channels
from vsm.introspection import measures
from vsm.link import Link, channel_pair
from vsm.messages import Summary
from vsm.supervision.system_group import _queued

CHANNEL = channels.CHANNELS[0]


def row_of(
    *,
    waiting: int = 0,
    queued: int = 0,
    dropped: int = 0,
    known: bool = True,
    rate_bytes: float = 0.0,
) -> dict[str, Any]:
    seen = ChannelRow(9, 1, 40, dropped, queued, 64, 2.5, rate_bytes)
    board = SimpleNamespace(channel=lambda _index: seen if known else None)
    systems = SimpleNamespace(
        running={CHANNEL.sender: SimpleNamespace(board=board)},
        capacity_bytes=lambda _channel: 1000,
        queued_bytes=lambda _channel: waiting,
    )
    supervisor: Any = SimpleNamespace(systems=systems)
    return measures._channel(supervisor, CHANNEL)


@pytest.mark.parametrize(
    ("waiting", "queued", "dropped", "fill", "sufficient"),
    [
        (0, 0, 0, 0.0, True),
        (499, 0, 0, 0.499, True),
        (500, 0, 0, 0.5, False),  # in the socket
        (0, 32, 0, 0.5, False),  # in the sender's queue
        (100, 48, 0, 0.75, False),
        (0, 0, 1, 0.0, False),  # empty now, but something was lost
    ],
)
def test_channel_is_as_full_as_its_fullest_part(
    waiting: int, queued: int, dropped: int, fill: float, *, sufficient: bool
) -> None:
    row = row_of(waiting=waiting, queued=queued, dropped=dropped)
    assert (row["fill"], row["sufficient"]) == (fill, sufficient)
    assert (row["messages"], row["messages_s"], row["capacity_bytes"]) == (40, 2.5, 1000)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_message_carries_at_most_the_bits_of_one_among_all_of_its_length(size: int) -> None:
    assert channels.most_bits(size) == log2(256**size)  # Hartley: log2 of how many there are


def test_channel_is_given_in_bits_beside_bytes_and_how_long_it_takes_to_fill() -> None:
    row = row_of(rate_bytes=62.5)
    assert (row["bits_s"], row["capacity_bits"], row["fills_in_s"]) == (500.0, 8000, 16.0)
    quiet = row_of()
    assert (quiet["bits_s"], quiet["capacity_bits"], quiet["fills_in_s"]) == (0.0, 8000, None)
    unknown = row_of(known=False, rate_bytes=62.5)
    assert (unknown["bits_s"], unknown["fills_in_s"]) == (None, None)


def test_short_channel_is_printed_with_its_bits(capsys: pytest.CaptureFixture[str]) -> None:
    _print_channels([row_of(dropped=1, rate_bytes=62.5), row_of(rate_bytes=62.5)])
    (line,) = capsys.readouterr().out.splitlines()
    assert "1 messages dropped, 0% full, 500 bits/s at most, room for 8000 bits" in line


def test_figures_of_a_busy_channel_have_no_powers_of_ten(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = row_of(dropped=1, rate_bytes=2.0**20)
    _print_channels([row])
    assert ", 8388608 bits/s at most" in capsys.readouterr().out
    assert _channel(row | {"messages": 12_345_678})[3] == "12345678"


def test_bytes_of_what_was_sent_are_counted() -> None:
    sender, receiver = channel_pair()
    link = Link(sender, parse=lambda _: None)
    message = Summary(interval_s=1.5)
    with receiver:
        for _ in range(3):
            assert link.send(message)
        assert link.statistics().sent_bytes == _queued(receiver) == 3 * len(message.to_wire())
        link.close()


def test_of_a_channel_that_nobody_wrote_down_no_more_is_said_than_is_known() -> None:
    row = row_of(waiting=700, known=False)
    assert (row["messages"], row["sufficient"], row["fill"]) == (None, None, 0.7)


def test_what_waits_in_a_socket_is_all_that_was_sent_and_not_read() -> None:
    sender, receiver = channel_pair()
    with sender, receiver:
        assert _queued(receiver) == 0
        for size in (10, 20, 30):
            sender.send(b"x" * size)
        assert _queued(receiver) == 60
        receiver.recv(100)
        assert _queued(receiver) == 50
