"""The record of calls while its journal does not answer: what it cannot keep, it holds back."""

import asyncio
import socket
from typing import Any, cast

import pytest

from vsm.core.demand import UNSERVED
from vsm.gateway import call_log
from vsm.gateway.call_log import CAPACITY_RECORDS, CallLog
from vsm.gateway.client import MAX_NAME_CHARS
from vsm.gateway.finder import RequestError
from vsm.journal.records import Committed, Ready, answer_message


class Asker:
    """A client whose every name costs as much as a name can."""

    identity = "http"
    calls_itself = "\x01" * MAX_NAME_CHARS


class Wanted:
    """A call that may have to wait."""

    timeout_s = 60.0


@pytest.mark.parametrize("label", ["echo", "\x01" * 256])
def test_a_call_waits_before_its_record_would_find_no_room(
    label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_log, "FLUSH_S", 3600.0)

    async def scenario() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log = CallLog(ours, sender="test", mode="all", rate=1)
        try:
            written = 0
            while log.admit(cast("Any", Wanted()), lambda _call: None):
                for _ in range(100):
                    log.refused(cast("Any", Asker()), "tools/call", label, UNSERVED)
                written += 100
                log._flush()
                assert written < CAPACITY_RECORDS
            assert log._queue.dropped == 0
        finally:
            log.close()
            theirs.close()

    asyncio.run(scenario())


class Held(Wanted):
    """A call of a client that waits for it, until it cancels it."""

    integration = "it"

    def __init__(self) -> None:
        self.client, self.id_bytes = self, b"1"
        self.in_flight: dict[bytes, Any] = {b"1": self}


def test_calls_that_wait_for_room_are_bounded_and_cancelled_ones_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CallLog, "_has_room", lambda _: False)
    monkeypatch.setattr(call_log, "MAX_HELD", 3)

    async def scenario() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log = CallLog(ours, sender="test", mode="all", rate=1)

        def admit(call: Held) -> bool:
            return log.admit(cast("Any", call), lambda _call: None)

        try:
            calls = [Held() for _ in range(3)]
            assert not any(map(admit, calls))
            with pytest.raises(RequestError, match="no call goes unrecorded"):
                admit(Held())
            calls[1].in_flight.clear()
            assert not admit(Held())
            with pytest.raises(RequestError):
                admit(Held())
        finally:
            log.close()
            theirs.close()

    asyncio.run(scenario())


def test_the_record_wakes_nobody_while_no_call_is_on_its_way_to_the_journal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(call_log, "FLUSH_S", 0.001)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        log = CallLog(ours, sender="test", mode="all", rate=1)

        async def heard() -> bytes:
            return await asyncio.wait_for(loop.sock_recv(theirs, 1 << 20), 30)

        try:
            hello = await heard()
            assert log._flusher is None
            assert log._second is None
            theirs.send(answer_message(Ready(0, 1)))
            log.refused(cast("Any", Asker()), "tools/call", "echo", UNSERVED)
            assert await heard() != hello
            assert log._flusher is not None  # it may have to be sent again
            theirs.send(answer_message(Committed(1)))
            async with asyncio.timeout(30):
                while log._flusher is not None:  # noqa: ASYNC110 - what ends it tells nobody
                    await asyncio.sleep(0)
            assert not len(log._queue)
        finally:
            log.close()
            theirs.close()

    asyncio.run(scenario())
