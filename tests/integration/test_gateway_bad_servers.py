"""One server misbehaves; its calls end, its neighbours notice nothing, nothing hangs."""

import asyncio
import json
import os
import time
from dataclasses import replace
from typing import Any

import gateway_harness as harness
import pytest
import uvloop

from vsm.gateway import upstream as upstream_module
from vsm.gateway.integration import Settings
from vsm.protocol import era


async def neighbours_and(*bad: str, **settings: Any) -> Any:
    return harness.running(
        {"good": harness.echo_legacy("good"), "bad": harness.echo_legacy("bad", *bad)}, **settings
    )


def echoed(answer: dict[str, Any]) -> str:
    return str(json.loads(answer["result"]["content"][0]["text"])["server"])


@pytest.mark.parametrize(
    ("tool", "says"),
    [
        ("bad_utf8", "invalid UTF-8"),
        ("endless", "Raise max_frame_bytes"),
        ("deep", "nested too deeply"),
        ("silence", "did not answer within 1 s"),
    ],
)
def test_a_broken_answer_ends_its_call_with_the_reason_and_harms_no_other(
    tool: str, says: str
) -> None:
    async def main() -> None:
        # A line without end is read slowly, and whatever comes behind it waits.
        patience_s = 1.0 if tool == "silence" else 20.0
        async with await neighbours_and(call_timeout_s=patience_s) as gateway:
            client = await gateway.raw()
            client.send(id=1, method="tools/call", params={"name": f"bad__{tool}"})
            assert echoed(await client.call(2, "good__echo")) == "good"
            error = (await client.answer(1))["error"]
            assert says in error["message"]
            assert error["message"].startswith("bad ")
            assert error["data"] == {"integration": "bad", "sent": True}
            assert echoed(await client.call(3, "bad__echo")) == "bad"

    uvloop.run(main())


# What a server does: how many of two calls are answered, and what is said to those that are not.
WAYS: dict[str, tuple[int, str]] = {
    "bad_utf8": (0, "invalid UTF-8"),
    "garbage": (2, ""),
    "endless": (0, "Raise max_frame_bytes"),
    "deep": (0, "nested too deeply"),
    "big": (2, ""),
    "unknown_id": (2, ""),
    "duplicate": (2, ""),
    "same_id": (2, ""),
    "silence": (0, "did not answer within 1 s"),
    "flood": (2, ""),
    "deaf": (1, "did not answer within 1 s"),
    "die": (0, "while the request was in flight"),
    "late": (0, "did not answer within 1 s"),
    "change": (2, ""),
    "mute": (0, "will be started again"),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_a_server_does_its_neighbour_answers_every_call_meanwhile(way: str) -> None:
    answered, says = WAYS[way]
    asked = 1 if way == "endless" else 2  # two would be written into each other's line
    large = {"max_frame_bytes": 64 * 2**20} if way == "big" else {}
    patience_s = 1.0 if "did not answer" in says else 60.0  # what is read slowly comes late

    async def main() -> None:
        mode = [way] if way == "mute" else []
        async with harness.running({"good": harness.echo_legacy("good")}) as gateway:
            bad = harness.echo_legacy("bad", *mode)
            start_s = 1.0 if mode else 60.0
            worker = await gateway.start(
                "bad", bad, call_timeout_s=patience_s, start_timeout_s=start_s, **large
            )
            if not mode:
                await gateway.ready()
            client, other = await gateway.raw(roots={}), await gateway.raw()
            arguments = {"bytes": 50_000_000} if way == "big" else {}
            ended: list[dict[str, Any]] = []

            async def misuse() -> None:
                for number in range(asked):
                    params = {"name": f"bad__{way}", "arguments": arguments}
                    client.send(id=f"bad {number}", method="tools/call", params=params)
                while len(ended) < asked:
                    message = await client.receive()
                    if message.get("method") == "roots/list":
                        client.send(id=message["id"], result={"roots": []})
                    elif "method" not in message:
                        ended.append(message)

            misused = asyncio.create_task(misuse())
            calls = 0
            while calls < 100 or not misused.done():
                assert echoed(await other.call(f"good {calls}", "good__echo")) == "good"
                calls += 1
            await misused
            errors = [one["error"]["message"] for one in ended if "error" in one]
            assert len(errors) == asked - answered, errors
            assert all(says in text and text.startswith("bad") for text in errors), errors
            heard = {message.get("method") for message in other.early}
            assert heard <= {"notifications/tools/list_changed"}, "of the other's tools"
            neighbour = gateway.gateway.fleet.integrations["good"].upstream
            assert neighbour is not None
            assert (neighbour.broken_frames, neighbour.strays, neighbour.tally[1]) == (0, 0, 0)
            assert gateway.reported.unfit_reasons.keys() <= {worker}
            assert {who for who, _ in gateway.reported.notices} <= {worker}

    uvloop.run(main())


@pytest.mark.parametrize("tool", ["garbage", "unknown_id", "duplicate"])
def test_noise_between_answers_is_counted_and_passed_to_nobody(tool: str) -> None:
    async def main() -> None:
        async with await neighbours_and() as gateway:
            client = await gateway.raw()
            client.send(id=1, method="tools/call", params={"name": f"bad__{tool}"})
            assert "result" in await client.receive()
            assert echoed(await client.call(2, "bad__echo")) == "bad"
            upstream = gateway.gateway.fleet.integrations["bad"].upstream
            assert upstream is not None
            async with asyncio.timeout(20):
                while not upstream.strays + upstream.broken_frames:
                    await client.call(3, "bad__echo")

    uvloop.run(main())


def test_a_flood_of_notifications_is_read_slowly_and_neighbours_stay_quick() -> None:
    async def main() -> None:
        async with await neighbours_and() as gateway:
            client = await gateway.raw()
            await client.call(1, "bad__flood")
            cpu_s, began_s = time.process_time(), time.monotonic()
            for number in range(200):
                assert echoed(await client.call(f"g{number}", "good__echo")) == "good"
                await asyncio.sleep(0.005)  # a paced client: the share of the CPU is what counts
            busy = (time.process_time() - cpu_s) / (time.monotonic() - began_s)
            assert busy < 0.5

    uvloop.run(main())


def test_a_server_that_dies_fails_its_calls_at_once_and_says_that_they_may_have_run() -> None:
    async def main() -> None:
        async with await neighbours_and(concurrency=1) as gateway:
            client = await gateway.raw()
            for number, name in enumerate(("bad__slow", "bad__echo")):
                params = {"name": name, "arguments": {"seconds": 600}}
                client.send(id=number, method="tools/call", params=params)
            assert echoed(await client.call(2, "good__echo")) == "good"
            gateway.kill("bad-2")
            running, waiting = await client.receive(), await client.receive()
            assert "it may have run" in running["error"]["message"]
            assert running["error"]["data"]["sent"] is True
            assert "it did not run" in waiting["error"]["message"]
            assert waiting["error"]["data"]["sent"] is False
            assert "closed its" in await gateway.reported.wait_unfit("bad-2")
            gateway.gateway.fleet.detach("bad-2", "killed by signal 9")
            gateway.gateway.fleet.availability("bad", "quarantined", "3 deaths in 60 s")
            error = (await client.call(4, "bad__echo"))["error"]
            assert "quarantined (3 deaths in 60 s)" in error["message"]
            assert "vsm start bad" in error["message"]
            assert error["data"]["state"] == "quarantined"
            worker = await gateway.attach("bad", harness.echo_legacy("bad"))
            assert echoed(await client.call(5, "bad__echo")) == "bad"
            assert worker in gateway.reported.sessions

    uvloop.run(main())


def test_a_server_that_exits_at_once_or_never_answers_is_reported_unfit() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            exits = await gateway.start("exits", harness.echo_legacy("x", "exit"))
            mute = await gateway.start(
                "mute", harness.echo_legacy("x", "mute"), start_timeout_s=0.5
            )
            assert "closed its" in await gateway.reported.wait_unfit(exits)
            assert "did not answer within 0.5 s" in await gateway.reported.wait_unfit(mute)
            client = await gateway.raw()
            assert (await client.request(1, "tools/list"))["result"]["tools"] == []

    uvloop.run(main())


def test_a_server_of_nothing_but_garbage_is_given_up() -> None:
    async def main() -> None:
        async with harness.running({}) as gateway:
            argv = ["/bin/sh", "-c", "while :; do echo garbage; done"]
            worker = await gateway.start("bad", argv)
            reason = await gateway.reported.wait_unfit(worker)
            assert f"sent {upstream_module.MAX_BROKEN_FRAMES} invalid messages" in reason

    uvloop.run(main())


def test_a_big_result_passes_whole_and_quickly_where_it_is_allowed() -> None:
    async def main() -> None:
        async with await neighbours_and(max_frame_bytes=64 * 2**20) as gateway:
            client = await gateway.raw()
            began_s = time.process_time()  # gateway and client; other work does not count
            answer = await client.call(1, "bad__big", bytes=50_000_000)
            assert len(answer["result"]["content"][0]["text"]) == 50_000_000
            assert time.process_time() - began_s < 6

    uvloop.run(main())


def test_a_client_that_never_reads_is_cut_off_and_the_others_are_served() -> None:
    async def main() -> None:
        async with await neighbours_and(max_frame_bytes=64 * 2**20) as gateway:
            greedy = await gateway.raw()
            patient = await gateway.raw()
            greedy.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for number in range(8):
                params = {"name": "bad__big", "arguments": {"bytes": 20_000_000}}
                greedy.send(id=number, method="tools/call", params=params)
            async with asyncio.timeout(30):
                while gateway.gateway.status()["clients"] == 2:
                    assert echoed(await patient.call("p", "good__echo")) == "good"

    uvloop.run(main())


def test_a_saturated_server_refuses_what_it_cannot_hold() -> None:
    async def main() -> None:
        async with await neighbours_and(concurrency=1) as gateway:
            flooding = await gateway.raw()
            clients = [flooding, await gateway.raw()]
            for client in clients:
                for number in range(250):
                    params = {"name": "bad__slow", "arguments": {"seconds": 600}}
                    client.send(id=number, method="tools/call", params=params)
                await client.request("all are taken", "ping")
            assert "saturated" in (await clients[1].receive())["error"]["message"]
            assert echoed(await flooding.call("g", "good__echo")) == "good"

    uvloop.run(main())


def test_a_draining_integration_finishes_its_calls_and_takes_no_more() -> None:
    async def main() -> None:
        async with await neighbours_and() as gateway:
            client = await gateway.raw(roots={})
            params = {"name": "bad__ask", "arguments": {"method": "roots/list"}}
            client.send(id=1, method="tools/call", params=params)
            question = await client.receive()
            gateway.gateway.fleet.drain("bad")
            assert "draining" in (await client.call(3, "bad__echo"))["error"]["message"]
            assert gateway.reported.idle_names == []
            client.send(id=question["id"], result={"roots": []})
            assert "result" in await client.answer(1)
            await gateway.reported.wait_idle("bad")

    uvloop.run(main())


def test_a_successor_resumes_a_running_server_in_the_middle_of_its_line() -> None:
    async def main() -> None:
        async with harness.running({"old": harness.echo_legacy("old")}) as first:
            record = first.reported.sessions["old-1"]
            upstream = first.gateway.fleet.integrations["old"].upstream
            assert upstream is not None
            assert upstream._writer is not None
            reader = upstream.intake._transport
            assert reader is not None
            pipes = [t.get_extra_info("pipe").fileno() for t in (upstream._writer, reader)]
            # What the first gateway wrote and read last: half a line each way.
            kept = [os.dup(fd) for fd in pipes]
            os.write(kept[0], b'{"jsonrpc":"2.0","id":1,"method":"tools/ca')
            reader.pause_reading()
            async with harness.running({}) as second:
                second.gateway.add(Settings(name="old", prefix="old"))
                second.gateway.fleet.attach("old-1", "old", (kept[0], kept[1]), record)
                await second.ready()
                client = await second.raw()
                assert echoed(await client.call(1, "old__echo")) == "old"

    uvloop.run(main())


def test_an_oscillating_list_is_fetched_at_a_bounded_rate() -> None:
    async def main() -> None:
        async with await neighbours_and() as gateway:
            client = await gateway.raw()
            for number in range(20):
                await client.call(number, "bad__change")
            changed = await client.receive()
            assert changed["method"] == "notifications/tools/list_changed"
            tools = (await client.request("list", "tools/list"))["result"]["tools"]
            assert "bad__extra0" in {tool["name"] for tool in tools}

    uvloop.run(main())


def test_an_answer_after_its_time_out_or_cancellation_reaches_nobody() -> None:
    async def main() -> None:
        async with await neighbours_and(call_timeout_s=0.3) as gateway:
            client = await gateway.raw()
            assert "did not answer" in (await client.call(1, "bad__late"))["error"]["message"]
            bad = gateway.gateway.fleet.integrations["bad"]
            bad.settings = replace(bad.settings, call_timeout_s=60)
            client.send(id=2, method="tools/call", params={"name": "bad__late"})
            client.send(method="notifications/cancelled", params={"requestId": 2})
            upstream = gateway.gateway.fleet.integrations["bad"].upstream
            assert upstream is not None
            async with asyncio.timeout(20):
                while upstream.strays < 2:
                    assert echoed(await client.call(3, "bad__echo")) == "bad"
            assert client.early == []
            late = [text for worker, text in gateway.reported.notices if worker == "bad-2"]
            assert late == [
                "bad sent an answer to a request that was answered, cancelled or timed out."
            ]

    uvloop.run(main())


def test_a_server_that_stops_reading_fills_its_own_queue_and_nobody_elses() -> None:
    async def main() -> None:
        async with await neighbours_and(call_timeout_s=2.0) as gateway:
            client = await gateway.raw()
            await client.call("deaf", "bad__deaf")
            for number in range(200):
                params = {"name": "bad__echo", "arguments": {"x": "y" * 200_000}}
                client.send(id=number, method="tools/call", params=params)
            assert echoed(await client.call("g", "good__echo")) == "good"
            errors = [(await client.answer(number))["error"] for number in range(200)]
            said = {error["message"][:16] for error in errors}
            assert said == {"bad did not answ", "bad is saturated"}
            assert echoed(await client.call("h", "good__echo")) == "good"

    uvloop.run(main())


def test_two_questions_under_one_id_are_both_answered() -> None:
    async def main() -> None:
        async with await neighbours_and() as gateway:
            client = await gateway.raw(roots={})
            client.send(id=1, method="tools/call", params={"name": "bad__same_id"})
            asked = []
            while len(asked) < 2:
                message = await client.receive()
                if message.get("method") == "roots/list":
                    asked.append(message["id"])
                    client.send(id=message["id"], result={"roots": []})
            assert len(set(asked)) == 2
            assert echoed(await client.call(2, "bad__echo")) == "bad"

    uvloop.run(main())


def test_what_is_not_known_passes_where_only_one_server_can_mean_it() -> None:
    async def main() -> None:
        async with harness.running({"old": harness.echo_legacy("old")}) as gateway:
            client = await gateway.raw()
            answer = await client.request(1, "x/novel", a=1)
            assert answer["result"] == {"novel": {"a": 1}}
            client.send(id=2, method="tools/call", params={"name": "old__novel"})
            told = await client.receive()
            assert (told["method"], told["params"]) == ("notifications/x/novel", {"n": 1})
            quoted = await client.request(3, 'x","id":9,"y":"')
            assert quoted["error"]["code"] == -32601
            await gateway.start("other", harness.echo_legacy("other"))
            assert (await client.request(4, "x/novel"))["error"]["code"] == -32601

    uvloop.run(main())


def test_each_way_of_misbehaving_is_reported_once() -> None:
    async def main() -> None:
        async with await neighbours_and() as gateway:
            client = await gateway.raw()
            for number, tool in enumerate(("garbage", "unknown_id", "duplicate", "endless") * 2):
                await client.call(number, f"bad__{tool}")
            texts = [text for _, text in gateway.reported.notices]
            assert len(texts) == len(set(texts)) >= 4
            assert all(text.startswith("bad sent ") for text in texts)

    uvloop.run(main())


def test_a_slow_modern_server_that_never_answers_initialize_is_spoken_to_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(era, "PROBE_TIMEOUT_S", 0.05)

    async def main() -> None:
        async with harness.running({}) as gateway:
            server = gateway.play("far")
            late = await server.receive("server/discover")
            await server.receive("initialize")
            found = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
            server.send(id=late["id"], result=found)
            await server.answer("tools/list", tools=[])
            await gateway.ready()
            assert gateway.reported.sessions[server.worker]["era"] == "modern"

    uvloop.run(main())
