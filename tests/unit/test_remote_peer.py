"""What becomes of a call to a remote server, told by a door that opens to nothing."""

import asyncio
from typing import Any, cast

import pytest

from vsm.protocol import jsonrpc
from vsm.protocol.events import EventParser
from vsm.remote.door import Door
from vsm.remote.http_client import HttpError
from vsm.remote.peer import Common, Peer


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
