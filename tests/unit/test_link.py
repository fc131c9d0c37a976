"""Links and channels: bounds, ownership of descriptors, one direction, nothing invalid obeyed."""

import asyncio
import errno
import json
import os
import socket
from collections.abc import Iterator
from typing import get_args

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


def _pain(number: int) -> messages.Hurt:
    return messages.Hurt(severity="pain", subject=f"it {number}", cause="x", detail="it hurts")


def test_what_is_urgent_overtakes_a_full_queue_in_order_and_is_bounded_too(ends: Ends) -> None:
    big = messages.Start(epoch=1, token="x" * 100_000)
    while ends[0].send(big):
        pass
    sent = [ends[0].send(_pain(number)) for number in range(link.MAX_URGENT + 1)]
    assert sent == [True] * link.MAX_URGENT + [False]
    kinds: list[str] = []
    while (received := ends[1].receive(0)) is not None:
        message = received[0]
        kinds.append(message.subject if isinstance(message, messages.Hurt) else message.kind)
        ends[0].flush()
    first = kinds.index("it 0")
    assert kinds[first : first + link.MAX_URGENT] == [f"it {n}" for n in range(link.MAX_URGENT)]
    assert kinds[:first] == ["start"] * first, "what the kernel had taken already"
    assert kinds[first + link.MAX_URGENT :] == ["start"] * link.MAX_QUEUED
    while ends[0].send(big):  # there is room for both again
        pass
    assert ends[0].send(_pain(0))


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


def test_empty_message_is_invalid_and_no_end_of_file(ends: Ends) -> None:
    """Else a sender that was taken over would deafen its receiver to every successor of its own."""
    ends[0]._sock.send(b"")
    ends[0].send(messages.Stop())
    received = ends[1].receive(1)
    assert received is not None
    assert received[0].kind == "stop"
    assert (ends[1].closed, ends[1].statistics().invalid) == (False, 1)


def test_empty_message_among_others_keeps_the_loop_reading(ends: Ends) -> None:
    async def scenario() -> None:
        heard = asyncio.Event()
        ends[1].start(lambda _message, _fds: heard.set(), lambda: None)
        for _ in range(3):
            ends[0]._sock.send(b"")
        ends[0].send(messages.Stop())
        await asyncio.wait_for(heard.wait(), 20)

    asyncio.run(scenario())
    assert not ends[1].closed


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


KINDS = {
    model.model_fields["kind"].default: model for model in get_args(messages.FromSystem)
}  # fmt: skip
# Enough of each kind to be valid.
FIELDS: dict[str, dict[str, object]] = {
    "ready": {},
    "session": {"worker": "a-1", "record": {}},
    "unfit": {"worker": "a-1", "reason": "r"},
    "wanted": {"integration": "a", "count": 1},
    "idle": {"integration": "a"},
    "offered": {"integration": "a"},
    "learnt": {"integration": "a"},
    "snapshot": {"body": {}},
    "answer": {"id": 1, "body": {}},
    "segments": {},
    "ask": {"id": 1, "what": "status"},
    "withdrawn": {"id": 1},
    "spent": {"calls": {}},
    "damp": {"integration": "a", "factor": 2.0},
    "asking": {
        "id": 1, "rule": "r", "rule_digest": "d", "client": "c", "integration": "a", "asks": "a",
        "name": "n", "size_bytes": 1, "digest": "d", "timeout_s": 1.0,
    },
    "felt": {"sender": "system1", "severity": "pain", "subject": "s", "detail": "d"},
    "noted": {"event": "e"},  # and see the tables below
    "decided": {"key": "k", "subject": "s", "rule": "r", "choice": "c"},
    "settled": {"key": "k", "outcome": {}},
    "move": {"id": 1, "integration": "a", "limits": {}},
    "audit": {"id": 1, "integration": "a"},
    "contracted": {"id": 1, "checked": 1},
}  # fmt: skip


def test_what_a_system_may_say_to_the_supervisor_is_a_table_of_all_kinds() -> None:
    assert set(channels.REPORTS) == set(KINDS) == set(FIELDS)
    assert channels.REPORTS["snapshot"] == {"system2", "system3", "system5"}
    assert {kind for kind, who in channels.REPORTS.items() if "system4" in who} == {
        "ready", "answer", "noted", "decided", "settled"
    }  # fmt: skip
    limited = {kind: who for kind, who in channels.REPORTS.items() if len(who) == 1}
    assert limited["move"] == limited["audit"] == {"system3"}
    assert limited["damp"] == {"system2"}
    assert limited["felt"] == {"system5"}
    assert limited["contracted"] == limited["asking"] == limited["session"] == {"system1"}


@pytest.mark.parametrize("kind", FIELDS.keys() - {"noted", "decided"})
def test_what_a_system_may_not_say_is_invalid(kind: str) -> None:
    payload = KINDS[kind](**FIELDS[kind]).to_wire()
    for system in channels.SYSTEMS:
        assert _accepts(messages.reports_of(system), payload) == (system in channels.REPORTS[kind])


@pytest.mark.parametrize(
    ("who", "event"),
    [
        ({"system1"}, "breaker.open"),
        ({"system1"}, "call.failed"),
        ({"system1"}, "calls.routed"),
        ({"system2"}, "coordination.released"),
        ({"system3"}, "audit.passed"),
        ({"system4"}, "intelligence.step"),
        (set(), "algedonic.pain"),
        (set(), "approval.wanted"),
        (set(), "vsm.started"),
        (set(), "trust.approved"),
        (set(), "call.replayed"),
        (set(), "worker.exited"),
    ],
)
def test_system_notes_in_the_record_only_what_it_can_know(who: set[str], event: str) -> None:
    payload = messages.Noted(event=event).to_wire()
    accepted = {one for one in channels.SYSTEMS if _accepts(messages.reports_of(one), payload)}
    assert accepted == who


@pytest.mark.parametrize(
    ("who", "rule"),
    [
        ({"system1"}, "policy.rule"),
        ({"system1"}, "policy.default"),
        ({"system1"}, "breaker.failures"),
        ({"system2"}, "coordination.oscillation"),
        ({"system3"}, "budget.raise.need"),
        ({"system5"}, "closure.conflict"),
        (set(), "policy.ask"),
        (set(), "restart.intensity"),
    ],
)
def test_system_decides_only_by_rules_of_its_own(who: set[str], rule: str) -> None:
    payload = messages.Decided(key="k", subject="s", rule=rule, choice="c").to_wire()
    accepted = {one for one in channels.SYSTEMS if _accepts(messages.reports_of(one), payload)}
    assert accepted == who


def test_system_5_speaks_for_no_other_than_a_system_below_it() -> None:
    """In the record of pain its word stands under the name of who felt it."""
    for sender in ("supervisor", "system5", "journal", "system1"):
        fields = {"severity": "relief", "subject": "a", "detail": "d", "sender": sender}
        payload = json.dumps({"kind": "felt", **fields}).encode()
        assert _accepts(messages.reports_of("system5"), payload) == (sender == "system1")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999", "9" * 400, "1e30"])
def test_number_that_nobody_can_add_up_is_invalid(number: str) -> None:
    body = f'{{"a":[1,{{"b":[{number}]}}]}}'
    for payload in (
        f'{{"kind":"noted","event":"intelligence.step","detail":{body}}}',
        f'{{"kind":"answer","id":1,"body":{body}}}',
    ):
        assert not _accepts(messages.reports_of("system4"), payload.encode())
    summary = f'{{"kind":"summary","interval_s":1,"integrations":{{"a":{{"ok":{number}}}}}}}'
    assert not _accepts(messages.CHANNEL_PARSERS["summary"], summary.encode())
    for parse, fields in (("outlook", f'"body":{body}'), ("budgets", f'"body":{body}')):
        wire = f'{{"kind":"{parse}",{fields}}}'.encode()
        assert not _accepts(messages.CHANNEL_PARSERS[parse], wire)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_limit_that_is_no_number_is_invalid(number: str) -> None:
    wire = f'{{"kind":"move","id":1,"integration":"a","limits":{{"cpu":{number}}}}}'
    assert not _accepts(messages.reports_of("system3"), wire.encode())


def test_record_of_a_session_that_no_successor_could_be_told_of_is_invalid() -> None:
    for size, fits in ((60_000, True), (100_000, False)):
        session = messages.Session(worker="a-1", record={"x": "y" * size})
        assert _accepts(messages.reports_of("system1"), session.to_wire()) == fits
        if fits:
            attach = messages.Attach(worker="a-1", integration="a", record=session.record)
            assert len(attach.to_wire()) < link.MAX_MESSAGE_BYTES


def test_summary_counts_no_less_than_nothing() -> None:
    wire = b'{"kind":"summary","interval_s":1,"integrations":{"a":{"ok":-1}}}'
    assert not _accepts(messages.CHANNEL_PARSERS["summary"], wire)


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


@pytest.mark.parametrize(
    ("number", "told"), [(errno.ETOOMANYREFS, False), (errno.ENOBUFS, False), (errno.EPIPE, True)]
)
def test_what_the_kernel_has_no_room_for_is_told_and_the_end_of_a_peer_is_not(
    monkeypatch: pytest.MonkeyPatch, ends: Ends, number: int, told: bool
) -> None:
    class Full(socket.socket):
        def sendmsg(self, *_: object) -> int:
            raise OSError(number, os.strerror(number))

    with Full(fileno=os.dup(ends[0].fileno())) as full:
        monkeypatch.setattr(ends[0], "_sock", full)
        assert ends[0].send(messages.Stop()) is told
        monkeypatch.undo()
    assert ends[0].statistics().dropped == 1
    assert ends[0].send(messages.Stop())
    assert ends[1].receive(1) is not None


def test_descriptors_that_cannot_be_kept_while_they_wait_are_told(
    monkeypatch: pytest.MonkeyPatch, ends: Ends
) -> None:
    while not ends[0].statistics().queued:
        ends[0].send(messages.Start(epoch=1, token="x" * 100_000))

    def none_left(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", none_left)
    attach = messages.Attach(worker="a-1", integration="a", fds=("stdin", "stdout"))
    assert not ends[0].send(attach, [0, 0])
    monkeypatch.undo()
    assert ends[0].statistics().dropped == 1
