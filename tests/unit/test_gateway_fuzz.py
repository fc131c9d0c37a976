"""Whatever a server or a client sends, the gateway's callbacks raise nothing."""

import asyncio
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from vsm.gateway.client import Client
from vsm.gateway.fleet import Fleet
from vsm.gateway.integration import Settings
from vsm.gateway.router import Router
from vsm.gateway.upstream import Upstream
from vsm.protocol import jsonrpc
from vsm.protocol.era import PeerSession
from vsm.protocol.jsonrpc import DecodeError
from vsm.protocol.tables import CLIENT_REQUESTS, META, SERVER_NOTIFICATIONS, SERVER_REQUESTS, Era

EPOCH = 3
FIRST_ID = (EPOCH << 40) | 1

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.just(FIRST_ID)
    | st.sampled_from(["echo", "up", "debug", "x://1", "ref/prompt", "complete", "2026-07-28", ""])
)
KEYS = [
    *("name", "uri", "_meta", "progressToken", "requestId", "arguments", "level", "ref", "type"),
    *("cursor", "notifications", "resourceSubscriptions", "toolsListChanged", "resultType"),
    *("protocolVersion", "capabilities", META + "protocolVersion", META + "clientCapabilities"),
    *("code", "message", "data", "tools", "nextCursor"),
]
bodies = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)
METHODS = sorted(
    {
        m
        for table in (CLIENT_REQUESTS, SERVER_NOTIFICATIONS, SERVER_REQUESTS)
        for e in Era
        for m in table[e]
    }
    | {"notifications/cancelled", "notifications/initialized", "nonsense", 'quo"ted'}
)


def often(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what belongs there, sometimes anything."""
    return st.integers(0, 7).flatmap(lambda n: usual if n else bodies)


def some(**usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """An object with some of these members."""
    return st.fixed_dictionaries({}, optional={key: often(of) for key, of in usual.items()})


ASKABLE: dict[str, Any] = {"roots": {}, "sampling": {}, "elicitation": {}}
ENVELOPE = {META + "protocolVersion": "2026-07-28", META + "clientCapabilities": ASKABLE}
ids = often(
    st.integers(FIRST_ID, FIRST_ID + 6)
    | st.sampled_from(["vsm-1", "vsm-2", "vsm-m1", "vsm-m2", 1, 2])
)
modern = st.sampled_from([ENVELOPE, {**ENVELOPE, META + "clientCapabilities": {}}])
meta = often(
    modern
    | st.just({"progressToken": 7})
    | modern.map(lambda m: {**m, META + "logLevel": "info", "progressToken": "p"})
)
params = st.builds(
    lambda base, rest: {**base, **rest},
    st.builds(
        lambda name, meta: {"name": name, "uri": "x://1", "_meta": meta},
        st.sampled_from(["echo", "up"]),
        meta,
    ),
    some(
        ref=some(
            type=st.sampled_from(["ref/prompt", "ref/resource"]),
            name=st.just("echo"),
            uri=st.just("x://1"),
        ),
        level=st.sampled_from(["info", "error"]),
        requestId=ids,
        progressToken=ids,
        notifications=some(
            toolsListChanged=st.just(True), resourceSubscriptions=st.just(["x://1"])
        ),
        protocolVersion=st.just("2025-11-25"),
        capabilities=st.just(ASKABLE),
        requestState=st.just("mine"),
        inputResponses=some(q=st.just({})),
    ),
)
bare = params.map(lambda p: {k: v for k, v in p.items() if k != "_meta"})
envelope = {"jsonrpc": st.just("2.0")}
calls = st.fixed_dictionaries(
    {**envelope, "id": ids, "method": st.just("tools/call"), "params": params | bare}
)
requests = st.fixed_dictionaries(
    {**envelope, "id": ids, "method": st.sampled_from(METHODS), "params": often(params | bare)}
)
notifications = st.fixed_dictionaries(
    {**envelope, "method": st.sampled_from(METHODS), "params": often(params | bare)}
)
questions = some(
    resultType=st.just("input_required"),
    requestState=st.just("mine"),
    inputRequests=some(
        q=some(method=st.sampled_from(["roots/list", "elicitation/create"]), params=bodies)
    ),
)
answers = st.fixed_dictionaries(
    {**envelope, "id": ids, "result": often(some(resultType=st.just("complete")) | questions)}
) | st.fixed_dictionaries(
    {**envelope, "id": ids, "error": often(some(code=st.just(1), message=st.just("no")))}
)
messages = calls | requests | notifications | answers
usual_calls = st.fixed_dictionaries(
    {
        **envelope,
        "id": st.integers(1, 9),
        "method": st.just("tools/call"),
        "params": st.just({"name": "echo", "uri": "x://1", "_meta": ENVELOPE})
        | st.just({"name": "echo"}),
    }
)
usual_questions = st.fixed_dictionaries(
    {
        **envelope,
        "id": st.integers(1, 3),
        "method": st.sampled_from(["elicitation/create", "roots/list"]),
        "params": st.just({"message": "?"}),
    }
) | st.fixed_dictionaries(
    {
        **envelope,
        "id": st.integers(FIRST_ID, FIRST_ID + 3),
        "result": st.just(
            {
                "resultType": "input_required",
                "inputRequests": {"q": {"method": "roots/list", "params": {}}},
            }
        ),
    }
)


def streams_of(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[list[bytes]]:
    """Frames: half of them make sense where they are, a few are no messages at all."""
    frames = (usual | messages).map(lambda m: json.dumps(m).encode())
    broken = st.integers(0, 9).flatmap(lambda n: frames if n else st.binary(max_size=30))
    return st.lists(broken, max_size=12)


class Silent:
    """Reports that nobody hears."""

    def session(self, worker: str, record: dict[str, Any]) -> None: ...

    def unfit(self, worker: str, reason: str) -> None: ...

    def noticed(self, worker: str, text: str) -> None: ...

    def idle(self, integration: str, worker: str | None = None) -> None: ...

    def breaker(self, integration: str, phase: str, detail: str) -> None: ...

    def retried(self, integration: str, answered: int, failed: int) -> None: ...

    def dead_letter(self, integration: str, letter: dict[str, Any]) -> None: ...


class Listening(Client):
    """A client that must get valid frames only, and keeps the states that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[tuple[str, list[str]]] = []

    def notify(self, frame: bytes) -> None:
        jsonrpc.decode(frame)

    def answer(self, frame: bytes) -> None:
        result = json.loads(frame).get("result")
        if isinstance(result, dict) and result.get("resultType") == "input_required":
            asked = result.get("inputRequests")
            if isinstance(asked, dict):
                self.states.append((result.get("requestState", ""), list(asked)))

    ask = notify

    def returns(self) -> list[bytes]:
        """The requests by which it comes back with answers, each twice."""
        frames = []
        for number, (state, names) in enumerate(self.states):
            params = {"name": "echo", "uri": "x://1", "_meta": ENVELOPE, "requestState": state}
            params["inputResponses"] = {name: {} for name in names}
            message = {"id": f"r{number}", "method": "tools/call", "params": params}
            frames.append(json.dumps({"jsonrpc": "2.0", **message}).encode())
        return frames * 2


class Sunk:
    """The server's end of the pipe: one valid message a line."""

    def write(self, data: bytes) -> None:
        for line in data.splitlines():
            jsonrpc.decode(line)

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None: ...


def gateway(era: Era) -> tuple[Router, Upstream, Listening]:
    fleet = Fleet(EPOCH, Silent())
    router = Router(fleet)
    fleet.add(Settings(name="up", prefix=""))
    upstream = Upstream(
        fleet,
        worker="up-1",
        integration="up",
        guard=fleet.integrations["up"].guard,
        epoch=EPOCH,
        concurrency=2,
        max_frame_bytes=4096,
    )
    upstream.era = era
    upstream._writer = Sunk()  # type: ignore[assignment]
    integration = fleet.integrations["up"]
    integration.upstream, integration.state = upstream, "ready"
    integration.session = PeerSession(era=era.value, version="x", capabilities={"resources": {}})
    integration.surface.serves_resources = True
    integration.surface.lists = {
        "tools/list": [{"name": Raw(b'"echo"')}],
        "prompts/list": [{"name": Raw(b'"echo"')}],
    }
    fleet._rebuild()
    client = Listening()
    router.join(client)
    return router, upstream, client


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.sampled_from(list(Era)),
    st.booleans(),
    streams_of(usual_calls),
    streams_of(usual_questions | answers),
)
def test_no_stream_of_messages_breaks_the_gateway(
    era: Era,
    initialized: bool,
    from_client: list[bytes],
    from_server: list[bytes],
) -> None:
    async def main() -> None:
        broken: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, c: broken.append(c))
        router, upstream, client = gateway(era)
        client.initialized = initialized
        client.capabilities = {key: Raw(b"{}") for key in ASKABLE}
        for frame in from_client:
            try:
                message = jsonrpc.decode(frame)
            except DecodeError:
                continue
            router.receive(client, client, message)
        upstream.intake.data_received(b"".join(frame + b"\n" for frame in from_server))
        await asyncio.sleep(0)
        # What the server asked may be answered now, and what the client wants told again.
        for frame in (*client.returns(), *from_client):
            try:
                message = jsonrpc.decode(frame)
            except DecodeError:
                continue
            router.receive(client, client, message)
        await asyncio.sleep(0)
        router.leave(client, "done")
        assert client.in_flight == {}
        upstream.close("done")
        router.stop()
        router._fleet.close("done")
        await asyncio.sleep(0)
        assert broken == []

    asyncio.run(main())
