"""Rates at the gateway: who floods is held or refused, and nobody else notices."""

import asyncio
from typing import Any

import gateway_harness as harness

from vsm.core.rates import Rate
from vsm.gateway.gate_rates import RateGate, Rule, gate_maker, rules_of
from vsm.gateway.integration import Settings
from vsm.gateway.resilience import Resilience

SLOW = 1e-3  # calls a second: no second token within a test


def guard(gateway: harness.Harness, *rules: Rule) -> None:
    gateway.gateway.fleet.guard("rates", gate_maker(rules))


def refused(answer: dict[str, Any]) -> bool:
    return "error" in answer and "times a second" in answer["error"]["message"]


def test_each_client_has_a_bucket_of_its_own_and_other_integrations_have_none() -> None:
    async def scenario() -> None:
        servers = {"one": harness.echo_legacy(), "two": harness.echo_legacy()}
        async with harness.running(servers) as gateway:
            guard(gateway, Rule("*", "*", "one", Rate(SLOW, 3)))
            flood, other = await gateway.raw(), await gateway.raw()
            answers = [await flood.call(i, "one__echo", text="x") for i in range(5)]
            assert [refused(answer) for answer in answers] == [False] * 3 + [True] * 2
            assert answers[4]["error"]["data"]["retryAfterS"] > 0
            assert not refused(await flood.call(9, "two__echo", text="x"))
            assert not refused(await other.call(1, "one__echo", text="x"))
            assert gateway.gateway.fleet.integrations["two"].gates == ()

    asyncio.run(scenario())


def test_rule_is_chosen_by_the_name_that_a_client_gives_itself() -> None:
    async def scenario() -> None:
        async with harness.running({"one": harness.echo_legacy()}) as gateway:
            guard(gateway, Rule("*", "somebody", "*", Rate(SLOW, 1)))
            raw = await gateway.raw()  # calls itself "raw"
            answers = [await raw.call(i, "one__echo", text="x") for i in range(3)]
            assert not any(map(refused, answers))

    asyncio.run(scenario())


def test_call_that_may_wait_is_held_and_answered_in_order() -> None:
    async def scenario() -> None:
        async with harness.running({"one": harness.echo_legacy()}) as gateway:
            guard(gateway, Rule("*", "*", "*", Rate(20.0, 1, wait_s=30.0)))
            raw = await gateway.raw()
            for number in range(4):
                params = {"name": "one__echo", "arguments": {"text": str(number)}}
                raw.send(id=number, method="tools/call", params=params)
            order = [(await raw.receive())["id"] for _ in range(4)]
            assert order == [0, 1, 2, 3]
            gate: Any = gateway.gateway.fleet.integrations["one"].gates[-1]
            assert (gate.held, gate.refused) == (0, 0)

    asyncio.run(scenario())


def test_held_call_that_is_cancelled_never_reaches_the_server() -> None:
    async def scenario() -> None:
        async with harness.running({"one": harness.echo_legacy()}) as gateway:
            guard(gateway, Rule("*", "*", "*", Rate(2.0, 1, wait_s=30.0)))
            raw = await gateway.raw()
            await raw.call(1, "one__echo", text="x")
            params = {"name": "one__echo", "arguments": {"text": "held"}}
            raw.send(id=2, method="tools/call", params=params)
            raw.send(method="notifications/cancelled", params={"requestId": 2})
            assert (await raw.call(3, "one__echo", text="last"))["id"] == 3
            upstream = gateway.gateway.fleet.integrations["one"].upstream
            assert upstream is not None
            assert upstream.in_flight == 0

    asyncio.run(scenario())


def test_weights_are_known_to_the_queue_of_whom_they_concern() -> None:
    async def scenario() -> None:
        servers = {"one": harness.echo_legacy(), "two": harness.echo_legacy()}
        async with harness.running(servers) as gateway:
            rows = [{"client": "*", "calls_itself": "raw", "integration": "one"}]
            terms = {"per_second": 0.0, "burst": 1, "wait_s": 0.0, "weight": 4}
            guard(gateway, *rules_of({"rates": [row | terms for row in rows]}))
            raw = await gateway.raw()
            assert not refused(await raw.call(1, "one__echo", text="x"))
            (client,) = gateway.gateway.router.clients
            integrations = gateway.gateway.fleet.integrations
            assert integrations["one"].guard.weigh(client) == 4
            assert integrations["one"].guard.weigh(None) == 1
            assert integrations["two"].guard.weigh(client) == 1
            assert not any(isinstance(gate, RateGate) for gate in integrations["one"].gates)

    asyncio.run(scenario())


def test_rate_that_is_used_up_is_not_whole_again_by_the_breaker_a_reload_or_other_gates() -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {"call_timeout_s": 0.05, "resilience": Resilience(failures=2)}
        async with harness.running({"one": harness.echo_legacy()}, **settings) as gateway:
            fleet = gateway.gateway.fleet
            guard(gateway, Rule("*", "*", "*", Rate(SLOW, 2)))
            raw = await gateway.raw()
            for number in range(2):
                answer = await raw.call(number, "one__silence")
                assert "did not answer" in answer["error"]["message"]
            assert [phase for _, phase, _ in gateway.reported.breakers] == ["open"]
            assert refused(await raw.call(3, "one__echo", text="x"))
            gateway.gateway.configure([Settings(name="one", prefix="one")])
            assert refused(await raw.call(4, "one__echo", text="x"))
            fleet.guard("queue", lambda _integration: None)
            assert refused(await raw.call(5, "one__echo", text="x"))

    asyncio.run(scenario())
