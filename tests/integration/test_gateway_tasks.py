"""Tasks of real SDK servers through the gateway: whose they are, and who is asked about them."""

import asyncio
import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import TOKEN, Harness, Raw, running
from running import DEMO

SERVER = Path(__file__).resolve().parents[1] / "servers/tasks_server.py"
EVERYTHING = DEMO / "servers/everything/node_modules/.bin/mcp-server-everything"
EXTENSION = "io.modelcontextprotocol/tasks"
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}},
}
RELATED = "io.modelcontextprotocol/related-task"
UNKNOWN = {"code": -32602, "message": "unknown task"}


def server(name: str, era: str) -> list[str]:
    return [sys.executable, str(SERVER), name, era]


def servers(era: str) -> dict[str, list[str]]:
    return {name: server(name, era) for name in ("one", "two")}


class Asker:
    """A client of an era that numbers its requests."""

    def __init__(self, raw: Raw, era: str) -> None:
        self.raw = raw
        self.era = era
        self._number = 0

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        if self.era == "modern":
            params["_meta"] = META
        return await self.raw.request(self._number, method, **params)

    async def begin(self, tool: str) -> dict[str, Any]:
        """The task that a call of a tool makes."""
        more = {} if self.era == "modern" else {"task": {"ttl": 60000}}
        answer = await self.ask("tools/call", name=tool, arguments={}, **more)
        result: dict[str, Any] = answer["result"]
        return result if self.era == "modern" else result["task"]

    async def outcome(self, task_id: str) -> str:
        """What a task came to."""
        if self.era == "modern":
            answer = (await self.ask("tasks/get", taskId=task_id))["result"]
            assert answer["taskId"] == task_id
            return str(answer["result"]["content"][0]["text"])
        told = (await self.ask("tasks/get", taskId=task_id))["result"]
        assert (told["taskId"], told["status"]) == (task_id, "completed")
        result = (await self.ask("tasks/result", taskId=task_id))["result"]
        assert result["_meta"][RELATED] == {"taskId": task_id}
        return str(result["content"][0]["text"])


async def asker(harness: Harness, era: str) -> Asker:
    return Asker(await harness.raw(), era)


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_ids_that_two_servers_share_lead_each_to_its_own(era: str) -> None:
    async def scenario() -> None:
        async with running(servers(era)) as harness:
            client = await asker(harness, era)
            one, two = await client.begin("one__work"), await client.begin("two__work")
            assert one["status"] == two["status"] == "working"
            assert len({one["taskId"], two["taskId"], "task-1"}) == 3
            assert await client.outcome(two["taskId"]) == "two did task-1"
            assert await client.outcome(one["taskId"]) == "one did task-1"
            cancelled = (await client.ask("tasks/cancel", taskId=one["taskId"]))["result"]
            assert (cancelled["taskId"], cancelled["status"]) == (one["taskId"], "cancelled")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("era", "method"),
    [
        *(("legacy", f"tasks/{name}") for name in ("get", "cancel", "result")),
        *(("modern", f"tasks/{name}") for name in ("get", "cancel", "update")),
    ],
)
def test_nobody_reaches_a_task_of_another_client(era: str, method: str) -> None:
    async def scenario() -> None:
        async with running({"one": server("one", era)}) as harness:
            owner, other = await asker(harness, era), await asker(harness, era)
            task = await owner.begin("one__work")
            for guess in (task["taskId"], "task-1", ""):
                assert (await other.ask(method, taskId=guess))["error"] == UNKNOWN
            assert (await owner.ask(method, taskId="task-1"))["error"] == UNKNOWN
            assert "error" in await other.ask("tasks/list")
            assert await owner.outcome(task["taskId"]) == "one did task-1"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("era", "method"),
    [("legacy", "tasks/update"), ("modern", "tasks/result"), ("modern", "tasks/list")],
)
def test_method_of_the_other_era_is_unknown_even_for_an_own_task(era: str, method: str) -> None:
    async def scenario() -> None:
        async with running({"one": server("one", era)}) as harness:
            client = await asker(harness, era)
            task = await client.begin("one__work")
            for task_id in (task["taskId"], "no-task"):
                assert (await client.ask(method, taskId=task_id))["error"]["code"] == -32601

    asyncio.run(scenario())


@pytest.mark.parametrize("method", ["tasks/get", "tasks/cancel", "tasks/update"])
def test_who_does_not_declare_the_extension_is_told_what_is_missing(method: str) -> None:
    async def scenario() -> None:
        async with running({"one": server("one", "modern")}) as harness:
            client = await asker(harness, "modern")
            task = await client.begin("one__work")
            bare = {**META, "io.modelcontextprotocol/clientCapabilities": {}}
            for task_id in (task["taskId"], "no-task"):
                answer = await client.raw.request(99, method, taskId=task_id, _meta=bare)
                assert answer["error"]["code"] == -32021
                needed = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
                assert answer["error"]["data"] == needed

    asyncio.run(scenario())


def test_status_is_told_to_the_owner_alone_under_the_owners_name_of_it() -> None:
    async def scenario() -> None:
        async with running({"one": server("one", "legacy")}) as harness:
            owner, other = await asker(harness, "legacy"), await asker(harness, "legacy")
            task = await owner.begin("one__work")
            await other.ask("tools/call", name="one__tell", arguments={"task": "task-1"})
            told = await owner.raw.receive()
            assert told["method"] == "notifications/tasks/status"
            assert told["params"]["taskId"] == task["taskId"]
            assert other.raw.early == []

    asyncio.run(scenario())


def test_task_ends_with_its_server_and_its_client() -> None:
    async def scenario() -> None:
        async with running({"one": server("one", "legacy")}) as harness:
            client, leaver = await asker(harness, "legacy"), await asker(harness, "legacy")
            task, left = await client.begin("one__work"), await leaver.begin("one__work")
            await leaver.raw.close()
            again = await asker(harness, "legacy")
            assert (await again.ask("tasks/get", taskId=left["taskId"]))["error"] == UNKNOWN
            (worker,) = harness.servers
            harness.gateway.fleet.detach(worker, "it was killed")
            harness.kill(worker)
            await harness.attach("one", server("one", "legacy"))
            await harness.ready()
            fresh = await client.begin("one__work")
            error = (await client.ask("tasks/get", taskId=task["taskId"]))["error"]
            assert "its server ended" in error["message"]
            assert await client.outcome(fresh["taskId"]) == "one did task-1"

    asyncio.run(scenario())


def test_of_a_server_that_ended_its_tasks_keep_nothing_but_its_name() -> None:
    async def scenario() -> None:
        async with running({"one": server("one", "legacy")}) as harness:
            client = await asker(harness, "legacy")
            tasks = [(await client.begin("one__work"))["taskId"] for _ in range(3)]
            upstream = weakref.ref(harness.gateway.fleet.integrations["one"].upstream)
            (owner,) = harness.gateway.router.clients
            known = harness.gateway.router.relay.tasks._of[owner]
            assert [known[task].own_id for task in tasks] == ["task-1", "task-2", "task-3"]
            (worker,) = harness.servers
            harness.gateway.fleet.detach(worker, "it was killed")
            harness.kill(worker)
            async with asyncio.timeout(60):
                while upstream() is not None:  # its pipes are closed in a later turn of the loop
                    await asyncio.sleep(0)
                    gc.collect()
            assert [(known[task].own_id, known[task].maker.tasks) for task in tasks] == [
                ("", {})
            ] * 3
            for task in tasks:
                error = (await client.ask("tasks/get", taskId=task))["error"]
                assert error["message"] == "one: its server ended, and the task with it"
                assert (await client.ask("tasks/get", taskId=task))["error"] == UNKNOWN
            assert known == {}

    asyncio.run(scenario())


@pytest.mark.parametrize(("client_era", "server_era"), [("legacy", "modern"), ("modern", "legacy")])
def test_across_the_eras_a_call_is_answered_at_once(client_era: str, server_era: str) -> None:
    async def scenario() -> None:
        async with running({"one": server("one", server_era)}) as harness:
            client = await asker(harness, client_era)
            more = {"task": {"ttl": 1}} if client_era == "legacy" else {}
            answer = await client.ask("tools/call", name="one__work", arguments={}, **more)
            assert "at once" in answer["result"]["content"][0]["text"]
            assert "task" not in answer["result"]

    asyncio.run(scenario())


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_tasks_are_offered_where_a_server_of_the_clients_era_makes_them(era: str) -> None:
    async def scenario() -> None:
        async with running({"one": server("one", era)}) as harness:
            raw = await Raw.connect(harness.socket_path)
            harness.raws.append(raw)
            said = (await raw.initialize())["result"]["capabilities"]
            found = (await raw.request(1, "server/discover", _meta=META))["result"]["capabilities"]
            assert ("tasks" in said, EXTENSION in found.get("extensions", {})) == (
                era == "legacy",
                era == "modern",
            )

    asyncio.run(scenario())


@pytest.mark.skipif(not EVERYTHING.exists(), reason="scripts/prepare --demo brings it")
def test_task_of_the_everything_server_comes_to_its_end() -> None:
    async def scenario() -> None:
        async with running({"every": ["node", str(EVERYTHING), "stdio"]}) as harness:
            client = await asker(harness, "legacy")
            name, arguments = "every__simulate-research-query", {"topic": "bees"}
            call = {"name": name, "arguments": arguments, "task": {"ttl": 60000}}
            task = (await client.ask("tools/call", **call))["result"]["task"]
            async with asyncio.timeout(60):
                result = await client.ask("tasks/result", taskId=task["taskId"])
            assert "bees" in result["result"]["content"][0]["text"]
            assert result["result"]["_meta"][RELATED] == {"taskId": task["taskId"]}
            told = (await client.ask("tasks/get", taskId=task["taskId"]))["result"]
            assert (told["taskId"], told["status"]) == (task["taskId"], "completed")

    asyncio.run(scenario())


def test_header_names_the_task_over_http() -> None:
    import httpx2

    async def scenario() -> None:
        async with running(servers("modern")) as harness, httpx2.AsyncClient() as http:

            async def post(method: str, header: str, **params: Any) -> Any:
                headers = {
                    "authorization": f"Bearer {TOKEN}",
                    "accept": "application/json, text/event-stream",
                    "mcp-protocol-version": "2026-07-28",
                    "mcp-method": method,
                    "mcp-name": header,
                }
                body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
                body["params"]["_meta"] = META
                return (await http.post(harness.url, json=body, headers=headers)).json()

            made = await post("tools/call", "two__work", name="two__work", arguments={})
            task_id = made["result"]["taskId"]
            got = await post("tasks/get", task_id, taskId=task_id)
            assert got["result"]["result"]["content"][0]["text"] == "two did task-1"
            assert (await post("tasks/get", "other", taskId=task_id))["error"]["code"] == -32020

    asyncio.run(scenario())
