"""What S1 tells of its breakers: each opening is a decision, and the record has what came of it."""

import asyncio
import socket
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from system_rig import Rig, of

from vsm.messages import Algedonic, Decided, Noted, Settled, Start
from vsm.systems.operations import Operations, SupervisorReports

ROW: dict[str, Any] = {
    "client": "*", "calls_itself": "*", "integration": "*",
    "per_second": 1.0, "burst": 1, "wait_s": 0.0, "weight": 1,
}  # fmt: skip


def test_opened_breaker_is_a_decision_whose_outcome_follows() -> None:
    async def main() -> None:
        rig = Rig("system1")
        try:
            reports = SupervisorReports(rig.context)
            for phase in ("open", "half_open", "open", "half_open", "closed"):
                reports.breaker("it", phase, f"it is {phase}")
            said = rig.said()
            first, second = of(Decided, said)
            assert (first.subject, first.rule, first.choice) == (
                "it",
                "breaker.failures",
                "refuse calls",
            )
            assert first.inputs == {"why": "it is open"}
            assert [(one.key, one.outcome["state"]) for one in of(Settled, said)] == [
                (first.key, "opened again"),
                (second.key, "closed"),
            ]
            told = [one.event for one in of(Noted, said)]
            assert told[:3] == ["breaker.open", "breaker.half_open", "breaker.open"]
            felt = of(Algedonic, rig.said("system1>system5:algedonic"))
            assert [one.severity for one in felt] == ["pain", "pain", "relief"]
        finally:
            rig.close()

    asyncio.run(main())


def test_breaker_that_closes_without_having_opened_settles_nothing() -> None:
    """Its terms were changed by a reload."""

    async def main() -> None:
        rig = Rig("system1")
        try:
            SupervisorReports(rig.context).breaker("it", "closed", "its terms were changed")
            assert of(Decided, said := rig.said()) == of(Settled, said) == []
        finally:
            rig.close()

    asyncio.run(main())


def test_rates_that_are_published_again_as_they_were_leave_what_was_used_up() -> None:
    made: list[str] = []
    fleet = SimpleNamespace(hold=list, guard=lambda kind, _make: made.append(kind))
    operations: Any = SimpleNamespace(snapshots={}, _rates=(), gateway=SimpleNamespace(fleet=fleet))
    for steady in ([], ["one"], []):
        operations.snapshots["system2"] = {"rates": [dict(ROW)], "steady": steady}
        Operations._take_rates(operations)
    assert made == ["rates"]
    operations.snapshots["system2"] = {"rates": [], "steady": []}
    Operations._take_rates(operations)
    assert made == ["rates", "rates"]


def test_calls_are_recorded_from_the_first_on() -> None:
    seen: list[str] = []

    async def served(sock: socket.socket, **_: object) -> None:
        sock.close()
        seen.append("served")

    async def main() -> None:
        gateway = SimpleNamespace(
            listen_unix=served, listen_http=served, record_calls=lambda _: seen.append("recorded")
        )
        operations: Any = SimpleNamespace(gateway=gateway)
        pairs = [socket.socketpair() for _ in range(3)]
        fds = {
            name: pair[0].detach()
            for name, pair in zip(("unix", "http", "calls"), pairs, strict=True)
        }
        try:
            with mock.patch("vsm.systems.operations.CallLog", lambda sock, **_: sock.close()):
                await Operations.listen(operations, Start(epoch=1, token="t", audit="all"), fds)
        finally:
            for _, theirs in pairs:
                theirs.close()

    asyncio.run(main())
    assert seen == ["recorded", "served", "served"]


@pytest.mark.parametrize(
    "snapshot",
    [
        {},
        {"rates": 1},
        {"rates": [1]},
        {"rates": [{}]},
        {"rates": [], "steady": 1},
        {"rates": [{**ROW, "burst": "many"}]},
    ],
)
def test_rates_that_make_no_sense_leave_those_before(snapshot: dict[str, Any]) -> None:
    made: list[str] = []
    fleet = SimpleNamespace(hold=made.append, guard=lambda kind, _make: made.append(kind))
    operations: Any = SimpleNamespace(
        snapshots={"system2": snapshot}, _rates=(), gateway=SimpleNamespace(fleet=fleet)
    )
    Operations._take_rates(operations)
    assert made == []


def test_what_cannot_be_handed_over_keeps_no_server_from_being_served(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def main() -> None:
        rig = Rig("system1")
        try:
            reports = SupervisorReports(rig.context)
            with mock.patch("vsm.systems.operations.to_memory", side_effect=OSError(24, "none")):
                reports.learnt("it", b"{}")
                reports.offered("it", b"{}")
            reports.learnt("other", b"{}")
            assert [(one.kind, one.integration) for one in rig.said()] == [("learnt", "other")]
        finally:
            rig.close()

    asyncio.run(main())
    assert capsys.readouterr().err.count("is not kept: [Errno 24] none") == 2
