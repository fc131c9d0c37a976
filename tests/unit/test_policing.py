"""The supervisor's part of policy, with a supervisor that only remembers."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from vsm.cli import main
from vsm.commands import approvals as commands_approvals
from vsm.configuration.config import Config
from vsm.configuration.policy import MOST_BYTES, Policy, RuleDocument
from vsm.core import approvals
from vsm.core.policy_rules import compile_rules, to_body
from vsm.core.restart import Changed
from vsm.errors import NotFoundError, VsmError
from vsm.governance.approvals import RULE, steady_s
from vsm.governance.policing import FORGOTTEN_S, MOST_PAINS, Policing
from vsm.journal.reader import Now
from vsm.journal.records import JOURNAL_FILE, Decision, Outcome, Retention, json_text
from vsm.journal.store import open_store
from vsm.link import MAX_MESSAGE_BYTES
from vsm.messages import (
    Asking,
    Felt,
    Grants,
    Hurt,
    IntegrationRow,
    SnapshotIn,
    Start,
    Verdict,
    Withdrawn,
)

RULES = Policy(rules=(RuleDocument(action="ask", tool="x"),), attempts_per_minute=10)


class Link:
    """A system's control link."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> bool:
        self.sent.append(message)
        return True


class Journal:
    """What is recorded."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.decisions: list[dict[str, Any]] = []
        self.outcomes: dict[str, Any] = {}

    def event(self, kind: str, **more: Any) -> int:
        self.events.append((kind, more))
        return 1

    def decide(self, subject: str, **more: Any) -> str:
        self.decisions.append({"subject": subject, **more})
        return str(len(self.decisions))

    def outcome(self, key: str, outcome: Any) -> int:
        assert key not in self.outcomes, "settled once"
        self.outcomes[key] = outcome
        return 1


class Log:
    """What is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda what, **_more: self.lines.append((level, what))


class World:
    """A supervisor as Policing sees it."""

    def __init__(self, policy: Policy = RULES) -> None:
        self.journal, self.log = Journal(), Log()
        self.links = {"system1": Link(), "system5": Link()}
        self.phases = {"system5": "ready"}
        running = {name: SimpleNamespace(link=link, epoch=7) for name, link in self.links.items()}
        self.systems = SimpleNamespace(
            running=running, systems=SimpleNamespace(phase=lambda name: self.phases[name])
        )
        self.config = msgspec.structs.replace(Config(), policy=policy)
        self.recorder = SimpleNamespace(journal=self.journal)
        self.stopping = False
        self.policing = Policing(self)  # type: ignore[arg-type]

    def told(self, system: str, kind: type) -> list[Any]:
        return [one for one in self.links[system].sent if isinstance(one, kind)]


def asking(call: int = 1, timeout_s: float = 30.0) -> Asking:
    return Asking(
        id=call,
        rule="rule 1",
        rule_digest="d",
        client="unix:0",
        integration="it",
        asks="tool",
        name="x",
        size_bytes=9,
        digest="0" * 64,
        shape={"path": "text of 3"},
        timeout_s=timeout_s,
    )


def run(scenario: Callable[[World], Any], policy: Policy = RULES) -> None:
    async def main() -> None:
        world = World(policy)
        try:
            await scenario(world)
        finally:
            world.policing.close()

    asyncio.run(main())


def test_pain_is_logged_recorded_and_told_in_the_same_turn() -> None:
    async def scenario(world: World) -> None:
        for _ in range(3):
            world.policing.hurt("it", "quarantine", "it failed")
        assert world.log.lines == [("error", "pain")]
        assert [kind for kind, _ in world.journal.events] == ["algedonic.pain"]
        assert len(world.told("system5", Hurt)) == 3, "S5 hears each"
        assert [one["subject"] for one in world.policing.overview()] == ["it"]
        world.policing.relieve("other", "quarantine", "never hurt")
        world.policing.relieve("it", "quarantine", "it serves")
        assert world.log.lines[-1] == ("info", "relief")
        assert world.journal.events[-1][1]["detail"]["like_it_before"] == 2
        assert world.policing.overview() == []

    run(scenario)


def test_quarantine_hurts_until_it_serves() -> None:
    async def scenario(world: World) -> None:
        changed = world.policing.changed
        changed(Changed("it", 1, "quarantined", "failed too often"))
        assert [one["cause"] for one in world.policing.overview()] == ["quarantine"]
        changed(Changed("it", 1, "starting", ""))
        assert world.policing.overview()
        changed(Changed("it", 1, "ready", ""))
        assert world.policing.overview() == []

    run(scenario)


def test_no_system_pushes_what_the_supervisor_feels_out_of_the_status() -> None:
    async def scenario(world: World) -> None:
        world.policing.changed(Changed("it", 1, "quarantined", "failed too often"))
        for number in range(3 * MOST_PAINS):
            felt = Felt(sender="system1", severity="pain", subject=f"no. {number}", detail="d")
            world.policing.on_message("system5", felt)
        rows = world.policing.overview()
        assert [row["subject"] for row in rows if row["sender"] == "supervisor"] == ["it"]
        assert len(rows) == MOST_PAINS + 1
        world.policing.changed(Changed("it", 1, "ready", ""))
        assert world.journal.events[-1][0] == "algedonic.relief"

    run(scenario)


def test_pain_that_a_system_does_not_repeat_for_an_hour_is_over() -> None:
    async def scenario(world: World) -> None:
        world.policing.changed(Changed("it", 1, "quarantined", "failed too often"))
        felt = Felt(sender="system1", severity="pain", subject="a", detail="d")
        world.policing.on_message("system5", felt)
        earlier(world, FORGOTTEN_S + 1)
        assert [row["sender"] for row in world.policing.overview()] == ["supervisor"]

    run(scenario)


def test_what_a_system_feels_is_known_for_its_successor() -> None:
    async def scenario(world: World) -> None:
        def say(sender: Any, severity: Any) -> None:
            felt = Felt(sender=sender, severity=severity, subject="a", cause="b", detail="d")
            world.policing.on_message("system5", felt)

        say("system1", "pain")
        assert world.policing.told_by("system3") == []
        say("system3", "pain")
        assert world.policing.told_by("system3") == [["a", "b"]]
        say("system3", "relief")
        assert world.policing.told_by("system3") == []

    run(scenario)


@pytest.mark.parametrize("stopping", [False, True])
def test_what_a_gateway_felt_goes_with_it_and_what_others_feel_does_not(*, stopping: bool) -> None:
    """Its successor knows nothing of it, and would never say that it is over."""

    async def scenario(world: World) -> None:
        for sender in ("system1", "system4"):
            felt = Felt(
                sender=sender,  # type: ignore[arg-type]
                severity="pain",
                subject="it",
                cause="breaker",
                detail="d",
            )
            world.policing.on_message("system5", felt)
        world.stopping = stopping
        world.policing.operations_lost()
        left = [row["sender"] for row in world.policing.overview()]
        assert left == (["system1", "system4"] if stopping else ["system4"])
        told = [(one.sender, one.severity, one.subject) for one in world.told("system5", Hurt)]
        assert told == ([] if stopping else [("system1", "relief", "it")])

    run(scenario)


def earlier(world: World, by_s: float) -> None:
    """Let what hurts have been said so long ago."""
    for key, one in world.policing.pains.items():
        moved = one._replace(began_s=one.began_s - by_s, said_s=one.said_s - by_s)
        world.policing.pains[key] = moved


def test_pain_that_is_said_again_lasts_since_it_was_said_first() -> None:
    async def scenario(world: World) -> None:
        felt = Felt(sender="system4", severity="pain", subject="a", detail="d")
        for _ in range(2):
            world.policing.on_message("system5", felt)
            earlier(world, 1800)
        (one,) = world.policing.overview()
        assert one["for_s"] >= 3600
        earlier(world, FORGOTTEN_S)  # over, so that the next is another one
        world.policing.on_message("system5", felt)
        (one,) = world.policing.overview()
        assert one["for_s"] < 1800

    run(scenario)


def test_integration_that_is_removed_hurts_no_more() -> None:
    async def scenario(world: World) -> None:
        for name in ("it", "other"):
            world.policing.trust("trust.changed", name, {"items": ["tool x"]})
        for cause in ("breaker", "denials"):
            felt = Felt(sender="system1", severity="pain", subject="it", cause=cause, detail="d")
            world.policing.on_message("system5", felt)
        world.policing.forget("it")
        left = [(row["subject"], row["cause"]) for row in world.policing.overview()]
        assert left == [("other", "pins"), ("it", "denials")], "that is a client of this name"
        assert [(one.severity, one.subject) for one in world.told("system5", Hurt)][2:] == [
            ("relief", "it")
        ]

    run(scenario)


def test_broken_pins_hurt_until_somebody_approves() -> None:
    async def scenario(world: World) -> None:
        world.policing.trust("trust.pinned", "it", {})
        assert world.policing.overview() == []
        world.policing.trust("trust.changed", "it", {"items": ["tool x"]})
        (one,) = world.policing.overview()
        assert one["cause"] == "pins"
        assert one["detail"].endswith("tool x")
        world.policing.trust("trust.approved", "it", {})
        assert world.policing.overview() == []

    run(scenario)


def test_attempts_beyond_a_rate_hurt() -> None:
    async def scenario(world: World) -> None:
        world.policing.attempted("it", 10)
        assert world.policing.overview() == []
        world.policing.attempted("it", 1)
        assert [one["cause"] for one in world.policing.overview()] == ["attempts"]

    run(scenario)


def test_what_a_system_may_not_say_is_nothing() -> None:
    async def scenario(world: World) -> None:
        felt = Felt(sender="system1", severity="pain", subject="x", detail="x")
        world.policing.on_message("system1", felt)
        world.policing.on_message("system5", asking())
        world.policing.on_message("system3", Withdrawn(id=1))
        assert world.journal.events == []
        assert world.policing.desk.overview()["pending"] == []
        world.policing.on_message("system5", felt)
        assert world.journal.events[0][1]["source"] == "system1"

    run(scenario)


def test_a_person_decides_once_and_s1_hears() -> None:
    async def scenario(world: World) -> None:
        world.policing.on_message("system1", asking())
        (pending,) = (await world.policing.approvals({}))["pending"]
        assert pending["sha256"] == "0" * 64
        done = await world.policing.approve({"id": pending["id"], "by": "ann", "always_for_s": 60})
        assert (done["verdict"], done["name"]) == ("approved", "x")
        kinds = [type(one) for one in world.links["system1"].sent]
        assert kinds == [Grants, Verdict], "the grant comes first"
        assert world.told("system1", Verdict)[0].approved
        assert world.journal.outcomes["1"]["by"] == "by ann"
        with pytest.raises(NotFoundError):
            await world.policing.deny({"id": pending["id"]})
        (grant,) = world.policing.start_of_operations()["grants"]
        assert (grant.rule, grant.client, grant.name) == ("d", "unix:0", "x")

    run(scenario)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"id": 3}, {"id": "x", "always_for_s": -1}, {"id": "x", "always_for_s": True},
     {"id": "x", "always_for_s": float("nan")}, {"id": "x", "always_for_s": float("inf")}],
)  # fmt: skip
def test_what_is_no_decision_is_refused(arguments: dict[str, Any]) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(VsmError):
            await world.policing.approve(arguments)

    run(scenario)


def test_nobody_is_asked_while_s5_is_away_and_nothing_waits_for_ever() -> None:
    async def scenario(world: World) -> None:
        world.phases["system5"] = "backing_off"
        world.policing.on_message("system1", asking(1))
        assert world.told("system1", Verdict)[0].approved is False
        assert "system 5 is away" in world.told("system1", Verdict)[0].reason
        world.phases["system5"] = "ready"
        world.policing.on_message("system1", asking(2, timeout_s=0.05))
        async with asyncio.timeout(20):
            while len(world.told("system1", Verdict)) < 2:  # noqa: ASYNC110 - a timer's turn
                await asyncio.sleep(0.01)
        assert world.journal.outcomes["2"]["verdict"] == "timed out"
        world.policing.on_message("system1", asking(3))
        world.policing.operations_lost()
        assert world.journal.outcomes["3"]["verdict"] == "abandoned"

    run(scenario)


def test_s1_is_told_which_rules_hold() -> None:
    async def scenario(world: World) -> None:
        first = world.policing.start_of_operations()["rules"]
        assert first
        world.config = msgspec.structs.replace(world.config, policy=Policy())
        world.policing.configure()
        assert world.policing.start_of_operations()["rules"] == "", "no rules, no gate"

    run(scenario)


def test_the_most_rules_and_grants_fit_into_one_message() -> None:
    many = tuple(RuleDocument(action="deny", tool="x" * 110, name=f"{n}") for n in range(256))

    async def scenario(world: World) -> None:
        key = approvals.GrantKey("d" * 32, "c" * 64, "i" * 32, "resource", "\u00e9" * 512)
        grants = {key._replace(rule=f"{n:032}"): 1e12 for n in range(approvals.MOST_GRANTS)}
        world.policing.desk._state = approvals.State(grants=grants)
        body = to_body(compile_rules(world.policing.table))
        rows = tuple(IntegrationRow(name=f"integration-{n}") for n in range(30))
        start = Start(
            epoch=1,
            integrations=rows,
            **world.policing.start_of_operations(),
        )
        assert len(json.dumps(world.policing.table)) > MOST_BYTES * 0.9
        assert len(start.to_wire()) < MAX_MESSAGE_BYTES
        assert len(SnapshotIn(sender="system5", body=body).to_wire()) < MAX_MESSAGE_BYTES

    run(scenario, Policy(rules=many))


def test_record_of_an_approval_holds_who_and_what_whatever_was_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names are a client's words, and six bytes a character or more in the record."""
    shape = {chr(0x1F600 + number) * 64: "boolean" for number in range(16)}
    long = {"name": "\U0001f600" * 512, "shape": shape, "arguments": "\U0001f600" * 500}
    store, _ = open_store(tmp_path / JOURNAL_FILE, "boot", Retention())

    async def scenario(world: World) -> None:
        for more in ({}, {"arguments": long["arguments"]}, long):
            await asyncio.sleep(0)
            world.policing.on_message("system1", asking().model_copy(update=more))
        for number, made in enumerate(world.journal.decisions):
            inputs, shown = json_text(made["inputs"]), made["inputs"]
            assert json.loads(inputs)["key"][0] == "d"
            assert [key in shown for key in ("arguments", "shape")] == [number == 1, number < 2]
            records = [
                Decision(1, 0, "supervisor", str(number), "it: x", RULE, inputs, "[]", "ask"),
                Outcome(1, str(number), '{"verdict": "denied", "by": "by root"}'),
            ]
            store.append("test", 2 * number + 1, records)
        cut = '{"truncated": "{", "length": 99999}'  # as one of an earlier vsm may be
        store.append("test", 9, [
            Decision(1, 0, "supervisor", "cut", "it: x", RULE, cut, "[]", "ask"),
            Outcome(1, "cut", '{"verdict": "denied", "by": "by root"}'),
        ])  # fmt: skip

    run(scenario)
    store.close()
    for variable in ("VSM_STATE_DIR", "VSM_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert main(["approvals"]) == 0
    assert capsys.readouterr().out.count("denied") == 4


def test_calls_that_wait_are_shown_although_the_journal_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / JOURNAL_FILE).write_text("no database " * 100)
    told: list[Any] = []

    async def scenario(world: World) -> None:
        world.recorder.path = tmp_path / JOURNAL_FILE
        world.policing.restore()
        world.policing.on_message("system1", asking())
        told.append(await world.policing.approvals({}))

    run(scenario)
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("VSM_RUNTIME_DIR", str(tmp_path))
    assert main(["approvals"]) == 1, "nobody runs: there is nothing else to show"
    assert "cannot be read" in capsys.readouterr().err
    monkeypatch.setattr(commands_approvals, "request", lambda _: told[0])
    assert main(["approvals"]) == 0
    shown = capsys.readouterr()
    assert "tool x" in shown.out
    assert "what was approved before vsm was started is forgotten: " in shown.out
    assert "what was decided is not shown: " in shown.err


def test_journal_that_nobody_may_look_for_is_one_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path / ("long" * 100)))
    told = {"pending": [], "grants": [], "forgotten": ""}
    monkeypatch.setattr(commands_approvals, "request", lambda _: told)
    assert main(["approvals"]) == 0
    shown = capsys.readouterr()
    assert "what was decided is not shown: " in shown.err
    assert "nothing waits" in shown.out


def test_a_person_whose_name_is_no_text_decides_like_any_other() -> None:
    async def scenario(world: World) -> None:
        world.policing.on_message("system1", asking())
        (waits,) = (await world.policing.approvals({}))["pending"]
        await world.policing.approve({"id": waits["id"], "by": "an\udcff"})
        (verdict,) = world.told("system1", Verdict)
        assert (verdict.approved, verdict.reason) == (True, "approved, by an\\udcff")

    run(scenario)


def test_only_the_supervisors_own_record_grants_anything(tmp_path: Path) -> None:
    until_s = time.time() + 3600
    key = ["d", "unix:0", "it", "tool", "x"]
    rows = [
        ("supervisor", key, {"verdict": "approved", "granted_until_s": until_s}),
        ("system1", ["forged", *key[1:]], {"granted_until_s": until_s}),
        ("supervisor", ["over", *key[1:]], {"granted_until_s": time.time() - 1}),
        ("supervisor", ["short"], {"granted_until_s": until_s}),
        ("supervisor", ["text", *key[1:]], {"granted_until_s": "for ever"}),
        ("supervisor", ["waited", *key[1:]], None),
    ]
    path = tmp_path / "journal.db"
    store, _ = open_store(path, "boot", Retention())
    records: list[Any] = []
    for number, (source, inputs, outcome) in enumerate(rows):
        made_of = (RULE, json.dumps({"key": inputs}), "[]", "ask a person")
        now_ns = time.time_ns()
        records.append(Decision(now_ns, 0, source, str(number), "it: x", *made_of))
        if outcome is not None:
            records.append(Outcome(now_ns, str(number), json.dumps(outcome)))
    store.append("test", 1, records)
    store.close()

    async def scenario(world: World) -> None:
        world.policing.desk.restore(path)
        assert [grant.rule for grant in world.policing.desk.grants()] == ["d"]
        assert world.journal.outcomes["5"]["verdict"] == "abandoned"

    run(scenario)


def test_a_grant_ends_by_time_that_passes_and_is_forgotten_where_nobody_knows_it(
    tmp_path: Path,
) -> None:
    now, wall_s, here_s = Now.read(), time.time(), steady_s()
    year_s = 365 * 86_400
    key = ["", "unix:0", "it", "tool", "x"]
    granted = [
        # boot, decided at, until by the wall clock, by the steady one
        ("here, set ahead since", now.boot_id, wall_s - year_s, wall_s - year_s, here_s + 60),
        ("here, over, set back since", now.boot_id, wall_s, wall_s + year_s, here_s - 1),
        ("before", "another", wall_s - 60, wall_s + 60, 1e9),
        ("before, over", "another", wall_s - 60, wall_s - 1, 1e9),
        ("before, set back since", "another", wall_s + 60, wall_s + 120, 1e9),
    ]
    path = tmp_path / "journal.db"
    for number, (rule, boot, at_s, until_s, until_steady_s) in enumerate(granted):
        store, _ = open_store(path, boot, Retention())
        made_of = (RULE, json.dumps({"key": [rule, *key[1:]]}), "[]", "ask a person")
        outcome = {"granted_until_s": until_s, "granted_until_steady_s": until_steady_s}
        at_ns = int(at_s * 1e9)
        records = [
            Decision(at_ns, 0, "supervisor", str(number), "it: x", *made_of),
            Outcome(at_ns, str(number), json.dumps(outcome)),
        ]
        store.append("", 1, records)
        store.close()

    async def scenario(world: World) -> None:
        world.policing.desk.restore(path)
        found = {grant.rule: grant.until_s for grant in world.policing.desk.grants()}
        assert found.keys() == {"here, set ahead since", "before"}
        assert found["before"] == pytest.approx(here_s + 60, abs=10)

    run(scenario)
