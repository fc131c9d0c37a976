"""What a record may hold of a call: nothing before the secrets are known, and none of them."""

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest
from msgspec import Raw

from vsm.core.demand import OK
from vsm.gateway import call_log
from vsm.gateway.call_log import CAPACITY_BYTES, CallLog, contents_of
from vsm.journal.contents import Contents, hidden_line
from vsm.journal.records import MAX_COLUMN_BYTES, Event, decode

SECRET = "a-secret-of-the-configuration"


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("hidden")
    yield fd
    os.close(fd)


def event(contents: dict[str, Any], **more: str) -> Event:
    detail = {"what": "echo", "client": "me", "contents": contents, **more}
    return Event(1, 1, "unix:0", "call.ok", None, "a", 1, json.dumps(detail))


def fitted(contents: Contents, record: Event) -> dict[str, Any]:
    kept = contents.fit(record)
    assert isinstance(kept, Event)
    found: dict[str, Any] = json.loads(kept.detail)
    return found


def test_without_the_secrets_contents_are_left_out(memory: int) -> None:
    contents = Contents(memory)
    record = event({"arguments": json.dumps({"key": SECRET})})
    assert "left_out" in fitted(contents, record)["contents"]
    assert SECRET not in json.dumps(fitted(contents, record))
    os.write(memory, hidden_line("", ""))
    assert json.loads(fitted(contents, record)["contents"]["arguments"]) == {"key": SECRET}
    os.write(memory, hidden_line("KEY", SECRET))
    kept = fitted(contents, event({"arguments": json.dumps(SECRET)}, what=SECRET, client=SECRET))
    assert kept == {"what": "[KEY]", "client": "[KEY]", "contents": {"arguments": '"[KEY]"'}}


def test_a_descriptor_that_cannot_be_read_leaves_contents_out(memory: int) -> None:
    closed = os.dup(memory)
    os.close(closed)
    record = event({"arguments": json.dumps(SECRET)})
    assert "left_out" in fitted(Contents(closed), record)["contents"]
    os.write(memory, b"no line of ours\n")
    assert "left_out" in fitted(Contents(memory), record)["contents"]


@pytest.mark.parametrize(
    "detail",
    [
        '{"contents":["arguments"],"what":"echo","client":"me"}',
        '{"contents":"result","what":"echo","client":"me"}',
        '{"contents":{},"what":5,"client":"me"}',
        '{"contents":{},"what":"echo"}',
        '{"contents":{"result":[]},"what":"echo","client":"me"}',
        '{"contents":{},"what":"\\ud800","client":"me"}',
        '{"contents":' + "[" * 20_000,
    ],
)
def test_whatever_an_s1_sends_that_was_taken_over_is_left_out_and_ends_no_journal(
    memory: int, detail: str
) -> None:
    os.write(memory, hidden_line("KEY", SECRET))
    kept = Contents(memory).fit(Event(1, 1, "x", "call.ok", None, "a", 1, detail))
    assert isinstance(kept, Event)
    assert "left_out" in json.loads(kept.detail)["contents"]
    kept.detail.encode()  # as the file takes it


def test_what_has_no_contents_goes_through_as_it_is(memory: int) -> None:
    plain = Event(1, 1, "x", "call.ok", None, None, 1, json.dumps({"what": '"contents":'}))
    assert Contents(memory).fit(plain) is plain


def test_what_grows_beyond_a_column_is_left_out(memory: int) -> None:
    os.write(memory, hidden_line("N" * 4000, "secret"))
    record = event({"result": json.dumps("secret" * 1000)})
    assert "left_out" in fitted(Contents(memory), record)["contents"]


class Asker:
    """Who called."""

    identity = "unix:0"
    calls_itself = "me"


class Ended:
    """A call that has ended, with what takes most room when it is written as JSON thrice."""

    client = Asker()
    integration = "a"
    method = "tools/call"
    label = "echo"
    began_ns = 0
    timeout_s = 60.0
    params = {"name": Raw(b'"echo"'), "arguments": Raw(b'"' + b'\\"' * 5000 + b'"')}  # noqa: RUF012


def ended(integration: str = "a") -> Any:
    call = Ended()
    call.integration = integration
    return cast("Any", call)


ANSWER = b'{"jsonrpc":"2.0","id":"\\"result\\":","result":"' + b"\\\\" * 5000 + b'"}'


def test_what_a_call_carried_is_its_arguments_and_its_result() -> None:
    asked, said = contents_of(ended(), ANSWER)
    assert asked == Ended.params["arguments"]
    assert said == b'"' + b"\\\\" * 5000 + b'"'
    read = ended()
    read.params = {"uri": Raw(b'"x://1"'), "_meta": Raw(b"{}")}
    assert contents_of(read, Raw(b'{"code":1}')) == (b'{"uri":"x://1"}', Raw(b'{"code":1}'))
    assert contents_of(read, b"")[1] == b""


def test_contents_fit_into_a_record_and_never_take_the_room_of_records(
    monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(call_log, "FLUSH_S", 3600.0)
    os.write(memory, hidden_line("", ""))
    contents = Contents(memory)

    async def scenario() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log = CallLog(ours, sender="test", mode="all", rate=1)
        log.kept_bytes = {"a": 8192}
        try:
            for _ in range(CAPACITY_BYTES // 20_000):
                log.note(ended(), OK, len(ANSWER), ANSWER)
                log.note(ended("b"), OK, len(ANSWER), ANSWER)
            log._flush()
            assert log._queue.dropped == 0
            details = [json.loads(decode(json.loads(t)).detail) for t in log._queue._encoded]  # type: ignore[union-attr]
            own, others = details[::2], details[1::2]
            assert all("contents" not in one for one in others)
            assert own[0]["contents"]["truncated"] == ["arguments", "result"]
            assert len(own[0]["contents"]["arguments"]) == 8192
            assert "left_out" in own[-1]["contents"]
            for text in log._queue._encoded:
                fit = contents.fit(decode(json.loads(text)))
                assert isinstance(fit, Event)
                assert len(fit.detail) <= MAX_COLUMN_BYTES
                assert len(text) < 96 * 1024
            assert not log.admit(ended(), lambda _call: None)
        finally:
            log.close()
            theirs.close()

    asyncio.run(scenario())
