"""What the supervisor tells a system at its start, and of how many it believes what."""

import asyncio
import errno
import os
import socket
import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from vsm.configuration.config import MOST_INTEGRATIONS
from vsm.configuration.policy import MOST_BYTES as MOST_RULE_BYTES
from vsm.core import restart
from vsm.link import MAX_MESSAGE_BYTES
from vsm.link import Link as FarLink
from vsm.messages import (
    Answer,
    Ask,
    Attach,
    Configure,
    InstanceTerms,
    IntegrationRow,
    Message,
    Offered,
    Query,
    SnapshotIn,
    SnapshotOut,
    Start,
    Switch,
    parse_to_system,
)
from vsm.processes import template_start
from vsm.processes.template_start import TemplateStart
from vsm.supervision import system_group, template_actor
from vsm.supervision.paced import Paced
from vsm.supervision.running_system import RunningSystem, waited_ns
from vsm.supervision.supervisor import Supervisor
from vsm.supervision.system_group import (
    LATE_S,
    LIVENESS_TIMEOUT_S,
    MAX_CONSULTING,
    MISSED,
    TOO_MUCH,
    SystemGroup,
    SystemHooks,
)
from vsm.supervision.template_actor import TEMPLATE
from vsm.systems.base import HEARTBEAT_INTERVAL_S

RECORD: dict[str, Any] = {"instructions": "x" * 4000}


class Link:
    """A control link that takes what a message may hold."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.closed = self.is_full = False

    def send(self, message: Message, _fds: Any = ()) -> bool:
        if self.closed or self.is_full or len(message.to_wire()) > MAX_MESSAGE_BYTES:
            return False
        self.sent.append(message)
        return True

    def close(self) -> None:
        """Nothing to close."""


def with_group(scenario: Callable[[SystemGroup, Link], Any], **start: Any) -> None:
    async def main() -> None:
        hooks = SystemHooks(
            plan=lambda _system: "",
            start=lambda _system, epoch: (Start(epoch=epoch, **start), []),
            from_operations=lambda _message: None,
            changed=lambda _change: None,
            operations_started=lambda: None,
            operations_lost=lambda: None,
            ring=lambda _name: None,  # type: ignore[arg-type, return-value]
            consult=_for_ever,
        )
        group, link = SystemGroup(hooks), Link()
        running = RunningSystem("system1", 1, 1, link=link)  # type: ignore[arg-type]
        group.running["system1"] = running
        try:
            await scenario(group, link)
        finally:
            group.close()

    asyncio.run(main())


async def _for_ever(_what: str, _about: str) -> None:
    await asyncio.Event().wait()


def test_snapshots_that_fill_a_message_each_keep_no_new_s1_from_starting() -> None:
    """Whoever publishes one might be taken over, and S1 be restarted."""

    async def scenario(group: SystemGroup, link: Link) -> None:
        body = {"x": "y" * 120_000}
        for name in ("system2", "system3", "system5"):
            group._on_message(RunningSystem(name, 1, 2), SnapshotOut(body=body), [])
        link.sent.clear()
        group._send_start(group.running["system1"])
        assert isinstance(link.sent[0], Start)
        told = [one.sender for one in link.sent if isinstance(one, SnapshotIn)]
        assert told == ["system2", "system3", "system5"]

    with_group(scenario)


def test_start_that_is_too_large_for_a_message_is_said_as_that() -> None:
    async def scenario(group: SystemGroup, _link: Link) -> None:
        said: list[restart.Event] = []
        group.systems.send = said.append  # type: ignore[method-assign]
        group.template_actor = SimpleNamespace(can_fork=True)  # type: ignore[assignment]
        group._send_start(group.running["system1"])
        assert [one.reason for one in said if isinstance(one, restart.Exited)] == [TOO_MUCH]
        assert "system1" not in group.running

    with_group(scenario, token="x" * MAX_MESSAGE_BYTES)


def test_system_that_died_before_its_start_is_not_said_to_be_told_too_much() -> None:
    """As a spare that ends at the moment in which it is to take over; its pidfd tells."""

    async def scenario(group: SystemGroup, link: Link) -> None:
        said: list[restart.Event] = []
        group.systems.send = said.append  # type: ignore[method-assign]
        link.closed = True
        group._send_start(group.running["system1"])
        assert said == []
        assert "system1" in group.running

    with_group(scenario)


def test_new_s1_that_reads_nothing_yet_misses_no_server_however_many_there_are() -> None:
    async def scenario(group: SystemGroup, _link: Link) -> None:
        said: list[restart.Event] = []
        group.systems.send = said.append  # type: ignore[method-assign]
        theirs: list[int] = []
        group.template_actor = SimpleNamespace(  # type: ignore[assignment]
            can_fork=True, fork=lambda *words: theirs.append(os.dup(words[3]["control"]))
        )
        running = group.running["system1"] = RunningSystem("system1", 1, 1)
        assert group._fork(running)
        told = [f"it-{number}" for number in range(MOST_INTEGRATIONS)]
        for name in told:
            message = Attach(worker=name, integration=name, record=RECORD)
            assert group.tell_operations(message, [])
        s1 = FarLink(socket.socket(fileno=theirs[0]), parse_to_system)
        heard: list[str] = []
        while len(heard) < len(told):
            while (received := s1.receive(0)) is not None:
                heard.append(cast("Attach", received[0]).worker)
            await asyncio.sleep(0)
        s1.close()
        running.link.close()  # type: ignore[union-attr]
        assert heard == told
        assert said == []

    with_group(scenario)


def test_host_that_has_no_process_or_descriptor_left_is_asked_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker may have taken the last one just now; it was never tried again."""

    def refuse(*_words: object) -> NoReturn:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    async def scenario(group: SystemGroup, _link: Link) -> None:
        monkeypatch.setattr(template_actor, "execute", refuse)
        group.template.send(restart.Start(TEMPLATE))
        assert group.template.phase(TEMPLATE) == "backing_off"
        assert "Resource temporarily unavailable" in group.template.worker(TEMPLATE).reason
        assert group.template._timer is not None
        monkeypatch.undo()
        ours, theirs = socket.socketpair()
        theirs.close()
        group.template_actor.ahead = TemplateStart(process, ours, os.open("/dev/null", os.O_RDONLY))
        monkeypatch.setattr(os, "pidfd_open", refuse)
        group.template.send(restart.Start(TEMPLATE))
        assert group.template.phase(TEMPLATE) == "backing_off"
        assert process.returncode is not None, "nobody would see its end"
        monkeypatch.setattr(system_group, "socketpair", refuse)
        group.template_actor = SimpleNamespace(can_fork=True)  # type: ignore[assignment]
        group.systems.send(restart.Start("system2"))
        assert group.systems.phase("system2") == "backing_off"
        assert group.systems._timer is not None

    process = subprocess.Popen(["sleep", "60"])
    with_group(scenario)


def test_template_that_cannot_be_executed_leaves_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_words: object, **_more: object) -> NoReturn:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(BlockingIOError):
        template_start.execute("os:getpid", [])
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_s1_says_to_be_offered_is_worked_through_in_time_that_others_do_not_need() -> None:
    async def scenario(group: SystemGroup, _link: Link) -> None:
        now_s, done = [0.0], []

        def work(name: str, _fd: int) -> None:
            now_s[0] += 10.0
            done.append(name)

        group._offers = Paced(work, lambda: now_s[0])
        for name in ("a", "b"):
            message = Offered(integration=name, fds=("items",))
            group._on_message(
                group.running["system1"], message, [os.open("/dev/null", os.O_RDONLY)]
            )
        assert done == ["a"]

    with_group(scenario)


def test_s1_that_missed_what_it_was_told_is_replaced_unless_it_has_ended() -> None:
    """It would serve by what is not so: a server that is ended, in place of its successor."""

    async def scenario(group: SystemGroup, link: Link) -> None:
        said: list[restart.Event] = []
        group.systems.send = said.append  # type: ignore[method-assign]
        switch = Switch(worker="it-2", integration="it")
        assert group.tell_operations(switch, [])
        link.is_full = True
        assert not group.tell_operations(switch, [])
        link.closed = True
        assert not group.tell_operations(switch, [])
        assert said == [restart.Hung("system1", 1, MISSED)]

    with_group(scenario)


def test_answers_to_questions_that_overlap_all_arrive_and_none_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(system_group, "QUERY_TIMEOUT_S", 60.0)

    async def scenario(group: SystemGroup, link: Link) -> None:
        running = group.running["system1"]
        group.systems.phase = lambda _name: "ready"  # type: ignore[method-assign]
        asked = [asyncio.create_task(group.query("system1", what)) for what in ("a", "b", "c")]
        await asyncio.sleep(0)
        for question in [one for one in link.sent if isinstance(one, Query)]:
            group._on_message(running, Answer(id=question.id, body={"what": question.what}), [])
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # whoever asked goes on before the next answer is read
        answers = await asyncio.gather(*asked)
        assert [answer and answer["what"] for answer in answers] == ["a", "b", "c"]
        assert running.queries == {}

    with_group(scenario)


def test_question_ends_with_who_was_asked_and_with_who_asked() -> None:
    """Whoever is cancelled must end, as a connection does when vsm shuts down."""

    async def scenario(group: SystemGroup, _link: Link) -> None:
        group.systems.phase = lambda _name: "ready"  # type: ignore[method-assign]
        asked = [asyncio.create_task(group.query("system1", "x")) for _ in range(2)]
        await asyncio.sleep(0)
        asked[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked[0]
        group.running["system1"].close()
        assert await asked[1] is None

    with_group(scenario)


def test_all_that_one_vsm_can_have_fits_into_the_message_that_tells_of_it() -> None:
    """Rows in which nothing is as by default, names at their limit, and rules at theirs."""
    terms = InstanceTerms(kind="pool", least=1, most=64, spares=8, idle_stop_s=3600.5, lazy=True)
    row = IntegrationRow(
        name="n" * 32,
        prefix="p" * 32,
        era="legacy",
        start_timeout_s=120.5,
        call_timeout_s=600.5,
        concurrency=1000,
        trust="first-use",
        most_argument_bytes=100_000,
        strict_arguments=True,
        instances=terms,
    )
    rules: dict[str, Any] = {"rules": "r" * MOST_RULE_BYTES}
    message = Configure(integrations=(row,) * MOST_INTEGRATIONS, rules="d" * 64, policy=rules)
    assert len(message.to_wire()) <= MAX_MESSAGE_BYTES
    assert Configure.model_validate_json(message.to_wire()) == message


def test_who_could_not_be_told_is_named() -> None:
    async def scenario(group: SystemGroup, _link: Link) -> None:
        assert group.tell_all(Configure()) == []
        too_large: dict[str, Any] = {"rules": "r" * MAX_MESSAGE_BYTES}
        assert group.tell_all(Configure(policy=too_large)) == ["system1"]

    with_group(scenario)


def test_questions_of_s1_beyond_a_bound_are_not_asked() -> None:
    async def scenario(group: SystemGroup, _link: Link) -> None:
        for number in range(3 * MAX_CONSULTING):
            group._on_message(group.running["system1"], Ask(id=number, what="status"), [])
        assert len(group._consulting) == MAX_CONSULTING
        await asyncio.sleep(0)

    with_group(scenario)


def test_supervisor_that_was_late_itself_calls_no_system_hung() -> None:
    async def scenario(group: SystemGroup, _link: Link) -> None:
        said: list[restart.Event] = []
        group.systems.send = said.append  # type: ignore[method-assign]
        silent = SimpleNamespace(read=lambda: None, close=lambda: None)
        group.running["system1"].board = silent  # type: ignore[assignment]
        now_s = asyncio.get_running_loop().time()
        group._watch(now_s - system_group.LIVENESS_INTERVAL_S - 0.1)
        assert said == []
        group._watch(now_s)
        assert [type(one) for one in said] == [restart.Hung]

    with_group(scenario)


def test_whatever_a_look_at_the_heartbeats_meets_there_is_a_next_one() -> None:
    async def scenario(group: SystemGroup, _link: Link) -> None:
        def broken() -> None:
            raise OSError("cannot be read")

        board = SimpleNamespace(read=broken, close=lambda: None)
        group.running["system1"].board = board  # type: ignore[assignment]
        now_s = asyncio.get_running_loop().time()
        with pytest.raises(OSError, match="cannot be read"):
            group._watch(now_s)
        assert group._liveness is not None
        assert group._liveness.when() >= now_s + system_group.LIVENESS_INTERVAL_S

    with_group(scenario)


def test_the_time_that_a_process_waited_for_a_processor_is_read() -> None:
    assert waited_ns(os.getpid()) >= 0
    assert waited_ns(None) == 0  # not known yet
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert waited_ns(child.pid) < 60e9


def test_system_that_gets_no_processor_is_not_called_hung_for_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many servers that start at once starve it; all of them would be started anew with it."""

    async def scenario(group: SystemGroup, _link: Link) -> None:
        said: list[restart.Event] = []
        group.systems.send = said.append  # type: ignore[method-assign]
        now_s = asyncio.get_running_loop().time()
        beat = SimpleNamespace(beat_ns=int((now_s - 1.5) * 1e9))
        board = SimpleNamespace(read=lambda: beat, close=lambda: None)
        group.running["system1"].board = board  # type: ignore[assignment]

        def look(*, later_s: float, waited_s: float) -> int:
            monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now_s + later_s)
            monkeypatch.setattr(system_group, "waited_ns", lambda _pid: int((100 + waited_s) * 1e9))
            group._check_beat(group.running["system1"])
            return len(said)

        assert look(later_s=0, waited_s=0) == 0  # late
        assert look(later_s=2, waited_s=1) == 0  # 3.5 s old, of which it waited 1
        assert look(later_s=5, waited_s=3.6) == 0
        assert look(later_s=5, waited_s=3.4) == 1  # what it had itself was too long
        assert look(later_s=30, waited_s=30) == 2  # no starving excuses it for ever

    with_group(scenario)


def test_heartbeat_stamped_in_the_future_hides_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that was taken over writes what it likes into its board, and then stands still."""

    async def scenario(group: SystemGroup, _link: Link) -> None:
        said: list[restart.Event] = []
        group.systems.send = said.append  # type: ignore[method-assign]
        monkeypatch.setattr(system_group, "waited_ns", lambda _pid: 0)
        now_ns = int(asyncio.get_running_loop().time() * 1e9)
        beat = SimpleNamespace(beat_ns=now_ns)
        board = SimpleNamespace(read=lambda: beat, close=lambda: None)
        group.running["system1"].board = board  # type: ignore[assignment]
        group._check_beat(group.running["system1"])
        assert said == []
        for later_s in (2, 3600, 10**9):
            beat.beat_ns = now_ns + later_s * 10**9
            group._check_beat(group.running["system1"])
            (hung,) = said
            assert isinstance(hung, restart.Hung)
            assert hung.name == "system1"
            said.clear()

    with_group(scenario)


def test_a_system_may_miss_a_beat_before_it_is_late_and_several_before_it_hangs() -> None:
    assert 2 * HEARTBEAT_INTERVAL_S <= LATE_S
    assert 5 * HEARTBEAT_INTERVAL_S < LIVENESS_TIMEOUT_S


def test_system_that_was_not_told_of_the_configuration_is_named_in_the_log() -> None:
    said: list[dict[str, Any]] = []
    supervisor: Any = SimpleNamespace(
        _keep_contents=lambda: None,
        integrations=SimpleNamespace(rows=tuple),
        policing=SimpleNamespace(digest="", table={}),
        systems=SimpleNamespace(tell_all=lambda _message: ["system3"]),
        log=SimpleNamespace(error=lambda _text, **more: said.append(more)),
    )
    Supervisor.configure_systems(supervisor)
    assert [one["systems"] for one in said] == [["system3"]]
