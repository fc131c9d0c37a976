"""Links and channels: bounds, ownership of descriptors, one direction, nothing invalid obeyed."""

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm import link, messages
from vsm.core import channels
from vsm.link import Link

Ends = tuple[Link[messages.FromSystem], Link[messages.ToSystem]]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """The supervisor's end and a system's."""
    left, right = link.socketpair()
    both = Link(left, messages.parse_from_system), Link(right, messages.parse_to_system)
    yield both
    for end in both:
        end.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_message_arrives_with_its_descriptors(ends: Ends) -> None:
    read_end, write_end = os.pipe()
    ends[0].send(
        messages.Attach(worker="a-1", integration="a", fds=("stdin", "stdout")),
        [write_end, read_end],
    )
    received = ends[1].receive(1)
    assert received is not None
    message, fds = received
    assert message.kind == "attach"
    assert not any(os.get_inheritable(fd) for fd in fds)
    os.write(fds[0], b"x")
    assert os.read(fds[1], 1) == b"x"
    link.close_fds([*fds, read_end, write_end])


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b"\xff",
        b'{"kind":"stop","extra":1}',
        b'{"kind":"query","id":"1","what":"x"}',
        b'{"kind":"query","id":true,"what":"x"}',
        b'{"kind":"ready"}',
        b'{"kind":"stop","fds":["a"]}',
        b"[" * 100_000,
    ],
)
def test_invalid_message_is_counted_and_dropped(ends: Ends, payload: bytes) -> None:
    with socket.socket(fileno=os.dup(ends[0].fileno())) as raw:
        raw.send(payload)
    assert ends[1].receive(0) is None
    assert ends[1].statistics().invalid == 1
    assert not ends[1].closed


def test_descriptors_of_a_message_that_names_none_are_closed(ends: Ends) -> None:
    read_end, write_end = os.pipe()
    with socket.socket(fileno=os.dup(ends[0].fileno())) as raw:
        socket.send_fds(raw, [b'{"kind":"stop"}'], [read_end, write_end])
    before = open_fds()
    assert ends[1].receive(0) is None
    assert ends[1].statistics().invalid == 1
    assert open_fds() == before
    link.close_fds([read_end, write_end])


def test_surplus_of_descriptors_is_refused_and_none_is_kept(ends: Ends) -> None:
    before = open_fds()
    with socket.socket(fileno=os.dup(ends[0].fileno())) as raw:
        socket.send_fds(raw, [b'{"kind":"stop"}'], [0] * (link.MAX_FDS + 4))
    assert ends[1].receive(0) is None
    assert ends[1].statistics().invalid == 1
    assert open_fds() == before


def test_full_queue_drops_and_counts_and_never_blocks(ends: Ends) -> None:
    big = messages.Start(epoch=1, token="x" * 100_000)
    sent = [ends[0].send(big) for _ in range(200)]
    assert sent.count(False) == ends[0].statistics().dropped > 0
    assert ends[0].statistics().queued == link.MAX_QUEUED
    received = 0
    while ends[1].receive(0) is not None:
        received += 1
        ends[0].flush()
    assert received == sent.count(True)


def test_message_over_the_bound_is_dropped(ends: Ends) -> None:
    assert not ends[0].send(messages.Start(epoch=1, token="x" * link.MAX_MESSAGE_BYTES))


def test_queued_message_keeps_its_descriptors_alive(ends: Ends) -> None:
    big = messages.Start(epoch=1, token="x" * 100_000)
    while ends[0].statistics().queued == 0:
        ends[0].send(big)
    read_end, write_end = os.pipe()
    names = ("stdin", "stdout")
    ends[0].send(messages.Attach(worker="a-1", integration="a", fds=names), [write_end, read_end])
    link.close_fds([read_end, write_end])
    while (received := ends[1].receive(0)) is not None and not received[1]:
        ends[0].flush()
    assert received is not None
    os.write(received[1][0], b"x")
    link.close_fds(received[1])


def test_last_words_of_a_peer_that_left_ours_unread_are_heard(ends: Ends) -> None:
    ends[0].send(messages.Stop())
    ends[1].send(messages.Ready())
    ends[1].close()
    received = ends[0].receive(1)
    assert received is not None
    assert received[0].kind == "ready"
    assert ends[0].receive(1) is None
    assert ends[0].closed


def test_end_of_file_closes_and_is_reported_once(ends: Ends) -> None:
    async def scenario() -> list[str]:
        seen: list[str] = []
        done = asyncio.Event()

        def closed() -> None:
            seen.append("closed")
            done.set()

        ends[1].start(lambda message, _: seen.append(message.kind), closed)
        ends[0].send(messages.Stop())
        ends[0].close()
        await asyncio.wait_for(done.wait(), 5)
        return seen

    assert asyncio.run(scenario()) == ["stop", "closed"]


def test_receiver_of_a_channel_cannot_write_and_sender_cannot_read() -> None:
    sender, receiver = link.channel_pair()
    with sender, receiver:
        sender.send(b"x")
        assert receiver.recv(10) == b"x"
        with pytest.raises(BrokenPipeError):
            receiver.send(b"illegal")
        assert sender.recv(10) == b""


def test_the_table_lets_nobody_command_operations_over_a_channel() -> None:
    assert channels.receives("system1") == ()
    assert {c.receiver for c in channels.sends("system4")} == {"system3", "system5"}
    assert {c.sender for c in channels.CHANNELS if c.carries == "algedonic"} == {
        "system1",
        "system2",
        "system3",
        "system4",
    }
    assert {c.carries for c in channels.CHANNELS} == set(messages.CHANNEL_PARSERS)


@pytest.mark.parametrize("channel", channels.CHANNELS)
def test_a_channel_refuses_every_kind_but_its_own(channel: channels.Channel) -> None:
    parse = messages.CHANNEL_PARSERS[channel.carries]
    with pytest.raises(ValueError, match="validation error"):
        parse(messages.Stop().to_wire())
    assert [
        kind
        for kind in messages.CHANNEL_PARSERS
        if _accepts(parse, b'{"kind":"%s","body":{}}' % kind.encode())
    ] in ([channel.carries], [])


def _accepts(parse: object, payload: bytes) -> bool:
    try:
        parse(payload)  # type: ignore[operator]
    except ValueError:
        return False
    return True


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_parsers_raise_nothing_but_value_error(payload: bytes) -> None:
    for parse in (
        messages.parse_to_system,
        messages.parse_from_system,
        messages.parse_to_template,
        messages.parse_from_template,
        *messages.CHANNEL_PARSERS.values(),
    ):
        try:
            parse(payload)
        except ValueError:
            continue
