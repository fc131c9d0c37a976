"""What becomes of calls that a server does not answer: refused, moved, shared out, written down."""

import asyncio
import os
import random
import signal
from dataclasses import replace
from typing import Any

import gateway_harness as harness
import msgspec
import pytest
import uvloop
from gateway_harness import Harness, Raw

from vsm.core.trust import fingerprint
from vsm.gateway.call import Call, Go
from vsm.gateway.finder import RequestError
from vsm.gateway.integration import Settings
from vsm.gateway.resilience import Resilience
from vsm.protocol.jsonrpc import UNAVAILABLE

BOUND_S = 30


async def started(gateway: Harness, resilience: Resilience, **settings: Any) -> str:
    worker = await gateway.start("x", harness.echo_legacy("x"), resilience=resilience, **settings)
    await gateway.ready()
    return worker


def have_patience(gateway: Harness) -> None:
    """What x is to answer from now on, it has the time to."""
    integration = gateway.gateway.fleet.integrations["x"]
    integration.settings = replace(integration.settings, call_timeout_s=60)


async def wait_in_flight(gateway: Harness, number: int) -> None:
    client = await gateway.raw()
    async with asyncio.timeout(BOUND_S):
        while gateway.gateway.fleet.status()["integrations"]["x"]["in_flight"] != number:
            await client.request("a turn of the loop", "ping")


async def wait_told(gateway: Harness, phase: str) -> str:
    async with asyncio.timeout(BOUND_S):
        while True:
            for name, told, detail in gateway.reported.breakers:
                if (name, told) == ("x", phase):
                    return detail
            gateway.reported.changed.clear()
            await gateway.reported.changed.wait()


async def wait_letters(gateway: Harness, number: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(BOUND_S):
        while len(gateway.reported.letters) < number:
            gateway.reported.changed.clear()
            await gateway.reported.changed.wait()
    return [letter for _, letter in gateway.reported.letters]


def message(answer: dict[str, Any]) -> str:
    return str(answer["error"]["message"])


def slow(client: Raw, number: Any, seconds: float = 600) -> None:
    params = {"name": "x__slow", "arguments": {"seconds": seconds}}
    client.send(id=number, method="tools/call", params=params)


def test_after_failures_in_a_row_calls_are_refused_then_tried_then_let_through() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            terms = Resilience(failures=2, successes=2, open_s=0.5)
            await started(gateway, terms, call_timeout_s=0.2)
            client = await gateway.raw()
            for number in range(2):
                assert "did not answer" in message(await client.call(number, "x__silence"))
            assert "did not answer" in await wait_told(gateway, "open")
            refused = await client.call(3, "x__echo")
            assert "calls are refused for now" in message(refused)
            assert refused["error"]["data"]["state"] == "breaker open"
            assert 0 < refused["error"]["data"]["retry_after_ms"] <= 500
            assert refused["error"]["data"]["sent"] is False
            have_patience(gateway)
            async with asyncio.timeout(BOUND_S):
                while "error" in await client.call(4, "x__echo"):
                    pass
            await wait_told(gateway, "half_open")
            assert "result" in await client.call(5, "x__echo")
            await wait_told(gateway, "closed")
            assert gateway.gateway.fleet.integrations["x"].gates == ()
            row = gateway.gateway.fleet.status()["integrations"]["x"]
            assert (row["breaker"], row["failures_in_a_row"]) == ("closed", 0)

    uvloop.run(main())


def test_other_terms_close_a_breaker_and_hold_from_now_on() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            await started(gateway, Resilience(failures=1, open_s=600), call_timeout_s=0.2)
            client = await gateway.raw()
            await client.call(1, "x__silence")
            assert "refused" in message(await client.call(2, "x__echo"))
            terms = Resilience(failures=3, max_waiting=1)
            gateway.gateway.add(
                Settings(name="x", prefix="x", call_timeout_s=0.2, resilience=terms)
            )
            assert "terms were changed" in await wait_told(gateway, "closed")
            for number in range(2):
                await client.call(number, "x__silence")
            have_patience(gateway)
            assert "result" in await client.call(3, "x__echo")

    uvloop.run(main())


def test_a_probe_that_fails_or_is_cancelled_does_not_let_calls_through() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            await started(gateway, Resilience(failures=1, open_s=0.3), call_timeout_s=0.2)
            client = await gateway.raw()
            await client.call(1, "x__silence")
            integration = gateway.gateway.fleet.integrations["x"]
            async with asyncio.timeout(BOUND_S):
                while "refused" in message(await client.call(2, "x__silence")):
                    pass
            assert integration.guard.status()["breaker"] == "open"
            have_patience(gateway)
            async with asyncio.timeout(BOUND_S):
                while integration.guard.status()["breaker"] == "open":
                    slow(client, "probe")
                    await client.request("a turn of the loop", "ping")
            assert "one call at a time" in message(await client.call(3, "x__echo"))
            client.send(method="notifications/cancelled", params={"requestId": "probe"})
            assert "result" in await client.call(4, "x__echo")

    uvloop.run(main())


def test_a_call_that_another_gate_refuses_is_no_probe() -> None:
    class Shut:
        def admit(self, call: Call, go: Go, /) -> bool:  # noqa: ARG002 - Gate's
            raise RequestError(UNAVAILABLE, "shut")

    async def main() -> None:
        async with harness.running({}) as gateway:
            await started(gateway, Resilience(failures=1, open_s=600), call_timeout_s=0.2)
            client, fleet = await gateway.raw(), gateway.gateway.fleet
            await client.call(1, "x__silence")
            fleet.integrations["x"].guard.server_replaced()  # tried at once
            fleet.guard("record", lambda _: Shut())
            assert message(await client.call(2, "x__echo")) == "shut"
            fleet.guard("record", lambda _: None)
            have_patience(gateway)
            assert "result" in await client.call(3, "x__echo")

    uvloop.run(main())


def test_errors_that_a_server_answers_with_are_no_failures() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            await started(gateway, Resilience(failures=1))
            client = await gateway.raw()
            refused = await client.request(1, "x/unknown")
            assert "error" in refused
            assert "result" in await client.call(2, "x__echo")
            assert gateway.reported.breakers == []
            assert gateway.reported.letters == []

    uvloop.run(main())


def test_a_call_that_was_not_sent_goes_to_the_next_server_and_one_in_flight_fails() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            worker = await started(gateway, Resilience(), concurrency=1)
            client = await gateway.raw()
            slow(client, "sent")
            client.send(id="waits", method="tools/call", params={"name": "x__echo"})
            await wait_in_flight(gateway, 2)
            gateway.kill(worker)
            lost = await client.answer("sent")
            assert message(lost).startswith("x: ")
            assert "may have run" in message(lost)
            assert lost["error"]["data"]["sent"] is True
            await gateway.attach("x", harness.echo_legacy("x"))
            assert "result" in await client.answer("waits")
            assert gateway.gateway.fleet.integrations["x"].guard.retries == 1
            async with asyncio.timeout(60):
                while not gateway.reported.retries:
                    await gateway.reported.changed.wait()
                    gateway.reported.changed.clear()
            assert gateway.reported.retries == [("x", 1, 0)]

    uvloop.run(main())


def test_what_a_server_answered_and_what_not_is_counted_of_the_calls_that_it_got() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            worker = await started(gateway, Resilience(retry_tools=("late",)), concurrency=4)
            upstream = gateway.gateway.fleet.integrations["x"].upstream
            assert upstream is not None
            client = await gateway.raw()
            assert upstream.tally == (0, 0)  # the gateway's own questions are no calls
            for number in range(3):
                await client.call(number, "x__echo")
            client.send(id="again", method="tools/call", params={"name": "x__late"})
            slow(client, "fails")
            slow(client, "cancelled")
            await wait_in_flight(gateway, 3)
            client.send(method="notifications/cancelled", params={"requestId": "cancelled"})
            await wait_in_flight(gateway, 2)
            assert upstream.tally == (3, 0)
            gateway.kill(worker)
            assert "error" in await client.answer("fails")
            assert upstream.tally == (3, 2)  # what is sent again, it did not answer either

    uvloop.run(main())


def test_a_call_in_flight_is_sent_again_only_where_the_operator_named_the_tool() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            worker = await started(gateway, Resilience(retry_tools=("late",)))
            client = await gateway.raw()
            client.send(id="named", method="tools/call", params={"name": "x__late"})
            slow(client, "other")
            await wait_in_flight(gateway, 2)
            gateway.kill(worker)
            assert "may have run" in message(await client.answer("other"))
            for _ in range(2):  # twice, no more
                worker = await gateway.attach("x", harness.echo_legacy("x"))
                await gateway.ready()
                await wait_in_flight(gateway, 1)
                gateway.kill(worker)
            answer = await client.answer("named")
            assert answer["error"]["data"]["sent"] is True
            async with asyncio.timeout(60):
                while not gateway.reported.retries:
                    await gateway.reported.changed.wait()
                    gateway.reported.changed.clear()
            assert gateway.reported.retries == [("x", 0, 1)]

    uvloop.run(main())


@pytest.mark.parametrize("mode", ["approve", "first-use"])
def test_what_a_tool_says_of_itself_counts_only_once_a_person_approved_it(mode: str) -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            fleet = gateway.gateway.fleet
            worker = await started(gateway, Resilience(), trust=mode)
            fleet.pinned("x", b"")
            if mode == "approve":
                async with asyncio.timeout(20):
                    while not gateway.reported.offers:  # noqa: ASYNC110 - nobody tells
                        await asyncio.sleep(0)
                (_, document) = gateway.reported.offers[-1]
                offered = msgspec.json.decode(document, type=dict[str, dict[str, msgspec.Raw]])
                pins = {key: fingerprint(item) for key, item in offered.items()}
                fleet.pinned("x", msgspec.json.encode(pins))
            client = await gateway.raw()
            client.send(id="says", method="tools/call", params={"name": "x__late"})
            slow(client, "says nothing")
            await wait_in_flight(gateway, 2)
            gateway.kill(worker)
            assert "may have run" in message(await client.answer("says nothing"))
            await gateway.attach("x", harness.echo_legacy("x"))
            if mode == "approve":
                await wait_in_flight(gateway, 1)
                client.send(method="notifications/cancelled", params={"requestId": "says"})
            else:
                assert "may have run" in message(await client.answer("says"))

    uvloop.run(main())


def test_where_no_server_will_come_a_kept_call_fails_at_once() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            worker = await started(gateway, Resilience(), concurrency=1)
            client = await gateway.raw()
            slow(client, "sent")
            client.send(id="waits", method="tools/call", params={"name": "x__echo"})
            await wait_in_flight(gateway, 2)
            gateway.kill(worker)
            await client.answer("sent")
            gateway.gateway.fleet.availability("x", "quarantined", "it failed too often")
            answer = await client.answer("waits")
            assert "did not run" in message(answer)
            assert answer["error"]["data"]["sent"] is False

    uvloop.run(main())


def test_a_kept_call_that_its_client_cancels_is_not_sent() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            worker = await started(gateway, Resilience(), concurrency=1)
            client = await gateway.raw()
            slow(client, "sent")
            slow(client, "waits")
            await wait_in_flight(gateway, 2)
            gateway.kill(worker)
            await client.answer("sent")
            client.send(method="notifications/cancelled", params={"requestId": "waits"})
            await client.request("seen", "ping")
            assert gateway.gateway.fleet.integrations["x"].guard.status()["held"] == 0
            await gateway.attach("x", harness.echo_legacy("x"))
            await gateway.ready()
            assert "result" in await client.call("after", "x__echo")

    uvloop.run(main())


def test_a_flood_of_one_client_does_not_keep_another_waiting() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            await started(gateway, Resilience(), concurrency=1)
            flooding, quiet = await gateway.raw(), await gateway.raw()
            slow(flooding, "first")  # none ends before all are there
            for number in range(200):
                slow(flooding, number, 0.01)
            await wait_in_flight(gateway, 201)
            flooding.send(method="notifications/cancelled", params={"requestId": "first"})
            for number in range(3):
                assert "result" in await quiet.call(number, "x__echo")
            left = gateway.gateway.fleet.status()["integrations"]["x"]["in_flight"]
            assert left > 150  # first come, first served would have left none

    uvloop.run(main())


def test_what_waited_is_not_sent_when_its_client_leaves() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            await started(gateway, Resilience(), concurrency=2)
            leaving = await gateway.raw()
            for number in range(50):
                slow(leaving, number)
            await wait_in_flight(gateway, 50)
            upstream = gateway.gateway.fleet.integrations["x"].upstream
            assert upstream is not None
            before = upstream.asked
            await leaving.close()
            await wait_in_flight(gateway, 0)
            assert upstream.asked == before

    uvloop.run(main())


def test_a_client_that_sends_much_at_once_takes_turns_with_the_others() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            many, few = await gateway.raw(), await gateway.raw()
            router, taken = gateway.gateway.router, []
            receive = router.receive

            def noting(client: Any, sink: Any, message: Any, *more: Any) -> None:
                if message.method == "ping":
                    taken.append(client)
                receive(client, sink, message, *more)

            router.receive = noting  # type: ignore[assignment, method-assign]
            ping = b'{"jsonrpc":"2.0","id":%d,"method":"ping"}\n'
            many.writer.write(b"".join(ping % number for number in range(2000)))
            await many.answer(0)
            few.send(id="one", method="ping")
            await few.answer("one")
            await many.answer(1999)
            assert len(taken) == 2001
            (turn,) = [n for n, client in enumerate(taken) if client is not taken[0]]
            assert turn < 2000

    uvloop.run(main())


def test_the_last_quarter_of_the_places_is_for_clients_that_hold_few() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            await started(gateway, Resilience(), concurrency=8)
            flooding, quiet = await gateway.raw(), await gateway.raw()
            for number in range(100):
                slow(flooding, number)
            await wait_in_flight(gateway, 100)
            assert "result" in await quiet.call(1, "x__echo")

    uvloop.run(main())


def test_every_call_ends_exactly_once_whatever_becomes_of_its_server() -> None:
    chance = random.Random(7)

    async def one_client(gateway: Harness, calls: int) -> list[dict[str, Any]]:
        client = await gateway.raw()
        for number in range(calls):
            tool = chance.choice(["echo", "slow", "late", "silence"])
            params = {"name": f"x__{tool}", "arguments": {"seconds": chance.random() / 20}}
            client.send(id=number, method="tools/call", params=params)
            if chance.random() < 0.2:
                await client.request(f"p{number}", "ping")
        answers = [await client.answer(number) for number in range(calls)]
        await client.request("last", "ping")
        assert client.early == []  # no second answer to anything
        return answers

    async def main() -> None:
        async with harness.running({}) as gateway:
            terms = Resilience(failures=20, open_s=0.1, retry_tools=("late", "echo"))
            worker = await started(gateway, terms, concurrency=4, call_timeout_s=1.0)
            clients = [asyncio.create_task(one_client(gateway, 80)) for _ in range(3)]
            while not all(client.done() for client in clients):
                await asyncio.wait(clients, timeout=chance.random() / 5)
                gateway.kill(worker)
                worker = await gateway.attach("x", harness.echo_legacy("x"))
            answers = [answer for client in clients for answer in client.result()]
            assert len(answers) == 240
            upstream = gateway.gateway.fleet.integrations["x"]
            assert upstream.in_flight == upstream.guard.status()["held"] == 0
            says = {a["error"]["message"].partition("; ")[2] for a in answers if "error" in a}
            assert "it may have run." in says
            assert any("result" in answer for answer in answers)

    uvloop.run(main())


@pytest.mark.parametrize("kept", [False, True])
def test_a_dead_letter_holds_arguments_only_where_the_operator_wants_them(kept: bool) -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            worker = await started(gateway, Resilience(keep_arguments=kept))
            client = await gateway.raw()
            slow(client, 1)
            await wait_in_flight(gateway, 1)
            gateway.kill(worker)
            await client.answer(1)
            (letter,) = await wait_letters(gateway, 1)
            assert (letter["method"], letter["what"]) == ("tools/call", "slow")
            assert letter["may_have_run"] is True
            assert letter["client"] == f"unix:{os.geteuid()}"
            assert letter["arguments_bytes"] == len(b'{"seconds": 600}')
            assert letter.get("arguments") == ('{"seconds": 600}' if kept else None)

    uvloop.run(main())


def test_what_a_modern_client_calls_itself_is_known_without_a_rule_that_asks() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            worker = await started(gateway, Resilience())
            client = await harness.Raw.connect(gateway.socket_path)
            gateway.raws.append(client)
            meta = {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
                "io.modelcontextprotocol/clientInfo": {"name": "me", "version": "1"},
            }
            params = {"name": "x__slow", "arguments": {"seconds": 600}, "_meta": meta}
            client.send(id=1, method="tools/call", params=params)
            await wait_in_flight(gateway, 1)
            gateway.kill(worker)
            await client.answer(1)
            (letter,) = await wait_letters(gateway, 1)
            assert letter["calls_itself"] == "me"

    uvloop.run(main())


def test_dead_letters_are_bounded_and_say_how_many_were_left_out() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            await started(gateway, Resilience(max_waiting=0), concurrency=1)
            client = await gateway.raw()
            for number in range(200):
                slow(client, number)
            await client.request("all are taken", "ping")
            letters = await wait_letters(gateway, 32)
            assert len(letters) < 80
            assert gateway.gateway.fleet.guards.letters.skipped > 100

    uvloop.run(main())


def test_an_idle_server_that_is_frozen_is_found_unfit_and_a_busy_one_is_not() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            # A second: the one that is to be found fit is asked too, until it is busy.
            terms = Resilience(health_interval_s=0.1, health_timeout_s=1)
            worker = await started(gateway, terms)
            await gateway.start("y", harness.echo_legacy("y"), resilience=terms)
            await gateway.ready()
            client = await gateway.raw()
            slow_params = {"name": "y__slow", "arguments": {"seconds": 600}}
            client.send(id="busy", method="tools/call", params=slow_params)
            os.kill(gateway.servers[worker].pid, signal.SIGSTOP)
            assert "health check" in await gateway.reported.wait_unfit(worker)
            assert list(gateway.reported.unfit_reasons) == [worker]

    uvloop.run(main())


def test_progress_extends_a_call_up_to_its_limit() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            await started(gateway, Resilience(call_limit_s=1.0), call_timeout_s=0.4)
            client = await gateway.raw()
            params = {"name": "x__busy", "_meta": {"progressToken": "p"}}
            began = asyncio.get_running_loop().time()
            ended = message(await client.request(1, "tools/call", **params))
            assert asyncio.get_running_loop().time() - began > 0.9
            assert "within 1 s" in ended
            assert "resilience.call_limit_s" in ended

    uvloop.run(main())
