"""The gate of rules in a gateway of its own: it fails closed, holds, releases, and tells of it."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import gateway_harness as harness
import pytest

from vsm.core.policy_rules import Asked, Decision, compile_rules, to_body
from vsm.gateway import gate_rules
from vsm.gateway.gate_rules import Question, RuleGate
from vsm.gateway.integration import Settings

TABLE: dict[str, Any] = {
    "rules": [
        {"name": "r1", "action": "deny", "kind": "tool", "what": "garbage"},
        {"name": "r2", "action": "ask", "kind": "tool", "what": "echo", "calls_itself": "raw"},
    ]
}
RULES = compile_rules(TABLE)
ME = f"unix:{os.geteuid()}"


class Outlet:
    """What a supervisor would hear."""

    def __init__(self) -> None:
        self.denials: list[tuple[Asked, Decision, int]] = []
        self.questions: asyncio.Queue[Question] = asyncio.Queue()
        self.taken_back: asyncio.Queue[int] = asyncio.Queue()
        self.pains: list[tuple[str, str, str]] = []
        self.answers = True

    def denied(self, asked: Asked, decision: Decision, repeats: int) -> None:
        self.denials.append((asked, decision, repeats))

    def asking(self, question: Question) -> bool:
        self.questions.put_nowait(question)
        return self.answers

    def withdrawn(self, question_id: int) -> None:
        self.taken_back.put_nowait(question_id)

    def spent(self, calls: dict[str, int]) -> None:
        del calls

    def hurt(self, severity: str, subject: str, cause: str, detail: str) -> None:
        del detail
        self.pains.append((severity, subject, cause))


@asynccontextmanager
async def guarded(
    digest: str = RULES.digest, *, take: bool = True, **settings: Any
) -> AsyncIterator[tuple[harness.Harness, RuleGate, Outlet]]:
    async with harness.running({"it": harness.echo_legacy("it")}) as h:
        outlet = Outlet()
        gate = RuleGate(outlet, digest=digest, **settings)
        if take:
            assert gate.take(to_body(RULES))
        h.gateway.fleet.guard("rules", gate.guards)
        try:
            yield h, gate, outlet
        finally:
            gate.close("over")


async def soon(queue: "asyncio.Queue[Any]") -> Any:
    async with asyncio.timeout(20):
        return await queue.get()


def test_calls_wait_for_the_rules_and_are_then_judged() -> None:
    async def scenario() -> None:
        async with guarded(take=False) as (h, gate, outlet):
            client = await h.raw()
            client.send(id=1, method="tools/call", params={"name": "it__log", "arguments": {}})
            client.send(id=2, method="tools/call", params={"name": "it__garbage", "arguments": {}})
            client.send(id=3, method="ping")
            await client.answer(3)
            assert gate.status()["waiting_for_rules"] == 2
            others = compile_rules({"rules": TABLE["rules"][:1]})
            assert not gate.take(to_body(others)), "rules that nobody named are not taken"
            assert not gate.take({"rules": "none"})
            assert gate.status()["rules"] is None
            assert gate.take(to_body(RULES))
            assert "result" in await client.answer(1)
            assert (await client.answer(2))["error"]["code"] == -32003
            assert outlet.denials[0][0] == Asked(ME, "raw", "it", "tool", "garbage")

    asyncio.run(scenario())


def test_without_rules_in_time_calls_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_rules, "RULES_TIMEOUT_S", 0.05)

    async def scenario() -> None:
        async with guarded(take=False) as (h, _gate, _outlet):
            client = await h.raw()
            answer = await client.call(1, "it__echo", text="x")
            assert answer["error"]["code"] == -32000
            assert "rules are not here yet" in answer["error"]["message"]

    asyncio.run(scenario())


def test_no_rules_are_no_gate() -> None:
    async def scenario() -> None:
        async with harness.running({"it": harness.echo_legacy("it")}) as h:
            gate = RuleGate(Outlet(), digest="")
            h.gateway.fleet.guard("rules", gate.guards)
            assert gate not in h.gateway.fleet.integrations["it"].gates
            elsewhere = compile_rules({"rules": [{**TABLE["rules"][0], "integration": "other"}]})
            gate.expect(elsewhere.digest, denials_per_minute=30)
            h.gateway.fleet.guard("rules", gate.guards)
            assert gate in h.gateway.fleet.integrations["it"].gates, "until they are here"
            assert gate.take(to_body(elsewhere))
            h.gateway.fleet.guard("rules", gate.guards)
            assert gate not in h.gateway.fleet.integrations["it"].gates

    asyncio.run(scenario())


def test_a_held_call_is_released_refused_or_taken_back() -> None:
    async def scenario() -> None:
        async with guarded() as (h, gate, outlet):
            client = await h.raw()
            echo = {"name": "it__echo", "arguments": {"text": "x"}}
            for number in (1, 2, 3):
                client.send(id=number, method="tools/call", params=echo)
            first, second, third = [await soon(outlet.questions) for _ in range(3)]
            assert first.asked == Asked(ME, "raw", "it", "tool", "echo")
            assert first.text == "", "arguments are not shown unless the operator says so"
            assert first.arguments.shape() == {"text": "text of 1"}
            gate.verdict(first.id, "denied, by root", approved=False)
            denied = await client.answer(1)
            assert denied["error"] == {
                "code": -32003,
                "message": "Not approved: denied, by root.",
                "data": {"integration": "it", "sent": False},
            }
            gate.verdict(second.id, "approved", approved=True)
            assert "result" in await client.answer(2)
            client.send(method="notifications/cancelled", params={"requestId": 3})
            assert await soon(outlet.taken_back) == third.id
            gate.verdict(third.id, "approved", approved=True)
            gate.verdict(first.id, "approved", approved=True)
            assert "result" in await client.call(4, "it__log")
            row = h.gateway.fleet.integrations["it"].demand
            assert row.outcomes()["denied"] == 1

    asyncio.run(scenario())


def test_what_its_server_changed_while_a_call_was_held_is_not_called() -> None:
    async def scenario() -> None:
        async with guarded() as (h, gate, outlet):
            h.gateway.add(Settings(name="it", prefix="it", trust="first-use"))
            h.gateway.fleet.pinned("it", b"")
            client = await h.raw()
            echo = {"name": "it__echo", "arguments": {"text": "x"}}
            client.send(id=1, method="tools/call", params=echo)
            question = await soon(outlet.questions)
            h.gateway.fleet.pinned("it", b'{"tool echo":"the hash of what was approved"}')
            gate.verdict(question.id, "approved", approved=True)
            answer = await client.answer(1)
            assert "changed since it was approved" in answer["error"]["message"]
            assert "vsm trust diff it" in answer["error"]["message"]
            assert not h.gateway.fleet.integrations["it"].in_flight
            assert "result" in await client.call(2, "it__log"), "what did not change is called"

    asyncio.run(scenario())


def test_an_approval_by_rules_that_hold_no_more_lets_nothing_pass() -> None:
    strict = compile_rules({"default": "deny"})

    async def scenario() -> None:
        async with guarded() as (h, gate, outlet):
            client = await h.raw()
            echo = {"name": "it__echo", "arguments": {"text": "x"}}
            for number in (1, 2):
                client.send(id=number, method="tools/call", params=echo)
            first, second = [await soon(outlet.questions) for _ in range(2)]
            gate.expect(strict.digest, denials_per_minute=30)
            gate.verdict(first.id, "approved", approved=True)
            assert gate.status()["waiting_for_rules"] == 1, "until the new ones are here"
            assert gate.take(to_body(strict))
            gate.verdict(second.id, "approved", approved=True)
            for number in (1, 2):
                answer = await client.answer(number)
                assert "Denied by the default" in answer["error"]["message"]

    asyncio.run(scenario())


def test_a_grant_lets_pass_until_it_ends() -> None:
    async def scenario() -> None:
        async with guarded() as (h, gate, outlet):
            client = await h.raw()
            key = (RULES.rules[1].digest, ME, "it", "tool", "echo")
            gate.grant({key: time.clock_gettime(time.CLOCK_BOOTTIME) + 3600})
            assert "result" in await client.call(1, "it__echo", text="x")
            gate.grant({key: time.clock_gettime(time.CLOCK_BOOTTIME) - 1})
            outlet.answers = False
            answer = await client.call(2, "it__echo", text="x")
            assert answer["error"]["data"]["reason"] == "nobody can be asked now"

    asyncio.run(scenario())


def test_what_a_client_calls_itself_is_heard_in_both_eras() -> None:
    async def scenario() -> None:
        async with guarded() as (h, gate, outlet):
            async with h.client("http") as client:
                await client.call_tool("it__echo", {"text": "x"})  # it has another name
            assert outlet.questions.empty()
            meta = {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
                "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
            }
            raw = await h.raw()
            params = {"name": "it__echo", "arguments": {"text": "x"}, "_meta": meta}
            raw.send(id=9, method="tools/call", params=params)
            question = await soon(outlet.questions)
            assert question.asked.calls_itself == "raw"
            gate.verdict(question.id, "no", approved=False)
            await raw.answer(9)

    asyncio.run(scenario())


def test_a_person_is_not_flooded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_rules, "QUESTIONS_PER_MINUTE", 3)

    async def scenario() -> None:
        async with guarded() as (h, gate, outlet):
            client = await h.raw()
            echo = {"name": "it__echo", "arguments": {"text": "x"}}
            for number in range(3):
                client.send(id=number, method="tools/call", params=echo)
                gate.verdict((await soon(outlet.questions)).id, "no", approved=False)
                await client.answer(number)
            answer = await client.call(9, "it__echo", text="x")
            assert answer["error"]["data"]["reason"] == "asks too often"
            assert outlet.questions.empty()

    asyncio.run(scenario())


def test_many_may_not_wait_and_denials_beyond_a_rate_hurt() -> None:
    async def scenario() -> None:
        async with guarded(denials_per_minute=2) as (h, _gate, outlet):
            clients = [await h.raw() for _ in range(4)]  # one client by whatever connection
            echo = {"name": "it__echo", "arguments": {"text": "x"}}
            bound = gate_rules.MAX_HELD_OF_CLIENT
            for number in range(bound):
                clients[number % 4].send(id=number, method="tools/call", params=echo)
                await soon(outlet.questions)
            for number in range(bound, bound + 4):
                answer = await clients[number % 4].call(number, "it__echo", text="x")
                assert answer["error"]["data"]["reason"] == "too many calls wait for approval"
            assert outlet.pains == [("pain", ME, "denials")], "once"
            assert len(outlet.denials) == 1, "the like of it is counted"

    asyncio.run(scenario())


def test_who_is_denied_is_told_to_wait_only_where_that_helps() -> None:
    row = {"action": "allow", "kind": "tool", "what": "echo", "calls": 1, "period_s": 600}
    few = compile_rules({"rules": [{"name": "few", **row}], "default": "deny"})

    async def scenario() -> None:
        async with guarded(few.digest, take=False) as (h, gate, _):
            assert gate.take(to_body(few))
            client = await h.raw()
            assert "result" in await client.call(1, "it__echo", text="x")
            used_up = (await client.call(2, "it__echo", text="x"))["error"]["message"]
            assert used_up.endswith("are used up. Try again later.")
            denied = (await client.call(3, "it__slow"))["error"]["message"]
            assert denied.endswith("Do not try again unchanged.")

    asyncio.run(scenario())


def test_budget_that_is_used_up_hurts_once_until_calls_pass_again() -> None:
    row = {"name": "few", "action": "allow", "kind": "tool", "what": "echo"}
    few = compile_rules({"rules": [{**row, "calls": 1, "period_s": 2}]})

    async def scenario() -> None:
        quiet = {"denials_per_minute": 1_000_000}
        async with guarded(few.digest, take=False, **quiet) as (h, gate, outlet):
            assert gate.take(to_body(few))
            client = await h.raw()
            denied, number = 0, 0
            end = time.monotonic() + 60
            while ("relief", "few", "budget") not in outlet.pains:
                assert time.monotonic() < end
                number += 1
                denied += "error" in await client.call(number, "it__echo", text="x")
            assert outlet.pains == [("pain", "few", "budget"), ("relief", "few", "budget")]
            assert denied >= 1

    asyncio.run(scenario())
