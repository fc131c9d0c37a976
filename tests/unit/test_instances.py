"""How many instances there are, which go, when they are started, and what bounds all that."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.configuration.config import Integration
from vsm.confinement import uids
from vsm.core import instance_starts as starts
from vsm.core import restart
from vsm.core.instance_demand import SESSION_IDLE_S, Load, Terms, Unused, to_stop, wanted
from vsm.supervision.group import GroupRunner
from vsm.supervision.instance_set import (
    InstanceSet,
    integration_of,
    is_short_of_memory,
    number_of,
    terms_of,
)

POOL = Terms(kind="pool", least=2, most=4, resident=True)
SESSION = Terms(kind="session", most=4, spares=1)
SPEC = restart.WorkerSpec(name="a", intensity=2, backoff_initial_s=0.001)

counts = st.integers(0, 9)
terms = st.builds(
    Terms,
    kind=st.sampled_from(["pool", "session"]),
    least=st.integers(0, 4),
    most=st.integers(4, 8),
    spares=st.integers(0, 3),
    idle_stop_s=st.sampled_from([0.0, 5.0]),
    lazy=st.booleans(),
    resident=st.booleans(),
)
loads = st.builds(
    Load,
    *(counts, counts, counts, counts, counts),
    needed=st.booleans(),
    called=st.booleans(),
    outdated=st.sampled_from([0, 0, 1, 3]),
)


# ---- how many ------------------------------------------------------------------------------


@given(terms, loads)
def test_wanted_is_within_the_bounds_and_enough_for_every_session(one: Terms, load: Load) -> None:
    count = wanted(one, load)
    assert 0 <= count <= one.most + (one.kind == "pool" and load.outdated > 0)
    if one.kind == "session":
        assert count >= min(one.most, load.claimed + load.waiting)
    else:
        assert count >= min(one.most, load.live - min(load.outdated, load.starting))
    if load.needed:
        assert count >= 1


def test_pool_grows_by_one_when_all_are_busy_and_none_is_starting() -> None:
    assert wanted(POOL, Load(live=2, busy=1, called=True)) == 2
    assert wanted(POOL, Load(live=2, busy=2, called=True)) == 3
    assert wanted(POOL, Load(live=3, busy=2, starting=1, called=True)) == 3
    assert wanted(POOL, Load(live=4, busy=4, called=True)) == 4


def test_pool_that_is_replaced_has_one_more_for_a_moment_and_ends_as_large_as_it_was() -> None:
    assert wanted(POOL, Load(live=3, outdated=3)) == 4
    assert wanted(POOL, Load(live=4, outdated=3, starting=1)) == 4
    assert wanted(POOL, Load(live=3, outdated=2)) == 4
    assert wanted(POOL, Load(live=4, outdated=1, starting=1)) == 4
    assert wanted(POOL, Load(live=3)) == 3
    assert wanted(POOL, Load(live=4, outdated=4)) == 5


def test_every_session_has_one_and_spares_wait_beside_them() -> None:
    assert wanted(SESSION, Load()) == 1
    assert wanted(SESSION, Load(claimed=1, waiting=1)) == 3
    assert wanted(SESSION, Load(claimed=4, waiting=3)) == 4


def test_lazy_wants_none_before_somebody_needs_it() -> None:
    for kind in ("pool", "session"):
        lazy = Terms(kind=kind, least=1, most=4, spares=2, lazy=True)  # type: ignore[arg-type]
        assert lazy.first == wanted(lazy, Load()) == 0
        assert wanted(lazy, Load(needed=True)) == 1


# ---- which go ------------------------------------------------------------------------------


@given(
    terms,
    st.lists(st.tuples(st.integers(0, 7200), st.booleans()), max_size=8),
    st.integers(0, 4),
)
def test_only_what_is_unused_for_long_enough_goes_and_never_below_the_floor(
    one: Terms, ages: list[tuple[int, bool]], busy: int
) -> None:
    now = 10_000.0
    private = one.kind == "session"
    unused = [Unused(str(n), now - age, private and own) for n, (age, own) in enumerate(ages)]
    claimed = sum(1 for each in unused if each.claimed)
    live = len(unused) + busy
    gone = to_stop(one, live, claimed + busy * private, unused, now)
    assert len(gone) == len(set(gone))
    by_name = {each.worker: each for each in unused}
    surplus = 0 if private else max(0, live - one.most)  # the bound was lowered
    assert len(gone) >= min(surplus, len(unused))
    for worker in gone[surplus:]:
        age_s = now - by_name[worker].since_s
        assert age_s >= (one.idle_stop_s or (SESSION_IDLE_S if by_name[worker].claimed else 60))
    if not private:
        assert live - len(gone) >= min(live, one.floor)


def test_pool_shrinks_to_its_least_and_lazily_to_nothing() -> None:
    unused = [Unused(name, 0.0, claimed=False) for name in "abcd"]
    assert to_stop(POOL, 4, 0, unused, 61.0) == ["a", "b"]
    lazy = Terms(kind="pool", least=1, most=4, lazy=True, idle_stop_s=5)
    assert to_stop(lazy, 4, 0, unused, 6.0) == ["a", "b", "c", "d"]
    assert to_stop(lazy, 4, 0, unused, 4.0) == []


def test_spares_stay_and_what_is_beyond_them_goes() -> None:
    unused = [Unused(name, 0.0, claimed=False) for name in "ab"]
    assert to_stop(SESSION, 2, 0, unused, 1e6) == ["a"]
    assert to_stop(SESSION, 3, 1, unused, 1e6) == ["a"]
    assert to_stop(SESSION, 3, 2, unused, 1e6) == []


# ---- when they are started -----------------------------------------------------------------


@given(terms, counts, counts, counts, counts, st.booleans())
def test_starts_never_exceed_what_is_wanted_or_may_exist(  # noqa: PLR0917 - drawn
    one: Terms, count: int, live: int, starting: int, ending: int, replacing: bool
) -> None:
    starting, alive = min(starting, live), live + ending
    asked = starts.Starts(wanted=count)
    new = starts.due(
        asked, one, live=live, starting=starting, alive=alive, now=1.0, replacing=replacing
    )
    assert new >= 0
    if new:
        assert live + new <= count
        assert alive + new <= one.most + replacing
        assert starting + new <= starts.STARTING_AT_ONCE


@given(terms, counts, counts)
def test_machine_short_of_memory_gets_the_first_and_no_more(
    one: Terms, count: int, live: int
) -> None:
    asked = starts.Starts(wanted=count)
    new = starts.due(asked, one, live=live, starting=0, alive=live, now=1.0, short_of_memory=True)
    assert new <= (starts.STARTING_AT_ONCE if not live else 0)


@pytest.mark.parametrize(("available", "short"), [(1, True), (62, True), (63, False), (900, False)])
def test_less_than_a_sixteenth_of_memory_is_short(
    tmp_path: Path, available: int, *, short: bool
) -> None:
    file = tmp_path / "meminfo"
    file.write_text(f"MemTotal: 1000 kB\nMemFree: 0 kB\nMemAvailable: {available} kB\n")
    assert is_short_of_memory(file) is short
    assert not is_short_of_memory(tmp_path / "missing")


def test_failures_delay_the_next_start_and_too_many_end_it() -> None:
    one: starts.Starts | None = starts.Starts(wanted=1)
    spec = restart.WorkerSpec(name="a", intensity=2, period_s=60, backoff_initial_s=1.0)
    for now, not_before in ((0.0, 0.0), (10.0, 11.0)):
        assert one is not None
        one = starts.failed(one, spec, now, 0.5)
        assert one is not None
        assert one.not_before == not_before
    assert one is not None
    assert starts.due(one, POOL, live=0, starting=0, alive=0, now=10.5) == 0
    assert starts.due(one, POOL, live=0, starting=0, alive=0, now=11.0) == 1
    assert starts.failed(one, spec, 20.0, 0.5) is None
    assert starts.failed(one, spec, 71.0, 0.5) is not None


# ---- the set, with processes that are only told of -----------------------------------------


class Processes:
    """The restart group's actor: what was asked for; the test says what became of it."""

    def __init__(self, one: Terms) -> None:
        self.runner = GroupRunner([SPEC], self)
        self.terms = one
        self.instances: InstanceSet | None = None
        self.alive: set[str] = set()
        self.terminated: set[str] = set()

    def spawn(self, name: str, incarnation: int) -> None:
        if number_of(name):
            self.alive.add(name)
            return
        number = 0 if self.instances is None else self.instances.number
        self.instances = InstanceSet(
            self.runner,
            SPEC,
            self.terms,
            incarnation=incarnation,
            number=number,
            short_of_memory=lambda: False,
        )
        self.instances.open()

    def drain(self, name: str) -> None:
        self.runner.send(restart.Drained(name))

    def terminate(self, name: str) -> None:
        if number_of(name):
            self.terminated.add(name)
        else:
            self.set.close("told to")

    ask_stack = kill = terminate

    def changed(self, change: restart.Changed) -> None:
        if not number_of(change.name):
            return
        if change.phase == "stopped":
            self.runner.remove(change.name)
            self.set.gone()
        elif change.phase == "ready":
            self.set.ready()

    @property
    def set(self) -> InstanceSet:
        assert self.instances is not None
        return self.instances

    @property
    def phase(self) -> str:
        return self.runner.phase("a")

    def ready(self, *names: str) -> None:
        for name in names:
            self.runner.send(restart.Ready(name, 1))

    def end(self, name: str, *, served: bool = False, hopeless: bool = False) -> None:
        """A process ended, by itself unless it was told to."""
        self.alive.remove(name)
        if name in self.terminated:
            self.terminated.remove(name)
        else:
            self.set.failed(name, "died", served=served, hopeless=hopeless)
        self.runner.send(restart.Exited(name, 1, "died", hopeless=hopeless))


Scenario = Callable[[Processes], Coroutine[Any, Any, None]]


def play(one: Terms, scenario: Scenario) -> None:
    async def run() -> None:
        processes = Processes(one)
        processes.runner.send(restart.Start("a"))
        await scenario(processes)
        processes.runner.send(restart.Panic())
        processes.runner.close()

    asyncio.run(run())


def test_set_is_ready_with_its_first_instance_and_starts_two_at_a_time() -> None:
    async def scenario(it: Processes) -> None:
        it.set.want(4, {})
        assert it.alive == {"a#1", "a#2"}
        assert it.phase == "starting"
        it.ready("a#1")
        assert it.phase == "ready"
        assert it.alive == {"a#1", "a#2", "a#3"}
        it.ready("a#2", "a#3")
        assert it.alive == {"a#1", "a#2", "a#3", "a#4"}
        it.set.want(99, {})
        it.ready("a#4")
        assert len(it.alive) == POOL.most

    play(POOL, scenario)


def test_bound_that_is_said_again_does_not_end_a_replacement_half_done() -> None:
    """S1, which wants one more meanwhile, says so once: a reload or S3 may come in between."""

    async def scenario(it: Processes) -> None:
        it.ready("a#1", "a#2")
        it.set.want(4, {})
        it.ready("a#3", "a#4")
        assert not it.set.in_exchange
        new = it.set.begin_aside()
        assert it.set.in_exchange
        it.runner.put(replace(SPEC, name=new, restart="temporary"))
        it.runner.send(restart.Start(new))
        it.ready(new)
        it.set.renew(SPEC)
        it.set.want(5, {"a#1": "it was replaced"})
        it.set.bind(POOL)  # while the first of the old ones ends
        it.end("a#1")
        assert it.alive == {"a#2", "a#3", "a#4", "a#5", "a#6"}
        for old, young in (("a#2", "a#6"), ("a#3", "a#7"), ("a#4", "a#8")):
            it.ready(young)
            assert it.set.in_exchange
            it.set.want(5 if old != "a#4" else 4, {old: "it was replaced"})
            it.end(old)
        assert it.alive == {"a#5", "a#6", "a#7", "a#8"}
        assert not it.set.in_exchange
        it.set.want(5, {})  # there is nothing to be replaced any more
        assert len(it.alive) == POOL.most

    play(POOL, scenario)


def test_lazy_set_is_ready_without_a_process() -> None:
    async def scenario(it: Processes) -> None:
        assert (it.phase, it.alive) == ("ready", set())
        it.set.want(1, {})
        assert it.alive == {"a#1"}

    play(Terms(kind="session", most=4, lazy=True), scenario)


def test_what_is_ending_counts_until_it_is_gone() -> None:
    async def scenario(it: Processes) -> None:
        it.ready("a#1")
        it.set.want(2, {"a#1": "its session ended"})
        assert it.terminated == {"a#1"}
        assert it.alive == {"a#1"}  # two may exist, but not more than may start, or `most`
        it.end("a#1")
        it.ready("a#2")
        assert it.phase == "ready"

    play(Terms(kind="session", most=1, spares=1), scenario)


def test_stop_ends_when_the_last_instance_is_gone_and_a_start_goes_on_counting() -> None:
    async def scenario(it: Processes) -> None:
        it.ready("a#1", "a#2")
        it.runner.send(restart.Stop("a", drain=False))
        assert it.terminated == {"a#1", "a#2"}
        it.end("a#1")
        assert it.phase == "stopping"
        it.end("a#2")
        assert it.phase == "stopped"
        it.runner.send(restart.Start("a"))
        assert it.alive == {"a#3", "a#4"}

    play(POOL, scenario)


def test_first_instance_that_fails_is_a_crash_of_the_whole() -> None:
    async def scenario(it: Processes) -> None:
        it.end("a#1")
        assert it.phase == "stopping"
        it.end("a#2")
        assert it.runner.worker("a").crashes
        assert it.phase == "starting"  # the first crash restarts at once

    play(POOL, scenario)


def test_what_cannot_be_mended_is_quarantined_at_once() -> None:
    async def scenario(it: Processes) -> None:
        it.end("a#1", hopeless=True)
        assert it.phase == "quarantined"
        assert "a#1: died" in it.runner.worker("a").reason

    play(SESSION, scenario)


@pytest.mark.parametrize(("one", "survives"), [(SESSION, True), (POOL, False)])
def test_crashes_in_service_end_a_pool_but_not_other_sessions(
    one: Terms, *, survives: bool
) -> None:
    async def scenario(it: Processes) -> None:
        it.set.want(4, {})
        names = [f"a#{number}" for number in range(1, 5)]
        it.ready(*names)
        for name in names[: SPEC.intensity + 1]:
            it.end(name, served=True)
        assert it.phase == ("ready" if survives else "stopping")
        for name in it.terminated & it.alive:
            it.end(name)
        assert it.phase == ("ready" if survives else "quarantined")

    play(one, scenario)


def test_new_gateway_gets_no_instance_that_may_have_been_a_sessions() -> None:
    async def scenario(it: Processes) -> None:
        it.ready("a#1")
        it.set.gateway_lost()
        assert it.terminated == {"a#1"}
        it.end("a#1")
        assert it.alive == {"a#2"}

    play(SESSION, scenario)


# ---- what the configuration means ----------------------------------------------------------


def test_terms_follow_the_entry() -> None:
    def one(**changes: Any) -> Terms | None:
        return terms_of(Integration(name="a", command=("x",), **changes))

    assert one() is None
    assert one(start="lazy") == Terms(kind="pool", least=1, lazy=True)
    assert one(idle_stop_s=9.0) == Terms(kind="pool", least=1, idle_stop_s=9.0)
    assert one(instances="pool", pool_max=3) == Terms(kind="pool", least=1, most=3, resident=True)
    assert one(instances="session", spares=2) == Terms(kind="session", most=16, spares=2)


@given(st.integers(1, 500), st.sets(st.integers(0, 3)))
def test_uid_of_an_instance_is_stable_reserved_and_nobody_elses(
    number: int, near: set[int]
) -> None:
    first = uids.instance_uid("a", number, ())
    taken = {first + step for step in near}
    uid = uids.instance_uid("a", number, taken)
    assert uid == uids.instance_uid("a", number, taken)
    assert uid not in taken
    assert uids.may_be_workers(uid) or os.geteuid() != 0


def test_name_of_an_instance_tells_its_integration_and_number() -> None:
    assert (integration_of("a-b#12"), number_of("a-b#12")) == ("a-b", 12)
    assert (integration_of("a-b"), number_of("a-b")) == ("a-b", 0)
