"""Events in an order that servers and clients do not choose often: nothing is lost in between."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import gateway_harness as harness
import pytest
import uvloop
from gateway_harness import Harness, Played, Raw

from vsm.core.demand import CANCELLED, PROTOCOL_ERROR
from vsm.core.instance_demand import Terms
from vsm.gateway import bridge
from vsm.gateway import upstream as upstreams
from vsm.gateway.bridge import RoundQuestion
from vsm.gateway.call import Call, Inquiry
from vsm.gateway.call_log import CallLog
from vsm.gateway.client import MAX_ASKED
from vsm.gateway.integration import Settings
from vsm.gateway.resilience import Resilience
from vsm.gateway.unix import VIEW_METHOD
from vsm.gateway.upstream import MAX_BROKEN_FRAMES
from vsm.protocol.catalogue import suspension_key
from vsm.protocol.ids import COUNTER_BITS
from vsm.protocol.tables import META_SUBSCRIPTION

ECHO = {"name": "echo", "inputSchema": {"type": "object"}}
OTHER = {"name": "other", "inputSchema": {"type": "object"}}
CHANGED = "notifications/tools/list_changed"
LISTENS = {"tools": {"listChanged": True}}
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}},
}
FORM = {"message": "who?", "requestedSchema": {"type": "object", "properties": {}}}
TEXT = {"content": [{"type": "text", "text": "said"}]}


async def until(client: Raw, holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await client.request("a turn of the loop", "ping")


async def legacy(gateway: Harness, name: str = "it", **settings: Any) -> Played:
    """A legacy server that is ready."""
    server = gateway.play(name, era="legacy", **settings)
    await server.handshake(**LISTENS)
    await server.answer("tools/list", tools=[ECHO])
    await gateway.ready()
    return server


async def modern(gateway: Harness, name: str = "it", **settings: Any) -> Played:
    """A modern server that is ready, and the gateway's own subscription open."""
    server = gateway.play(name, era="modern", **settings)
    await server.discovery(**LISTENS)
    await server.answer("tools/list", tools=[ECHO], resultType="complete")
    return server


def names(answer: dict[str, Any]) -> set[str]:
    return {tool["name"] for tool in answer["result"]["tools"]}


def test_a_server_that_ends_while_it_first_lists_never_serves() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            server = gateway.play("it", era="legacy")
            await server.handshake(**LISTENS)
            await server.receive("tools/list")
            server.end_output()
            assert "closed its output" in await gateway.reported.wait_unfit(server.worker)
            assert gateway.reported.sessions == {}

    uvloop.run(main())


def test_a_remote_servers_worker_that_ends_in_a_health_check_is_said_to_have_ended() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            often = Resilience(health_interval_s=0.01)
            server = await legacy(gateway, remote=True, resilience=often)
            await server.receive("ping")
            server.end_output()
            reason = await gateway.reported.wait_unfit(server.worker)
            assert reason == "the server closed its output"

    uvloop.run(main())


def test_a_list_that_changes_while_it_is_given_for_the_first_time_is_asked_for_again() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            server = gateway.play("it", era="legacy")
            await server.handshake(**LISTENS)
            asked = await server.receive("tools/list")
            client = await gateway.raw()
            server.send(method=CHANGED)
            fleet = gateway.gateway.fleet
            starting = fleet.integrations["it"].starting
            assert starting is not None
            await until(client, lambda: bool(starting.stale))
            server.send(id=asked["id"], result={"tools": [ECHO]})
            await server.answer("tools/list", tools=[ECHO, OTHER])
            async with asyncio.timeout(20):
                while len(names(await client.request("list", "tools/list"))) < 2:
                    pass

    uvloop.run(main())


def test_a_removed_integration_fails_what_would_have_been_sent_again() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            server = await legacy(gateway, resilience=Resilience(retry_tools=("echo",)))
            client = await gateway.raw()
            for number in range(2):
                client.send(id=number, method="tools/call", params={"name": "it__echo"})
                await server.receive("tools/call")
            gateway.gateway.configure([])
            for number in range(2):
                error = (await client.answer(number))["error"]
                assert "removed from the configuration" in error["message"]
            assert names(await client.request("list", "tools/list")) == set()

    uvloop.run(main())


def test_what_waited_for_a_legacy_server_is_not_sent_to_a_modern_one_as_it_is() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            server = await legacy(gateway, concurrency=1)
            client = await gateway.raw()
            for number in range(2):
                client.send(id=number, method="tools/call", params={"name": "it__echo"})
            await server.receive("tools/call")
            guard = gateway.gateway.fleet.integrations["it"].guard
            server.end_output()
            await until(client, lambda: guard.status()["held"] == 1)
            gateway.gateway.fleet.detach(server.worker, "it was replaced")
            after = await modern(gateway)
            error = (await client.answer(1))["error"]
            assert "another era" in error["message"]
            assert error["data"]["sent"] is False
            client.send(id=2, method="tools/call", params={"name": "it__echo"})
            await after.answer("tools/call", resultType="complete", **TEXT)
            assert "result" in await client.answer(2)

    uvloop.run(main())


def test_a_server_that_was_given_up_gets_no_call_though_it_reads_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upstreams, "GONE_GRACE_S", 600.0)

    async def main() -> None:
        async with harness.running() as gateway:
            server = await legacy(gateway, max_frame_bytes=2**24)
            client = await gateway.raw()
            upstream = gateway.gateway.fleet.integrations["it"].upstream
            assert upstream is not None
            server.stop_reading()
            large = {"name": "it__echo", "arguments": {"x": "x" * 4 * 2**20}}
            client.send(id=1, method="tools/call", params=large)
            await until(client, lambda: not upstream.writable)
            server.send_raw(b"broken\n" * MAX_BROKEN_FRAMES)
            await until(client, lambda: upstream.lost)
            assert "invalid messages" in (await client.answer(1))["error"]["message"]
            await server.receive("tools/call")
            asked = upstream.asked
            client.send(id=2, method="tools/call", params={"name": "it__echo"})
            await until(client, lambda: upstream.guard.status()["held"] == 1)
            assert upstream.asked == asked
            client.send(method="notifications/cancelled", params={"requestId": 2})

    uvloop.run(main())


def test_a_server_that_asks_without_end_and_never_reads_the_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upstreams, "HIGH_WATER_BYTES", 1024)
    monkeypatch.setattr(upstreams, "MAX_UNREAD_BYTES", 100_000)

    async def main() -> None:
        async with harness.running() as gateway:
            server = await legacy(gateway)
            client = await gateway.raw()
            server.stop_reading()
            for _ in range(8):  # not more than a pipe takes: nobody may read it any more
                for _ in range(100):
                    server.send(id="x" * 250, method="ping")
                await client.request("a turn of the loop", "ping")
            reason = await gateway.reported.wait_unfit(server.worker)
            assert reason == "the server does not read its input"

    uvloop.run(main())


def test_a_subscription_that_a_server_spoils_takes_no_place_among_the_calls() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            server = await modern(gateway, concurrency=1)
            listen = await server.receive("subscriptions/listen")
            server.send_raw(b'{"jsonrpc":"2.0","id":%d,"result":{"x":\n' % listen["id"])
            await gateway.reported.wait_notice()
            integration = gateway.gateway.fleet.integrations["it"]
            assert integration.in_flight == 0
            client = await gateway.raw()
            for number in range(2):
                client.send(id=number, method="tools/call", params={"name": "it__echo"})
            await server.receive("tools/call")
            await until(client, lambda: integration.in_flight == 2)
            upstream = integration.upstream
            assert upstream is not None
            assert len(upstream.calls()) == 1, "one at a time, as configured"

    uvloop.run(main())


def test_a_session_hears_that_its_server_is_lost_though_that_had_a_subscription_open() -> None:
    async def main() -> None:
        terms = Terms(kind="session", most=2)
        async with harness.running() as gateway:
            client = await gateway.raw()
            server = gateway.play("it", instance=1, era="modern", terms=terms)
            gateway.gateway.fleet.availability("it", "ready", "")
            await server.discovery(**LISTENS)
            await server.answer("tools/list", tools=[ECHO], resultType="complete")
            await server.receive("subscriptions/listen")
            client.send(id=1, method="tools/call", params={"name": "it__echo"})
            await server.answer("tools/call", resultType="complete", **TEXT)
            assert "result" in await client.answer(1)
            instances = gateway.gateway.fleet.integrations["it"].instances
            assert instances is not None
            server.end_output()
            await until(client, lambda: instances.members[server.worker].is_lost)
            lost = await client.call(2, "it__echo")
            assert "its state with it" in lost["error"]["message"]
            released = gateway.reported.releases["it"]
            assert released == {server.worker: "it ended"}, "whatever the session does now"

    uvloop.run(main())


def test_what_an_earlier_gateway_subscribed_to_ends_and_is_told_once() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            server = await modern(gateway)
            ours = (await server.receive("subscriptions/listen"))["id"]
            theirs = ours - (1 << COUNTER_BITS)
            for listen_id in (theirs, ours):
                meta = {META_SUBSCRIPTION: listen_id}
                server.send(method="notifications/tools/list_changed", params={"_meta": meta})
            ended = await server.receive()
            assert ended["method"] == "notifications/cancelled"
            assert ended["params"]["requestId"] == theirs
            assert (await server.receive())["method"] == "tools/list"

    uvloop.run(main())


def test_a_call_of_a_pool_waits_while_its_only_server_is_replaced() -> None:
    async def main() -> None:
        terms = Terms(kind="pool", least=1, most=1, resident=True)
        async with harness.running() as gateway:
            first = gateway.play("it", instance=1, era="legacy", terms=terms)
            gateway.gateway.fleet.availability("it", "ready", "")
            await first.handshake(**LISTENS)
            await first.answer("tools/list", tools=[ECHO])
            await gateway.ready()
            instances = gateway.gateway.fleet.integrations["it"].instances
            assert instances is not None
            client = await gateway.raw()
            first.end_output()
            await until(client, lambda: instances.members[first.worker].is_lost)
            client.send(id=1, method="tools/call", params={"name": "it__echo"})
            router = gateway.gateway.router
            await until(client, lambda: any(map(router.is_busy, router.clients)))
            gateway.gateway.fleet.detach(first.worker, "it exited with 1")
            second = gateway.play("it", instance=2)
            await second.handshake(**LISTENS)
            await second.answer("tools/list", tools=[ECHO])
            await second.answer("tools/call", **TEXT)
            assert "result" in await client.answer(1)

    uvloop.run(main())


def test_who_watches_a_resource_still_hears_of_it_when_another_one_no_longer_does() -> None:
    async def main() -> None:
        uri = "mem://it/one"
        terms = Terms(kind="pool", least=1, most=1, resident=True)
        offers = {"resources": {"subscribe": True}}
        async with harness.running() as gateway:
            first = gateway.play("it", instance=1, era="legacy", terms=terms)
            gateway.gateway.fleet.availability("it", "ready", "")
            await serve_resource(first, uri, **offers)
            await gateway.ready()
            stays, goes = await gateway.raw(), await gateway.raw()
            stays.send(id=1, method="resources/subscribe", params={"uri": uri})
            await first.answer("resources/subscribe")
            assert "result" in await stays.answer(1)
            assert "result" in await goes.request(1, "resources/subscribe", uri=uri)
            gateway.gateway.fleet.detach(first.worker, "it was restarted")
            second = gateway.play("it", instance=2)
            await serve_resource(second, uri, **offers)
            await second.answer("resources/subscribe")
            assert "result" in await goes.request(2, "resources/unsubscribe", uri=uri)
            stays.send(id=2, method="resources/read", params={"uri": uri})
            heard = await second.receive()
            assert heard["method"] == "resources/read", "one of them watches it still"

    uvloop.run(main())


@pytest.mark.parametrize("removed", [True, False])
def test_who_watches_a_resource_hears_of_it_when_its_integration_comes_back(removed: bool) -> None:
    async def main() -> None:
        uri = "mem://it/one"
        offers = {"resources": {"subscribe": True}}
        terms = Terms(kind="session", most=1)
        async with harness.running() as gateway:
            first = gateway.play("it", instance=1, era="legacy", terms=terms)
            gateway.gateway.fleet.availability("it", "ready", "")
            await serve_resource(first, uri, **offers)
            await gateway.ready()
            client = await gateway.raw()
            client.send(id=1, method="resources/subscribe", params={"uri": uri})
            await first.answer("resources/subscribe")
            assert "result" in await client.answer(1)
            if removed:
                gateway.gateway.configure([])
            else:
                gateway.gateway.fleet.detach(first.worker, "it was stopped")
            second = gateway.play("it", era="legacy")  # one server for all
            await serve_resource(second, uri, **offers)
            assert (await second.receive())["method"] == "resources/subscribe"
            second.send(method="notifications/resources/updated", params={"uri": uri})
            while (heard := await client.receive())["method"] != "notifications/resources/updated":
                pass
            assert heard["params"] == {"uri": uri}

    uvloop.run(main())


async def serve_resource(server: Played, uri: str, **capabilities: Any) -> None:
    await server.handshake(**capabilities)
    await server.answer("resources/list", resources=[{"uri": uri, "name": "one"}])
    await server.answer("resources/templates/list", resourceTemplates=[])


def test_requests_that_were_cancelled_while_they_waited_for_a_server_leave_nothing() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            gateway.play("it", era="legacy")
            client = await gateway.raw()
            settling = gateway.gateway.fleet.settling
            for number in range(3):
                client.send(id=number, method="tools/call", params={"name": "it__echo"})
            await until(client, lambda: len(settling._waiters) == 3)
            for number in range(3):
                client.send(method="notifications/cancelled", params={"requestId": number})
            await until(client, lambda: not settling._waiters)

    uvloop.run(main())


def test_questions_that_nobody_answered_do_not_keep_a_client_from_being_asked() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            server = await legacy(gateway)
            client = await gateway.raw(elicitation={})
            for number in range(2):
                client.send(id=number, method="tools/call", params={"name": "it__echo"})
                call = await server.receive("tools/call")
                for question in range(MAX_ASKED):
                    server.send(id=f"{number} {question}", method="elicitation/create", params=FORM)
                for _ in range(MAX_ASKED):
                    assert (await client.receive())["method"] == "elicitation/create"
                server.send(id=call["id"], result=TEXT)
                assert "result" in await client.answer(number)
            assert (await server.receive())["error"]["message"] == "the client did not answer"

    uvloop.run(main())


async def ask_back(server: Played, client: Raw) -> None:
    """A call that the server answers with a question."""
    client.send(id=1, method="tools/call", params={"name": "it__echo"})
    asked = {"q": {"method": "elicitation/create", "params": {**FORM, "mode": "form"}}}
    await server.answer("tools/call", resultType="input_required", inputRequests=asked)


def test_a_question_for_a_call_that_is_cancelled_keeps_no_timer() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            server = await modern(gateway)
            client = await gateway.raw(elicitation={})
            await ask_back(server, client)
            assert (await client.receive())["method"] == "elicitation/create"
            (session,) = gateway.gateway.router.clients
            (question,) = session.asked.values()
            assert isinstance(question, RoundQuestion)
            timer = question.round.timer
            assert timer is not None
            client.send(method="notifications/cancelled", params={"requestId": 1})
            await until(client, lambda: not session.asked)
            assert timer.cancelled()

    uvloop.run(main())


def test_a_tool_that_is_suspended_while_a_client_is_asked_is_not_called_again() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            server = await modern(gateway)
            client = await gateway.raw(elicitation={})
            await ask_back(server, client)
            question = await client.receive()
            integration = gateway.gateway.fleet.integrations["it"]
            key = suspension_key("tools/list", "echo")
            integration.surface.suspended = {key: "it is not what was approved"}
            client.send(id=question["id"], result={"action": "accept", "content": {}})
            refused = await client.answer(1)
            assert "not what was approved" in refused["error"]["message"]

    uvloop.run(main())


def test_a_call_that_moved_to_another_server_has_all_its_time_after_a_question() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            server = await modern(gateway, concurrency=1)
            client = await gateway.raw(elicitation={})
            for number in (1, 2):
                client.send(id=number, method="tools/call", params={"name": "it__echo"})
            await server.receive("tools/call")
            integration = gateway.gateway.fleet.integrations["it"]
            await until(client, lambda: integration.in_flight == 2)
            server.end_output()
            assert "error" in await client.answer(1)
            server = await modern(gateway)
            asked = await server.receive("tools/call")
            (call,) = (c for one in gateway.gateway.router.clients for c in one.in_flight.values())
            call.deadline = asyncio.get_running_loop().time()  # nobody looks before it is asked
            form = {"who": {"method": "elicitation/create", "params": FORM}}
            server.send(
                id=asked["id"], result={"resultType": "input_required", "inputRequests": form}
            )
            question = await client.receive()
            client.send(id=question["id"], result={"action": "accept", "content": {}})
            await server.answer("tools/call", resultType="complete", **TEXT)
            assert "result" in await client.answer(2)

    uvloop.run(main())


def test_what_is_late_with_a_server_that_ends_by_it_surprises_nobody() -> None:
    async def main() -> None:
        wrong: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
        async with harness.running() as gateway:
            await legacy(gateway)
            upstream = gateway.gateway.fleet.integrations["it"].upstream
            assert upstream is not None
            over = asyncio.Event()

            def failed(_code: int, text: str) -> None:
                upstream.close(text)
                over.set()

            for _ in range(2):
                inquiry = Inquiry(lambda _: None, failed, timeout_s=0.05)
                upstream.ask("ping", {}, inquiry)
            async with asyncio.timeout(20):
                await over.wait()
            await asyncio.sleep(0)
        assert wrong == []

    uvloop.run(main())


def test_what_a_modern_client_is_to_be_asked_is_bounded_in_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bridge, "MAX_PARKED_BYTES", 60_000)

    async def main() -> None:
        async with harness.running() as gateway:
            server = await legacy(gateway)
            client = await Raw.connect(gateway.socket_path)
            gateway.raws.append(client)
            called = {"name": "it__echo", "arguments": {}, "_meta": MODERN}
            client.send(id=1, method="tools/call", params=called)
            await server.receive("tools/call")
            small, large = {**FORM, "message": "x" * 20_000}, {**FORM, "message": "x" * 30_000}
            server.send(id="first", method="elicitation/create", params=large)
            assert (await client.answer(1))["result"]["resultType"] == "input_required"
            server.send(id="second", method="elicitation/create", params=small)
            server.send(id="third", method="elicitation/create", params=small)
            refused = await server.receive()
            assert refused["id"] == "third"
            assert "too large" in refused["error"]["message"]

    uvloop.run(main())


class Log:
    """A record of calls, kept here."""

    def __init__(self) -> None:
        self.outcomes: list[int] = []

    def note(self, call: Call, outcome: int, *_: object) -> None:
        assert call.label == "echo"
        self.outcomes.append(outcome)

    def close(self) -> None: ...


def test_a_call_whose_client_never_came_back_is_recorded_though_its_server_answered() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            server = await legacy(gateway)
            log = Log()
            gateway.gateway.router.call_log = cast("CallLog", log)
            client = await Raw.connect(gateway.socket_path)
            gateway.raws.append(client)
            called = {"name": "it__echo", "arguments": {}, "_meta": MODERN}
            client.send(id=1, method="tools/call", params=called)
            call = await server.receive("tools/call")
            upstream = gateway.gateway.fleet.integrations["it"].upstream
            assert upstream is not None
            server.send(id="q", method="elicitation/create", params=FORM)
            assert (await client.answer(1))["result"]["resultType"] == "input_required"
            assert upstream.tally == (0, 0), "it has not answered yet"
            server.send(id=call["id"], result=TEXT)
            await until(watcher := await gateway.raw(), lambda: upstream.in_flight == 0)
            assert log.outcomes == []
            await client.close()
            await until(watcher, lambda: log.outcomes == [CANCELLED])

    uvloop.run(main())


def test_a_probe_whose_client_never_came_back_makes_room_for_another() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            server = await legacy(gateway, resilience=Resilience(failures=1, open_s=600))
            guard = gateway.gateway.fleet.integrations["it"].guard
            guard.server_lost("as if")
            guard.server_replaced()  # tried at once
            client = await Raw.connect(gateway.socket_path)
            gateway.raws.append(client)
            called = {"name": "it__echo", "arguments": {}, "_meta": MODERN}
            client.send(id=1, method="tools/call", params=called)
            await server.receive("tools/call")
            server.send(id="q", method="elicitation/create", params=FORM)
            assert (await client.answer(1))["result"]["resultType"] == "input_required"
            await client.close()
            assert "the client is gone" in (await server.receive())["error"]["message"]
            other = await gateway.raw()
            other.send(id=2, method="tools/call", params={"name": "it__echo"})
            await server.answer("tools/call", **TEXT)
            assert "result" in await other.answer(2)

    uvloop.run(main())


def test_a_call_that_is_answered_with_what_is_no_task_is_recorded_and_no_success() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            server = await legacy(gateway, resilience=Resilience(failures=1))
            log = Log()
            gateway.gateway.router.call_log = cast("CallLog", log)
            client = await gateway.raw()
            client.send(id=1, method="tools/call", params={"name": "it__echo", "task": {}})
            await server.answer("tools/call", task={"taskId": "x" * 2000})
            assert "no task of this client" in (await client.answer(1))["error"]["message"]
            assert log.outcomes == [PROTOCOL_ERROR]
            assert [phase for _, phase, _ in gateway.reported.breakers] == ["open"]

    uvloop.run(main())


def test_what_comes_behind_a_name_that_nobody_has_is_not_served() -> None:
    async def main() -> None:
        async with harness.running() as gateway:
            server = await legacy(gateway)
            client = await Raw.connect(gateway.socket_path)
            gateway.raws.append(client)
            client.send(method=VIEW_METHOD, params={"name": "nobody"})
            called = {"name": "it__echo", "arguments": {}, "_meta": MODERN}
            client.send(id=1, method="tools/call", params=called)
            assert "no client 'nobody'" in (await client.receive())["error"]["message"]
            assert await client.reader.read() == b""
            other = await gateway.raw()
            other.send(id=2, method="tools/call", params={"name": "it__echo"})
            await server.answer("tools/call", **TEXT)
            assert "result" in await other.answer(2)
            assert gateway.gateway.fleet.integrations["it"].totals["calls"] == 1

    uvloop.run(main())


def test_instances_of_another_kind_are_had_once_the_last_of_the_old_is_gone() -> None:
    async def main() -> None:
        terms = Terms(kind="session", most=2)
        async with harness.running() as gateway:
            server = gateway.play("it", instance=1, era="legacy", terms=terms)
            fleet = gateway.gateway.fleet
            fleet.availability("it", "ready", "")
            await server.handshake(**LISTENS)
            await server.answer("tools/list", tools=[ECHO])
            client = await gateway.raw()
            client.send(id=1, method="tools/call", params={"name": "it__echo"})
            await server.answer("tools/call", **TEXT)
            assert "result" in await client.answer(1)
            gateway.gateway.add(Settings(name="it", prefix="it", era="legacy"))
            await client.close()
            async with asyncio.timeout(20):
                while server.worker not in gateway.reported.releases.get("it", {}):
                    gateway.reported.changed.clear()
                    await gateway.reported.changed.wait()
            fleet.detach(server.worker, "stopped")
            assert fleet.integrations["it"].instances is None

    uvloop.run(main())
