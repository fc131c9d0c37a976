"""One worker takes another's place: examples, and that service never stops for it (Hypothesis)."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vsm.core import replacement as rp
from vsm.core import restart as r

SPEC = r.WorkerSpec(name="a", intensity=2, drain_timeout_s=5, stop_timeout_s=2, stable_s=30)


def step(group: r.Group, event: r.Event, now: float = 1.0) -> tuple[r.Group, list[r.Action]]:
    group, actions = rp.step(group, event, now)
    return group, [action for action in actions if not isinstance(action, r.Changed)]


def replacing(phase: str = "ready") -> r.Group:
    """`a` is in the phase, and `a#1` starts to take its place."""
    group = r.new_group([SPEC])
    group, _ = step(group, r.Start("a"), 0)
    if phase != "starting":
        group, _ = step(group, r.Ready("a", 1), 0)
    group = r.with_worker(group, rp.successor_spec(SPEC, "a#1"))
    group, actions = step(group, r.Start("a#1"))
    assert actions == [r.Spawn("a#1", 1)]
    if phase == "backing_off":
        for incarnation in (1, 2):
            group, _ = step(group, r.Exited("a", incarnation, "died"))
    if phase == "quarantined":
        group, _ = step(group, r.Exited("a", 1, "died", hopeless=True))
    return group


def test_ready_successor_takes_the_name_and_the_old_process_drains_under_its_own() -> None:
    group, actions = step(replacing(), r.Ready("a#1", 1), 3)
    assert actions == [rp.Switched("a", 2, "a#1"), r.Drain("a#1", 1)]
    taken, left = group.workers["a"], group.workers["a#1"]
    assert (taken.phase, taken.incarnation, taken.restarts) == ("ready", 2, 1)
    assert (left.phase, left.deadline, left.reason) == ("draining", 8, "replaced")
    group, actions = step(group, r.Drained("a#1"), 4)
    assert actions == [r.Terminate("a#1", 1)]
    group, actions = step(group, r.Exited("a#1", 1, "ended"), 5)
    assert (group.workers["a#1"].phase, actions) == ("stopped", [])
    assert group.workers["a"].phase == "ready"


def test_old_process_that_does_not_drain_is_ended_at_its_deadline() -> None:
    group, _ = step(replacing(), r.Ready("a#1", 1), 3)
    group, actions = step(group, r.Tick(), 8)
    assert actions == [r.Terminate("a#1", 1)]
    assert step(group, r.Tick(), 10)[1] == [r.Kill("a#1", 1)]


@pytest.mark.parametrize("phase", ["quarantined", "backing_off"])
def test_successor_serves_where_the_other_has_no_process(phase: str) -> None:
    group = replacing(phase)
    assert group.workers["a"].phase == phase
    group, actions = step(group, r.Ready("a#1", 1))
    assert [type(action) for action in actions] == [rp.Switched]
    assert group.workers.keys() == {"a"}
    assert (group.workers["a"].phase, group.workers["a"].crashes) == ("ready", ())


def test_successor_serves_first_where_the_other_is_being_restarted() -> None:
    group, actions = step(replacing("starting"), r.Ready("a#1", 1))
    assert actions == [rp.Switched("a", 2, "a#1"), r.Terminate("a#1", 1)]
    assert group.workers["a#1"].phase == "stopping"


def test_whoever_is_due_at_the_moment_of_the_change_is_started() -> None:
    """A worker's word may be read before the timer that is due as well."""
    group = replacing()
    group = r.with_worker(group, r.WorkerSpec(name="b"))
    group, _ = step(group, r.Start("b"))
    for incarnation in (1, 2):
        group, _ = step(group, r.Exited("b", incarnation, "died"))
    assert group.workers["b"].phase == "backing_off"
    group, actions = step(group, r.Ready("a#1", 1), 3)
    assert actions == [r.Spawn("b", 3), rp.Switched("a", 2, "a#1"), r.Drain("a#1", 1)]
    assert group.workers["b"].phase == "starting"


def test_successor_that_fails_changes_nothing_and_is_not_tried_again() -> None:
    before = replacing()
    late, actions = step(before, r.Tick(), 31)
    assert actions == [r.AskStack("a#1", 1)]
    for group in (before, late):
        after, actions = step(group, r.Exited("a#1", 1, "died"), 32)
        assert (after.workers["a#1"].phase, actions) == ("stopped", [])
        assert after.workers["a"].phase == "ready"
    assert "not ready within" in after.workers["a#1"].reason


@pytest.mark.parametrize("drain", [True, False])
def test_stop_ends_both_and_the_successor_never_serves(*, drain: bool) -> None:
    group, actions = step(replacing(), r.Stop("a", drain=drain))
    first = r.Drain("a", 1) if drain else r.Terminate("a", 1)
    assert actions == [first, r.Terminate("a#1", 1)]
    group, actions = step(group, r.Ready("a#1", 1))
    assert actions == []
    assert group.workers["a"].phase != "ready"


def test_what_still_drains_may_go_on_unless_all_of_it_is_to_end_now() -> None:
    group, _ = step(replacing(), r.Ready("a#1", 1))
    assert step(group, r.Stop("a", drain=True))[1] == [r.Drain("a", 2)]
    assert step(group, r.Stop("a", drain=False))[1] == [
        r.Terminate("a", 2),
        r.Terminate("a#1", 1),
    ]


def test_successor_of_nobody_does_not_serve() -> None:
    group = r.with_worker(r.new_group([]), rp.successor_spec(SPEC, "a#1"))
    group, _ = step(group, r.Start("a#1"))
    assert not any(isinstance(a, rp.Switched) for a in step(group, r.Ready("a#1", 1))[1])


class Replacements(RuleBasedStateMachine):
    """A world that performs the actions as the supervisor does, in any order of events."""

    @initialize(kind=st.sampled_from(["permanent", "transient", "temporary"]))
    def begin(self, kind: r.RestartType) -> None:
        self.group = r.new_group([r.WorkerSpec(name="a", restart=kind, intensity=2)])
        self.now, self.last, self.number = 0.0, 0, 0
        self.processes: dict[tuple[str, int], int] = {}  # worker and incarnation → process
        self.live: set[int] = set()

    def send(self, event: r.Event) -> None:
        before = self.group
        self.group, actions = rp.step(before, event, self.now)
        for action in actions:
            if isinstance(action, r.Spawn):
                self.last += 1
                assert (action.name, action.incarnation) not in self.processes
                assert not self.group.panic
                self.processes[action.name, action.incarnation] = self.last
                self.live.add(self.last)
            elif isinstance(action, rp.Switched):
                self.switch(action)
            elif not isinstance(action, r.Changed):
                assert (action.name, action.incarnation) in self.processes
        for key in [k for k, w in self.group.workers.items() if "#" in k and w.phase == "stopped"]:
            self.group = r.without_worker(self.group, key)

    def switch(self, action: rp.Switched) -> None:
        had = self.processes.pop((action.name, action.incarnation - 1), None)
        new = self.processes.pop((action.left, 1))
        self.processes[action.name, action.incarnation] = new
        assert (had is None) is (action.left not in self.group.workers)
        if had is not None:
            self.processes[action.left, 1] = had

    @rule()
    def start(self) -> None:
        self.send(r.Start("a"))

    @rule(drain=st.booleans())
    def stop(self, *, drain: bool) -> None:
        self.send(r.Stop("a", drain=drain))
        assert not any(w.wanted for w in self.group.workers.values())

    @precondition(lambda self: not self.group.panic and self.group.workers["a"].wanted)
    @rule()
    def replace(self) -> None:
        for key, worker in self.group.workers.items():
            if worker.spec.replaces and worker.wanted:
                self.send(r.Stop(key, drain=False))
        self.number += 1
        key = f"a#{self.number}"
        self.group = r.with_worker(self.group, rp.successor_spec(self.group.workers["a"].spec, key))
        self.send(r.Start(key))

    @precondition(lambda self: self.processes)
    @rule(data=st.data(), how=st.sampled_from(["ready", "exited", "failed", "drained"]))
    def happens(self, data: st.DataObject, how: str) -> None:
        key, incarnation = data.draw(st.sampled_from(sorted(self.processes)))
        served, others = self.group.workers["a"], key != "a"
        if how == "ready":
            self.send(r.Ready(key, incarnation))
        elif how == "failed":
            self.send(r.Failed(key, incarnation, "unfit"))
        elif how == "drained":
            self.send(r.Drained(key))
        else:
            del self.processes[key, incarnation]
            self.send(r.Exited(key, incarnation, "ended"))
        if others and how != "ready":
            assert self.group.workers["a"] == served  # whatever becomes of those beside it
        if others and served.phase == "ready":
            assert self.group.workers["a"].phase == "ready"

    @rule(seconds=st.sampled_from([0.0, 1.0, 40.0]), late=st.booleans())
    def time_passes(self, seconds: float, *, late: bool) -> None:
        self.now += seconds
        if late:  # the timer goes off after whatever comes next
            return
        served = self.group.workers["a"].phase == "ready"
        self.send(r.Tick())
        assert not served or self.group.workers["a"].phase == "ready"

    @rule()
    def panic_and_resume(self) -> None:
        self.send(r.Panic())
        assert not any(w.phase in {"starting", "ready"} for w in self.group.workers.values())
        self.send(r.Resume())

    @invariant()
    def every_living_worker_has_its_process(self) -> None:
        alive = {(k, w.incarnation) for k, w in self.group.workers.items() if w.alive}
        assert alive == set(self.processes)

    @invariant()
    def at_most_one_serves_and_one_is_to_come(self) -> None:
        workers = self.group.workers.values()
        assert sum(worker.phase == "ready" for worker in workers) <= 1
        assert sum(bool(w.spec.replaces) and w.wanted for w in workers) <= 1


Replacements.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestReplacements = Replacements.TestCase
