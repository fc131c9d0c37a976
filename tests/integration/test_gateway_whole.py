"""Every member of every message passes, in all pairings of the eras and over each transport."""

import importlib.util
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import patch

import httpx2
import pytest
import uvloop
from gateway_harness import SERVERS, TOKEN, Harness, Raw, running

META = "io.modelcontextprotocol/"
OWN_META = {
    META + "protocolVersion": "2026-07-28",
    META + "clientInfo": {"name": "c", "version": "1"},
    META + "clientCapabilities": {"extensions": {"x.org/novel": {"y": 1}}},
}
TRACE = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "a=b",
    "baggage": "c=d",
    "x.org/novel": {"z": [1, None]},
}
# What a modern answer says beside what it is about, each of which has a test of its own.
OF_THE_ERA = {"resultType", "ttlMs", "cacheScope"}
ARGUMENTS = {"é": [1, 0.1, 12345678901234567890], "none": None}
REQUESTS: dict[str, dict[str, Any]] = {
    "tools/call": {"name": "it__t", "arguments": ARGUMENTS, "x-novel": 1},
    "prompts/get": {"name": "it__p", "arguments": {"a": "é"}, "x-novel": 1},
    "resources/read": {"uri": "w://1", "x-novel": 1},
    "completion/complete": {
        "ref": {"type": "ref/prompt", "name": "it__p", "title": "T"},
        "argument": {"name": "a", "value": "é"},
        "context": {"arguments": {"b": "c"}},
        "x-novel": 1,
    },
}
Ask = Callable[..., Awaitable[dict[str, Any]]]


def server() -> Any:
    """What the server says."""
    spec = importlib.util.spec_from_file_location("whole", SERVERS / "whole.py")
    assert spec is not None
    assert spec.loader is not None
    whole = importlib.util.module_from_spec(spec)
    with patch.object(sys, "argv", ["whole.py", ""]), patch.object(sys, "stdin", []):
        spec.loader.exec_module(whole)
    return whole


WHOLE = server()


def of_era(params: dict[str, Any], era: str) -> dict[str, Any]:
    own = OWN_META if era == "modern" else {}
    return {**params, "_meta": {**TRACE, **own}}


@asynccontextmanager
async def by_socket(gateway: Harness, era: str) -> AsyncIterator[Ask]:
    client = await Raw.connect(gateway.socket_path)
    gateway.raws.append(client)
    if era == "legacy":
        await client.initialize()

    async def ask(method: str, **params: Any) -> dict[str, Any]:
        answer = await client.request(1, method, **of_era(params, era))
        found: dict[str, Any] = answer["result"]
        return found

    yield ask


@asynccontextmanager
async def by_http(gateway: Harness, era: str) -> AsyncIterator[Ask]:
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with httpx2.AsyncClient(timeout=20, headers=headers) as client:

        async def post(method: str, params: dict[str, Any]) -> Any:
            message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            own = {}
            if era == "modern":
                own = {"mcp-protocol-version": "2026-07-28", "mcp-method": method}
                name = params.get("name") or params.get("uri")
                own |= {"mcp-name": name} if name else {}
            return await client.post(gateway.url, json=message, headers=own)

        if era == "legacy":
            hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {}}
            answer = await post("initialize", hello)
            client.headers["mcp-session-id"] = answer.headers["mcp-session-id"]

        async def ask(method: str, **params: Any) -> dict[str, Any]:
            answer = (await post(method, of_era(params, era))).json()
            found: dict[str, Any] = answer["result"]
            return found

        yield ask


TRANSPORTS = {"socket": by_socket, "http": by_http}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("server_era", ["legacy", "modern"])
@pytest.mark.parametrize("client_era", ["legacy", "modern"])
def test_every_member_passes(transport: str, server_era: str, client_era: str) -> None:
    async def main() -> None:
        argv = [sys.executable, "-SI", str(SERVERS / "whole.py"), server_era]
        async with (
            running({"it": argv}) as gateway,
            TRANSPORTS[transport](gateway, client_era) as ask,
        ):
            for method, (key, item) in WHOLE.LISTS.items():
                (listed,) = (await ask(method))[key]
                prefix = "it__" if key in ("tools", "prompts") else ""
                assert listed == {**item, **WHOLE.COMMON, "name": prefix + item["name"]}
            for method, params in REQUESTS.items():
                result = await ask(method, **params)
                asked = result.pop("_meta")["asked"]
                assert (result.keys() & OF_THE_ERA != set()) is (client_era == "modern")
                result = {k: one for k, one in result.items() if k not in OF_THE_ERA}
                assert result == {**WHOLE.RESULTS[method], "x-novel": True}
                meta = asked.pop("_meta")
                assert asked == json.loads(json.dumps(params).replace("it__", ""))
                assert {key: meta[key] for key in TRACE} == TRACE
                own = {key: one for key, one in meta.items() if key.startswith(META)}
                if server_era == "legacy":
                    assert own == {}, "a legacy server knows no such thing"
                elif client_era == "modern":
                    assert own == OWN_META
                else:
                    assert own[META + "protocolVersion"] == "2026-07-28"

    uvloop.run(main())
