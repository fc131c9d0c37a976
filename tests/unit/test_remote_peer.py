"""What becomes of a call to a remote server, told by a door that opens to nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from vsm.protocol import jsonrpc
from vsm.protocol.events import EventParser
from vsm.remote.door import Door
from vsm.remote.http_client import HttpError
from vsm.remote.peer import MOST_ASKED, Common, Peer


class Shut:
    """A server that is gone."""

    async def open(self, *_: object) -> Any:
        raise HttpError("it cannot be reached", sent=False)


def test_a_call_whose_stream_broke_may_have_run_although_its_server_is_gone() -> None:
    async def ignore(*_: object) -> None:
        raise AssertionError

    async def main() -> HttpError:
        common = Common(ignore, lambda _: None, 1000)
        peer = Peer(cast("Door", Shut()), common, own=True)
        parser = EventParser(1000)
        list(parser.feed(b"id: e1\nretry: 1\ndata:\n\n"))
        call = jsonrpc.decode(jsonrpc.request("1", "tools/call", b"{}"))
        with pytest.raises(HttpError, match="cannot be reached") as failed:
            await peer._resume(parser, call, ignore)
        return failed.value

    assert asyncio.run(main()).sent


class Taking:
    """A server that takes whatever it is told."""

    status = 202

    def __init__(self) -> None:
        self.aside = asyncio.Semaphore()
        self.headers: dict[str, str] = {}
        self.told: list[dict[str, Any]] = []

    async def open(self, _method: str, _headers: object, body: bytes) -> "Taking":
        self.told.append(json.loads(body))
        return self

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


def test_questions_that_nobody_answers_keep_no_later_one_from_being_asked() -> None:
    asked: list[dict[str, Any]] = []

    async def emit(line: bytes) -> None:
        asked.append(json.loads(line))

    async def main() -> list[dict[str, Any]]:
        door = Taking()
        peer = Peer(cast("Door", door), Common(emit, lambda _: None, 1000), own=True)
        for number in range(MOST_ASKED + 2):
            question = jsonrpc.request(number, "elicitation/create", b"{}")
            await peer._asked(jsonrpc.decode(question))
        return door.told

    told = asyncio.run(main())
    assert len({question["id"] for question in asked}) == MOST_ASKED + 2
    assert [(answer["id"], "error" in answer) for answer in told] == [(0, True), (1, True)]


class Stalling:
    """A server that refuses a request, and never says why."""

    status = 400

    def __init__(self) -> None:
        self.asked, self.left = asyncio.Event(), False

    async def open(self, *_: object) -> "Stalling":
        return self

    async def body(self, _: int) -> bytes:
        self.asked.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    def leave(self) -> None:
        self.left = True


def test_the_connection_of_a_call_that_is_given_up_while_it_is_refused_is_closed() -> None:
    async def main() -> None:
        server = Stalling()
        peer = Peer(cast("Door", server), cast("Common", None), own=True)
        peer._session = "s1"
        posting = asyncio.create_task(peer._post(b"{}", {}))
        await asyncio.wait_for(server.asked.wait(), 20)
        posting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await posting
        assert server.left

    asyncio.run(main())


class Closing:
    """A server whose streams end as soon as they begin."""

    status, media_type = 200, "text/event-stream"

    def __init__(self) -> None:
        self.aside = asyncio.Semaphore()
        self.resumed: list[str | None] = []

    async def open(self, _: str, headers: dict[str, str]) -> "Closing":
        self.resumed.append(headers.get("last-event-id"))
        return self

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass

    async def blocks(self) -> AsyncIterator[bytes]:
        if len(self.resumed) == 1:
            yield b"id: e1\ndata:\n\n"


def test_a_server_that_ends_its_streams_at_once_is_asked_ever_more_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) > 9:
            raise asyncio.CancelledError

    async def ignore(_: bytes) -> None:
        raise AssertionError

    async def main() -> list[str | None]:
        door = Closing()
        peer = Peer(cast("Door", door), Common(ignore, lambda _: None, 1000), own=True)
        with pytest.raises(asyncio.CancelledError):
            await peer._keep_hearing()
        return door.resumed

    monkeypatch.setattr("vsm.remote.peer.asyncio.sleep", sleep)
    assert asyncio.run(main()) == [None, *["e1"] * 9]
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
