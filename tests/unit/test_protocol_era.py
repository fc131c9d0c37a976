import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from vsm.protocol.era import Ask, Established, Handshake, Nothing, Refused
from vsm.protocol.jsonrpc import Message

DISCOVERED = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
INITIALIZED = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "s"}}


def result(value: Any) -> Message:
    return Message(jsonrpc="2.0", id=1, result=Raw(json.dumps(value).encode()))


def error(code: int, **data: Any) -> Message:
    body = {"code": code, "message": "no", "data": data}
    return Message(jsonrpc="2.0", id=1, error=Raw(json.dumps(body).encode()))


def begun() -> Handshake:
    handshake = Handshake({"name": "vsm", "version": "1"})
    assert handshake.begin().method == "server/discover"
    return handshake


def test_a_discovery_means_modern() -> None:
    step = begun().answered("server/discover", result(DISCOVERED))
    assert isinstance(step, Established)
    assert step.session.is_modern
    assert step.announce is None


def test_an_error_or_silence_means_legacy() -> None:
    for handshake, step in (
        (h := begun(), h.answered("server/discover", error(-32601))),
        (h := begun(), h.answered("server/discover", error(-32602))),
        (h := begun(), h.probe_timed_out()),
        (h := begun(), h.answered("server/discover", result({"tools": []}))),
    ):
        assert isinstance(step, Ask)
        assert step.method == "initialize"
        done = handshake.answered("initialize", result(INITIALIZED))
        assert isinstance(done, Established)
        assert done.session.version == "2025-06-18"
        assert done.announce == "notifications/initialized"


def test_a_late_discovery_means_modern_once_initialize_is_refused() -> None:
    handshake = begun()
    handshake.probe_timed_out()
    assert isinstance(handshake.answered("server/discover", error(-32601)), Nothing)
    assert isinstance(handshake.answered("server/discover", result(DISCOVERED)), Nothing)
    late = handshake.answered("initialize", error(-32601))
    assert isinstance(late, Established)
    assert late.session.is_modern


def test_a_late_discovery_means_modern_where_initialize_is_not_answered() -> None:
    handshake = begun()
    handshake.probe_timed_out()
    assert isinstance(handshake.answered("server/discover", result(DISCOVERED)), Nothing)
    late = handshake.probe_timed_out()
    assert isinstance(late, Established)
    assert late.session.is_modern


def test_a_slow_server_of_both_eras_that_takes_initialize_is_spoken_to_in_that_era() -> None:
    handshake = begun()
    handshake.probe_timed_out()
    assert isinstance(handshake.answered("server/discover", result(DISCOVERED)), Nothing)
    taken = handshake.answered("initialize", result(INITIALIZED))
    assert isinstance(taken, Established)
    assert not taken.session.is_modern


def test_a_slow_modern_server_that_refuses_initialize_is_asked_again_once() -> None:
    handshake = begun()
    handshake.probe_timed_out()
    refusal = error(-32022, supported=["2026-07-28"], requested="2025-11-25")
    again = handshake.answered("initialize", refusal)
    assert isinstance(again, Ask)
    assert again.method == "server/discover"
    late = handshake.answered("server/discover", result(DISCOVERED))
    assert isinstance(late, Established)
    assert isinstance(handshake.answered("initialize", refusal), Refused)


def test_versions_that_nobody_knows_are_refused() -> None:
    unknown = error(-32022, supported=["2031-01-01"], requested="2026-07-28")
    assert isinstance(begun().answered("server/discover", unknown), Refused)
    handshake = begun()
    handshake.probe_timed_out()
    strange = {**INITIALIZED, "protocolVersion": "1999-01-01"}
    assert isinstance(handshake.answered("initialize", result(strange)), Refused)


@given(st.sampled_from(["server/discover", "initialize"]), st.binary(max_size=40))
def test_no_answer_breaks_the_handshake(method: str, body: bytes) -> None:
    for message in (Message("2.0", result=Raw(body)), Message("2.0", error=Raw(body))):
        begun().answered(method, message)


def test_an_entry_may_say_which_era_it_is() -> None:
    legacy = Handshake({"name": "vsm"}, wanted="legacy")
    assert legacy.begin().method == "initialize"
    assert isinstance(legacy.answered("initialize", result(INITIALIZED)), Established)
    modern = Handshake({"name": "vsm"}, wanted="modern")
    assert modern.begin().method == "server/discover"
    assert isinstance(modern.probe_timed_out(), Nothing)
    assert isinstance(modern.answered("server/discover", error(-32601)), Refused)
    assert isinstance(modern.answered("server/discover", result(DISCOVERED)), Established)
