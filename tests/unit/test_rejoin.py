"""What `vsm connect` remembers of a session, so that it can go on at a new gateway."""

import json
import select
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.connect import MOST_LINE_BYTES, Bridge, Lines, _gave_up
from vsm.core.rejoin import Rejoin, RejoinError
from vsm.gateway.unix import MAX_FRAME_BYTES


def frame(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}, separators=(",", ":")).encode()


def asked(request_id: Any, method: str, **params: Any) -> bytes:
    return frame(id=request_id, method=method, params=params)


def greeting(request_id: Any, version: str = "v") -> bytes:
    result = {"protocolVersion": version, "capabilities": {"tools": {}, "resources": {}}}
    return frame(id=request_id, result=result)


def read(lines: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


@pytest.fixture
def session() -> Rejoin:
    return begun()


def begun() -> Rejoin:
    """A session that stands."""
    rejoin = Rejoin()
    rejoin.sent(asked(0, "initialize", protocolVersion="v"))
    rejoin.received(greeting(0))
    rejoin.sent(frame(method="notifications/initialized"))
    return rejoin


def test_lines_of_the_first_gateway_pass_as_they_are(session: Rejoin) -> None:
    for line in (b"no json", b"[1]", b"", asked("x", "tools/call"), b"\xff"):
        assert session.sent(line) == line
    for line in (frame(id="x", result={}), frame(id="vsm-1", method="roots/list"), b"?"):
        assert session.received(line).to_client == (line,)


def test_what_was_in_flight_and_nothing_else_gets_an_error(session: Rejoin) -> None:
    for number in ("1", 1, 2, 3):
        session.sent(asked(number, "tools/call"))
    session.received(frame(id=2, result={"id": 1}))
    session.sent(frame(method="notifications/cancelled", params={"requestId": 3}))
    told = read(session.lost())
    assert [one["id"] for one in told] == ["1", 1]
    assert all("may have run" in one["error"]["message"] for one in told)
    assert not session.joined
    session.rejoin()
    assert read(session.lost()) == []


def test_handshake_level_and_subscriptions_come_first_and_their_answers_reach_nobody(
    session: Rejoin,
) -> None:
    session.sent(asked(1, "logging/setLevel", level="error"))
    session.received(frame(id=1, result={}))
    for number, uri in enumerate(("a", "b", "c"), 2):
        session.sent(asked(number, "resources/subscribe", uri=uri))
        session.received(frame(id=number, **({"error": {}} if uri == "c" else {"result": {}})))
    session.sent(asked(9, "resources/unsubscribe", uri="a"))
    session.received(frame(id=9, result={}))
    session.lost()
    (hello,) = read(session.rejoin())
    assert (hello["method"], hello["params"]) == ("initialize", {"protocolVersion": "v"})
    passed = session.received(greeting(hello["id"]))
    assert session.joined
    sent = read(passed.to_gateway)
    assert [one["method"] for one in sent] == [
        "notifications/initialized",
        "logging/setLevel",
        "resources/subscribe",
    ]
    assert sent[1]["params"] == {"level": "error"}
    assert sent[2]["params"] == {"uri": "b"}
    assert [one["method"] for one in read(passed.to_client)] == [
        "notifications/tools/list_changed",
        "notifications/resources/list_changed",
    ]
    for one in sent[1:]:
        assert session.received(frame(id=one["id"], result={})).to_client == ()


def test_a_gateway_of_another_version_is_no_continuation(session: Rejoin) -> None:
    session.lost()
    (hello,) = read(session.rejoin())
    with pytest.raises(RejoinError, match="spoke v, the new vsm offers w"):
        session.received(greeting(hello["id"], "w"))


def test_a_handshake_that_was_not_answered_is_sent_again_as_the_clients_own() -> None:
    rejoin = Rejoin()
    rejoin.sent(asked(0, "initialize", protocolVersion="v"))
    assert rejoin.lost() == []
    assert read(rejoin.rejoin())[0]["id"] == 0
    assert rejoin.received(greeting(0)).to_client == (greeting(0),)


def test_a_client_without_a_session_just_goes_on() -> None:
    rejoin = Rejoin()
    rejoin.sent(asked(1, "tools/call"))
    assert len(rejoin.lost()) == 1
    assert rejoin.rejoin() == []
    assert rejoin.joined


def test_an_answer_to_a_dead_gateways_question_is_not_taken_for_its_successors(
    session: Rejoin,
) -> None:
    session.received(frame(id="vsm-1", method="roots/list"))
    (withdrawn,) = read(session.lost())
    assert withdrawn["params"]["requestId"] == "vsm-1"
    (hello,) = read(session.rejoin())
    session.received(greeting(hello["id"]))
    (question,) = read(session.received(frame(id="vsm-1", method="roots/list")).to_client)
    assert question["id"] != "vsm-1"
    assert session.sent(frame(id="vsm-1", result={"roots": ["old"]})) is None
    answer = session.sent(frame(id=question["id"], result={"roots": ["new"]}))
    assert answer is not None
    assert json.loads(answer) == {"jsonrpc": "2.0", "id": "vsm-1", "result": {"roots": ["new"]}}
    cancelled = frame(method="notifications/cancelled", params={"requestId": "vsm-1"})
    (told,) = read(session.received(cancelled).to_client)
    assert told["params"]["requestId"] == question["id"]


ids = st.one_of(st.integers(-5, 5), st.text(max_size=3))


@given(st.lists(st.tuples(st.sampled_from(["ask", "answer", "lose"]), ids), max_size=40))
def test_every_request_is_answered_once_whatever_gateways_do(
    history: list[tuple[str, int | str]],
) -> None:
    rejoin, open_ids = Rejoin(), set[tuple[type, int | str]]()
    for action, key in history:
        one = (type(key), key)
        if action == "ask" and one not in open_ids:
            open_ids.add(one)
            assert rejoin.sent(asked(key, "tools/call")) is not None
        elif action == "answer" and one in open_ids:
            open_ids.discard(one)
            assert len(rejoin.received(frame(id=key, result={})).to_client) == 1
        elif action == "lose":
            told = [(type(f["id"]), f["id"]) for f in read(rejoin.lost())]
            assert len(told) == len(set(told))
            assert set(told) == open_ids
            open_ids.clear()
            rejoin.rejoin()


def block(*lines: bytes) -> bytes:
    return b"\n".join((*lines, b""))


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"a"}}',
        b'{"method":"tools/call","params":{"name":"a"},"jsonrpc":"2.0","id":5}',
        b'{"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": {"name": "a"}}',
        b'{"jsonrpc":"2.0","id":5,"method":"logging/setLevel","params":{"level":"error"}}',
    ],
)
def test_a_request_in_a_block_is_known_to_wait_until_it_is_answered(
    session: Rejoin, line: bytes
) -> None:
    answer = b'{"jsonrpc":"2.0","id":5,"result":{}}'
    passed = block(line, line.replace(b"5", b"6"))
    assert session.sent_block(passed) == passed
    assert set(session.in_flight) == {5, 6}
    assert session.received_block(block(answer)) == (block(answer), b"")
    assert set(session.in_flight) == {6}
    assert [told["id"] for told in read(session.lost())] == [6]


def test_an_id_within_the_parameters_is_not_taken_for_the_requests_own(session: Rejoin) -> None:
    inner = (
        b'{"method":"tools/call","params":{"x":1,"jsonrpc":"2.0","id":5},"id":6,"jsonrpc":"2.0"}'
    )
    text = (
        b'{"method":"tools/call","id":7,"jsonrpc":"2.0","params":'
        b'{"x":",\\"jsonrpc\\":\\"2.0\\",\\"id\\":8}"}}'
    )
    note = b'{"method":"tools/call","params":{"a":{},"jsonrpc":"2.0","id":9}}'
    session.sent_block(block(inner, text, note))
    assert set(session.in_flight) == {6, 7}


def test_blocks_pass_as_their_lines_would_one_by_one() -> None:
    lines = [
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}',
        b"no JSON",
        b"",
        b'{"jsonrpc":"2.0","id":"x","result":{}}',
        b'{"jsonrpc":"2.0","id":2,"method":"resources/subscribe","params":{"uri":"a"}}',
    ]
    for generation in (0, 1):
        whole, single = begun(), begun()
        for session in (whole, single):
            for _ in range(generation):
                session.lost()
                session.rejoin()
                session.received(greeting(f"vsm-connect-{session.generation}"))
        passed = [one for line in lines if (one := single.sent(line)) is not None]
        assert whole.sent_block(block(*lines)) == block(*passed)
        assert whole.in_flight.keys() == single.in_flight.keys()
        told = [
            b'{"jsonrpc":"2.0","id":1,"result":{}}',
            b'{"jsonrpc":"2.0","id":"q","method":"ping"}',
            b'{"jsonrpc":"2.0","method":"notifications/x"}',
        ]
        to_client = [one for line in told for one in single.received(line).to_client]
        assert whole.received_block(block(*told)) == (block(*to_client), b"")
        assert whole.in_flight.keys() == single.in_flight.keys()


def test_a_gateway_that_goes_again_as_it_takes_the_session_up_ends_no_client() -> None:
    ours, gateway = socket.socketpair()
    with ours, gateway:
        bridge = Bridge(ours, 1.0)
        session = bridge._session = begun()
        session.lost()
        session.rejoin()
        gateway.close()
        told = bridge._take(greeting(f"vsm-connect-{session.generation}") + b"\n")
        assert b"list_changed" in told
        assert not bridge._receive()


def test_line_that_never_ends_is_held_in_bounds_and_refused_by_the_gateway() -> None:
    assert MOST_LINE_BYTES == MAX_FRAME_BYTES
    lines = Lines(100)
    for _ in range(1000):
        assert not lines.feed(b"x" * 64)
    assert sum(map(len, lines._parts)) == 128
    assert lines.feed(b"end\nnext") == b"x" * 128 + b"end\n"
    assert lines.feed(b" one\n") == b"next one\n"


def test_client_whose_connection_is_reset_reads_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as stdout,
    ):
        client, _ = server.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert select.select([stdout], [], [], 20)[0]
        monkeypatch.setattr("sys.stdout", stdout)
        assert _gave_up(b"x")
