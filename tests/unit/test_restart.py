"""The restart state machine: examples as a table of behaviour, and invariants by Hypothesis."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vsm.core import restart as r
from vsm.supervision import group

SPEC = r.WorkerSpec(name="a")


def run(group: r.Group, *events: tuple[float, r.Event]) -> tuple[r.Group, list[r.Action]]:
    actions: list[r.Action] = []
    for now, event in events:
        group, more = r.step(group, event, now)
        actions += more
    return group, [action for action in actions if not isinstance(action, r.Changed)]


def ready(**changes: Any) -> r.Group:
    group = r.new_group([r.WorkerSpec(name="a", **changes)])
    return run(group, (0, r.Start("a")), (0, r.Ready("a", 1)))[0]


def test_first_crash_restarts_at_once_and_later_ones_wait_longer() -> None:
    group, actions = run(ready(), (1, r.Exited("a", 1, "died")))
    assert actions == [r.Spawn("a", 2)]
    group, actions = run(group, (2, r.Exited("a", 2, "died")))
    assert actions == []
    assert r.next_deadline(group) == 2.5
    assert run(group, (2.4, r.Tick()))[1] == []
    assert run(group, (2.5, r.Tick()))[1] == [r.Spawn("a", 3)]


def test_crash_loop_ends_in_quarantine_and_a_start_leaves_it() -> None:
    group = ready(intensity=2)
    for incarnation in (1, 2, 3):
        group, _ = run(group, (incarnation * 10, r.Exited("a", incarnation, "boom")))
        group, _ = run(group, (incarnation * 10 + 5, r.Tick()))
    assert group.workers["a"].phase == "quarantined"
    assert "3 crashes" in group.workers["a"].reason
    assert "boom" in group.workers["a"].reason
    assert run(group, (1000, r.Tick()))[1] == []
    assert run(group, (1000, r.Start("a")))[1] == [r.Spawn("a", 4)]


def test_system_that_crash_loops_escalates_and_is_retried_at_the_longest_backoff() -> None:
    group = ready(intensity=1, escalates=True, backoff_max_s=7.0)
    group, _ = run(group, (1, r.Exited("a", 1, "x")))
    group, actions = r.step(group, r.Exited("a", 2, "x"), 2)
    assert any(isinstance(action, r.Changed) and action.escalated for action in actions)
    assert run(group, (8.9, r.Tick()))[1] == []
    assert run(group, (9.0, r.Tick()))[1] == [r.Spawn("a", 3)]


def test_stable_time_forgets_crashes() -> None:
    group, _ = run(ready(), (1, r.Exited("a", 1, "x")), (1, r.Ready("a", 2)), (31, r.Tick()))
    assert group.workers["a"].streak == 0
    assert group.workers["a"].crashes == ()


def test_commanded_stop_drains_terminates_then_kills_and_is_no_crash() -> None:
    group, actions = run(ready(), (1, r.Stop("a")))
    assert actions == [r.Drain("a", 1)]
    group, actions = run(group, (2, r.Drained("a")))
    assert actions == [r.Terminate("a", 1)]
    group, actions = run(group, (7, r.Tick()))
    assert actions == [r.Kill("a", 1)]
    group, actions = run(group, (8, r.Exited("a", 1, "killed")), (99, r.Tick()))
    assert actions == []
    assert group.workers["a"].phase == "stopped"
    assert group.workers["a"].crashes == ()


def test_worker_that_is_not_ready_in_time_is_asked_for_its_stack_then_killed() -> None:
    group, _ = run(r.new_group([SPEC]), (0, r.Start("a")))
    group, actions = run(group, (30, r.Tick()), (31, r.Tick()))
    assert actions == [r.AskStack("a", 1), r.Kill("a", 1)]
    group, actions = run(group, (31, r.Exited("a", 1, "killed by SIGKILL")))
    assert "not ready" in group.workers["a"].reason or actions == [r.Spawn("a", 2)]
    assert len(group.workers["a"].crashes) == 1


def test_late_report_of_a_former_incarnation_is_ignored() -> None:
    group, _ = run(ready(), (1, r.Exited("a", 1, "x")))
    assert run(group, (2, r.Exited("a", 1, "x")))[0] == group
    assert run(group, (2, r.Ready("a", 1)))[0] == group


def test_panic_kills_and_refuses_starts_until_resume() -> None:
    group, actions = run(ready(), (1, r.Panic()))
    assert actions == [r.Kill("a", 1)]
    group, actions = run(group, (1, r.Exited("a", 1, "x")), (2, r.Start("a")), (99, r.Tick()))
    assert actions == []
    assert run(group, (100, r.Resume()))[1] == [r.Spawn("a", 2)]


def test_collateral_exit_restarts_without_counting() -> None:
    group, actions = run(ready(intensity=0), (1, r.Exited("a", 1, "launcher", collateral=True)))
    assert actions == [r.Spawn("a", 2)]
    assert group.workers["a"].crashes == ()


@pytest.mark.parametrize(
    ("kind", "clean", "phase"),
    [
        ("permanent", True, "starting"),
        ("transient", True, "stopped"),
        ("transient", False, "starting"),
        ("temporary", False, "stopped"),
    ],
)
def test_restart_type_decides(kind: r.RestartType, clean: bool, phase: str) -> None:
    group, _ = run(ready(restart=kind), (1, r.Exited("a", 1, "x", clean=clean)))
    assert group.workers["a"].phase == phase


@pytest.mark.parametrize(
    ("strategy", "stopped"), [("one_for_one", []), ("rest_for_one", ["c"]), ("one_for_all", "ac")]
)
def test_strategy_decides_who_restarts_with_it(strategy: r.Strategy, stopped: list[str]) -> None:
    group = r.new_group([r.WorkerSpec(name=name) for name in "abc"], strategy)
    for name in "abc":
        group, _ = run(group, (0, r.Start(name)), (0, r.Ready(name, 1)))
    group, actions = run(group, (1, r.Exited("b", 1, "x")))
    assert [a.name for a in actions if isinstance(a, r.Terminate)] == list(stopped)
    if not stopped:
        assert actions == [r.Spawn("b", 2)]
        return
    assert not any(isinstance(action, r.Spawn) for action in actions)
    for name in stopped:
        group, actions = run(group, (2, r.Exited(name, 1, "terminated")))
    assert [a.name for a in actions] == sorted({*stopped, "b"})
    assert all(isinstance(action, r.Spawn) for action in actions)


@given(
    st.integers(1, 200),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0.01, 5),
    st.floats(5, 100),
)
def test_backoff_is_monotone_and_bounded(
    streak: int, one: float, two: float, initial: float, longest: float
) -> None:
    spec = r.WorkerSpec(name="a", backoff_initial_s=initial, backoff_max_s=longest)
    assert 0 <= r.backoff_s(spec, streak, one) <= longest
    assert r.backoff_s(spec, streak, one) <= r.backoff_s(spec, streak + 1, two)


def test_pauses_are_spread_by_a_quarter_up_and_down() -> None:
    spec = r.WorkerSpec(name="a", backoff_initial_s=10.0, backoff_max_s=1000.0)
    pauses = [r.backoff_s(spec, 3, jitter) for jitter in (0.0, 0.5, 1.0)]
    assert pauses == [15.0, 20.0, 25.0]


class Nobody:
    """Performs nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_words, **_more: None


def test_those_that_crash_together_do_not_come_back_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def pause_s(jitter: float) -> float:
        monkeypatch.setattr(group, "random", SimpleNamespace(random=lambda: jitter))
        spec = r.WorkerSpec(name="a", backoff_initial_s=1000.0, backoff_max_s=1e6)
        runner = group.GroupRunner([spec], cast("Any", Nobody()))
        runner.send(r.Start("a"))
        began = asyncio.get_running_loop().time()
        for incarnation in (1, 2):  # the first time it is started again at once
            runner.send(r.Ready("a", incarnation))
            runner.send(r.Exited("a", incarnation, "gone"))
        deadline = runner.worker("a").deadline
        assert deadline is not None
        return deadline - began

    assert asyncio.run(pause_s(0.0)) == pytest.approx(750, abs=60)
    assert asyncio.run(pause_s(1.0)) == pytest.approx(1250, abs=60)


NAMES = st.sampled_from("abc")


class Supervision(RuleBasedStateMachine):
    """A world that performs the actions as processes would, in any order of events."""

    @initialize(
        strategy=st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"]),
        kind=st.sampled_from(["permanent", "transient", "temporary"]),
        intensity=st.integers(0, 3),
        escalates=st.booleans(),
    )
    def begin(
        self,
        strategy: r.Strategy,
        kind: r.RestartType,
        intensity: int,
        escalates: bool,
    ) -> None:
        specs = [
            r.WorkerSpec(name=n, restart=kind, intensity=intensity, escalates=escalates)
            for n in "abc"
        ]
        self.group = r.new_group(specs, strategy)
        self.now = 0.0
        self.running: dict[str, int] = {}
        self.commanded_off: set[str] = set()

    def send(self, event: r.Event, jitter: float = 0.5) -> None:
        self.group, actions = r.step(self.group, event, self.now, jitter)
        for action in actions:
            if isinstance(action, r.Spawn):
                assert action.name not in self.running, "two incarnations of one worker"
                assert action.name not in self.commanded_off, "a stopped worker was restarted"
                assert not self.group.panic, "started during panic"
                self.running[action.name] = action.incarnation
            elif not isinstance(action, r.Changed):
                assert self.running.get(action.name) == action.incarnation

    @rule(name=NAMES)
    def start(self, name: str) -> None:
        self.commanded_off.discard(name)
        self.send(r.Start(name))

    @rule(name=NAMES, drain=st.booleans(), restart=st.booleans())
    def stop(self, name: str, drain: bool, restart: bool) -> None:
        if restart and self.group.panic:
            return
        (self.commanded_off.discard if restart else self.commanded_off.add)(name)
        self.send(r.Stop(name, drain=drain, restart=restart))

    @rule(name=NAMES, stale=st.booleans())
    def ready(self, name: str, stale: bool) -> None:
        self.send(r.Ready(name, self.running.get(name, 1) - stale))

    @rule(name=NAMES, kind=st.sampled_from([r.Failed, r.Hung]))
    def misbehave(self, name: str, kind: type[r.Failed] | type[r.Hung]) -> None:
        self.send(kind(name, self.running.get(name, 0), "bad"))

    @rule(name=NAMES)
    def drained(self, name: str) -> None:
        self.send(r.Drained(name))

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(),
        clean=st.booleans(),
        collateral=st.booleans(),
        hopeless=st.booleans(),
        jitter=st.floats(0, 1),
    )
    def exit(self, data: st.DataObject, jitter: float, **how: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        incarnation = self.running.pop(name)
        self.send(r.Exited(name, incarnation, "gone", **how), jitter)

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.send(r.Tick())

    @rule()
    def panic(self) -> None:
        self.send(r.Panic())

    @rule()
    def resume(self) -> None:
        self.send(r.Resume())

    @invariant()
    def state_agrees_with_the_world(self) -> None:
        for name, worker in getattr(self, "group", r.new_group([])).workers.items():
            assert worker.alive == (name in self.running)
            if worker.alive and worker.phase not in {"ready", "stopping"}:
                assert worker.deadline is not None, "waits for nothing"
            if worker.phase == "backing_off":
                assert worker.deadline is not None
                assert worker.deadline <= self.now + worker.spec.backoff_max_s
            if not worker.spec.escalates and worker.alive:
                assert len(worker.crashes) <= worker.spec.intensity

    def teardown(self) -> None:
        """Whatever happened, a stop of all ends all within the time-outs."""
        for name in getattr(self, "group", r.new_group([])).workers:
            self.commanded_off.add(name)
            self.send(r.Stop(name))
        for _ in range(8):
            self.now = (r.next_deadline(self.group) if hasattr(self, "group") else None) or 0.0
            if not hasattr(self, "group") or r.next_deadline(self.group) is None:
                break
            self.send(r.Tick())
        for name in sorted(getattr(self, "running", {})):
            self.send(r.Exited(name, self.running.pop(name), "killed"))
        if hasattr(self, "group"):
            assert {w.phase for w in self.group.workers.values()} == {"stopped"}


Supervision.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSupervision = Supervision.TestCase
