"""How many instances a pool may have: what bounds it, who moves that, and what undoes it."""

import asyncio
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from system_rig import Rig, of

from vsm.configuration.config import Config, Integration
from vsm.configuration.regulation import Control as ControlTable
from vsm.core import restart
from vsm.core.budget import Claim, plan
from vsm.core.instance_demand import Load, Terms, Unused, to_stop, wanted
from vsm.core.pool_room import most_that_fit
from vsm.errors import VsmError
from vsm.gateway.client import Client
from vsm.gateway.instances import Instance, Instances
from vsm.gateway.integration import Settings
from vsm.gateway.pool_load import TELL_ROUTES_EVERY, PoolLoad
from vsm.gateway.upstream import Upstream
from vsm.governance.pool_sizes import PoolSizes
from vsm.messages import (
    Bound,
    Decided,
    Move,
    Moved,
    Policy,
    Rates,
    ResourceRow,
    Resources,
    Settled,
    Start,
    Summary,
)
from vsm.protocol.catalogue import Surface
from vsm.supervision.pool_bounds import PoolBounds
from vsm.systems.control import LEAST, QUANTUM, Control
from vsm.systems.pools import Pools

POOL = Terms(kind="pool", least=1, most=4, resident=True)
INSTANCES = "instances"


# ---- the division --------------------------------------------------------------------------


@st.composite
def pools(draw: st.DrawFn) -> list[Claim]:
    found = []
    for number in range(draw(st.integers(1, 6))):
        floor = draw(st.integers(1, 6))
        ceiling = floor + draw(st.integers(0, 20))
        held = draw(st.integers(floor, ceiling))
        need, weight = draw(st.integers(0, 30)), draw(st.floats(0.5, 10))
        found.append(Claim(f"i{number}", floor, ceiling, held, need, weight))
    return found


@given(pools(), st.integers(1, 80))
def test_sizes_are_whole_within_floor_and_ceiling_and_the_budget_and_starve_nobody(
    those: list[Claim], budget: int
) -> None:
    for _ in range(3):  # lowered first, raised with what that gives
        found = plan(budget, those, least=LEAST[INSTANCES], quantum=QUANTUM[INSTANCES])
        after = {change.name: change.after for change in found.changes}
        those = [claim._replace(held=after.get(claim.name, claim.held)) for claim in those]
    for claim in those:
        assert claim.held == int(claim.held)
        assert 1 <= claim.floor <= claim.held <= claim.ceiling
    if sum(claim.floor for claim in those) <= budget:
        assert sum(claim.held for claim in those) <= budget
    again = plan(budget, those, least=LEAST[INSTANCES], quantum=QUANTUM[INSTANCES])
    assert again.changes == ()  # it comes to rest


@given(
    st.dictionaries(st.sampled_from("abc"), st.floats(1, 100), min_size=1),
    st.dictionaries(st.sampled_from("abc"), st.floats(0, 500)),
    st.dictionaries(st.sampled_from("abc"), st.floats(1, 1000)),
)
def test_what_fits_really_fits_and_one_more_would_not(
    each: dict[str, float], others: dict[str, float], budget: dict[str, float]
) -> None:
    count = most_that_fit(each, others, budget)
    if not each.keys() & budget.keys():
        assert count == math.inf
        return

    def fits(number: float) -> bool:
        return all(
            number * floor + others.get(one, 0) <= budget[one] * (1 + 1e-6)
            for one, floor in each.items()
            if one in budget
        )

    assert count == 0 or fits(count)
    assert not fits(count + 1.001)


# ---- S1 inside the bound -------------------------------------------------------------------


@given(st.integers(-2, 9), st.integers(1, 9), st.integers(0, 9), st.booleans())
def test_s1_never_wants_more_than_the_bound_nor_less_than_the_floor(
    bound: int, live: int, busy: int, called: bool
) -> None:
    within = POOL.within(bound)
    assert within.most == max(1, min(4, bound))
    count = wanted(within, Load(live=live, busy=busy, called=called))
    assert POOL.floor <= count <= within.most


def test_who_is_one_too_many_ends_when_it_is_idle_the_longest_unused_first() -> None:
    unused = [Unused("new", 9.0, claimed=False), Unused("old", 5.0, claimed=False)]
    assert to_stop(POOL.within(2), 4, 0, unused, now=10.0) == ["old", "new"]
    assert to_stop(POOL.within(3), 4, 0, unused, now=10.0) == ["old"]
    assert to_stop(POOL.within(2), 4, 0, [], now=10.0) == []  # both have calls in flight
    assert to_stop(POOL, 4, 0, unused, now=10.0) == []


class Session(Client):
    def notify(self, frame: bytes) -> None: ...


class Pipes:
    """An upstream as far as instances look at it."""

    def __init__(self, in_flight: int = 0) -> None:
        self.in_flight = in_flight
        self.tally = (0, 0)
        self.lost = self.failed_some = False


class Hooks:
    """A supervisor that remembers what it was told."""

    def __init__(self) -> None:
        self.wanted: list[int] = []
        self.released: list[str] = []

    def release(self, instance: Instance, reason: str) -> None:
        instance.upstream = None
        if "may have" in reason:
            self.released.append(instance.worker)

    def claimed(self, instance: Instance, client: Client) -> None:
        raise AssertionError(f"{instance.worker} of a pool belongs to {client}")

    def tell_wanted(self, name: str, count: int, release: dict[str, str]) -> None:
        assert (name, set(release) - {"a-0", "a-1", "a-2", "a-3"}) == ("a", set())
        self.wanted.append(count)


def with_instances(count: int, scenario: Callable[[Instances, Hooks, list[Pipes]], None]) -> None:
    async def main() -> None:
        hooks = Hooks()
        those = Instances("a", POOL, hooks)
        pipes = [Pipes() for _ in range(count)]
        for number, one in enumerate(pipes):
            instance = those.add(f"a-{number}", number + 1, Settings(name="a", prefix="a"))
            instance.upstream = cast("Upstream", one)
            those.became_ready(instance)
        scenario(those, hooks, pipes)
        those.close("the end")

    asyncio.run(main())


def test_lowered_bound_ends_the_idle_at_once_and_lets_the_busy_finish() -> None:
    def scenario(those: Instances, hooks: Hooks, pipes: list[Pipes]) -> None:
        pipes[0].in_flight, pipes[3].in_flight = 5, 1
        those.bind(1)
        assert hooks.released == ["a-1", "a-2"]
        assert hooks.wanted[-1] == 1
        assert those.pick(Session()) is pipes[0]  # nothing new for who is to go

    with_instances(4, scenario)


def test_full_pool_that_is_being_replaced_keeps_all_that_serve() -> None:
    def scenario(those: Instances, hooks: Hooks, pipes: list[Pipes]) -> None:
        del hooks, pipes
        new = those.make("a-4", 5, Settings(name="a", prefix="a"))
        those.join(new, Surface("a"), alike=True)
        those._stop_unused()  # the look for who is idle comes just now
        assert len(those.ready) == POOL.most

    with_instances(POOL.most, scenario)


def test_raised_bound_lets_s1_start_more_again() -> None:
    def scenario(those: Instances, hooks: Hooks, pipes: list[Pipes]) -> None:
        those.bind(2)
        pipes[0].in_flight = pipes[1].in_flight = 3
        those.pick(Session())
        assert max(hooks.wanted, default=2) <= 2
        those.bind(3)
        those.pick(Session())
        assert hooks.wanted[-1] == 3

    with_instances(2, scenario)


def test_load_of_a_pool_is_what_was_in_flight_when_somebody_looked() -> None:
    def scenario(those: Instances, hooks: Hooks, pipes: list[Pipes]) -> None:
        guard = SimpleNamespace(queued=5, turned_away=0)
        integration = SimpleNamespace(instances=those, guard=guard)
        other = SimpleNamespace(instances=None, guard=guard)
        load = PoolLoad(cast("Any", SimpleNamespace(integrations={"a": integration, "b": other})))
        load.look()
        assert hooks.released == []
        pipes[0].in_flight = 3
        load.look()
        row = load.take()["a"]
        assert row == {
            "pool_bound": 4,
            "pool_in_flight": 1.5,
            "pool_busy_share": 0.25,
            "pool_crowded_share": 0.0,  # it could have more instances
            "pool_queued": 5,
            "pool_turned_away": 0,
        }
        those.bind(2)
        guard.queued, guard.turned_away = 7, 1
        load.look()
        row = load.take()["a"]
        assert row["pool_crowded_share"] == 1.0
        assert (row["pool_queued"], row["pool_turned_away"]) == (2, 1)
        assert load.take() == {}

    with_instances(2, scenario)


def test_what_instances_answered_is_told_now_and_then_and_when_one_has_ended() -> None:
    def scenario(those: Instances, hooks: Hooks, pipes: list[Pipes]) -> None:
        assert hooks.released == []
        guard = SimpleNamespace(queued=0, turned_away=0)
        integration = SimpleNamespace(instances=those, guard=guard)
        load = PoolLoad(cast("Any", SimpleNamespace(integrations={"a": integration})))
        load.look()
        pipes[0].tally, pipes[1].tally = (5, 0), (3, 1)
        assert load.routed() == {}
        pipes[1].lost = True
        assert load.routed() == {"a": [[2, 3, 1]]}
        told = [load.routed() for _ in range(TELL_ROUTES_EVERY - 2)]
        assert told == [{}] * (TELL_ROUTES_EVERY - 3) + [{"a": [[1, 5, 0]]}]
        pipes[0].tally = (7, 0)
        pipes[0].lost = True
        assert load.routed() == {"a": [[1, 2, 0]]}
        assert load.routed() == {}

    with_instances(2, scenario)


# ---- S3 ------------------------------------------------------------------------------------


def with_s3(scenario: Callable[[Rig, Control], None], budget: float = 8) -> None:
    async def main() -> None:
        rig = Rig("system3")
        try:
            control = Control(rig.context)
            control.configure(Start(epoch=1, settings={"budget": {INSTANCES: budget}}))
            scenario(rig, control)
        finally:
            rig.close()

    asyncio.run(main())


def row(bound: float, *, most: float = 6, least: float = 1, priority: int = 1) -> ResourceRow:
    return ResourceRow(
        floor={INSTANCES: least},
        ceiling={INSTANCES: most},
        limit={INSTANCES: bound},
        priority=priority,
    )


def hear(control: Control, **pools: tuple[float, float]) -> None:
    """A summary of S1: calls in flight, and for which share of the time a pool was crowded."""
    rows: dict[str, dict[str, int | float]] = {
        name: {
            "ok": 10,
            "pool_bound": 1,
            "pool_in_flight": calls,
            "pool_busy_share": 1.0,
            "pool_crowded_share": crowded,
            "pool_queued": 0,
            "pool_turned_away": 0,
        }
        for name, (calls, crowded) in pools.items()
    }
    control.on_summary(Summary(interval_s=5.0, integrations=rows), [])


def sample(control: Control, at_s: float, **rows: ResourceRow) -> None:
    control.on_resources(Resources(at_s=at_s, rows=rows), [])


def test_s3_gives_a_crowded_pool_what_an_idle_one_does_not_need_and_says_why() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        hear(control, busy=(6.0, 0.9), idle=(0.0, 0.0))
        sample(control, 1, busy=row(4), idle=row(4))
        moves = of(Move, said := rig.said())
        assert [(one.integration, one.limits) for one in moves] == [
            ("idle", {INSTANCES: 2.0}),  # who gives comes first
            ("busy", {INSTANCES: 6.0}),
        ]
        decided = {one.subject: one for one in of(Decided, said)}
        assert decided["busy"].rule == "budget.raise.need"
        assert decided["busy"].choice == "instances 6"
        assert decided["busy"].inputs["crowded_share"] == 0.9
        assert decided["busy"].inputs["in_flight"] == 6.0
        assert decided["idle"].rule == "budget.lower.budget"

    with_s3(scenario)


def test_idle_pools_stay_where_they_are() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        for at_s in range(4):
            hear(control, a=(0.4, 0.0), b=(0.0, 0.0))
            sample(control, float(at_s), a=row(4), b=row(4))
        assert rig.said() == []
        assert control.reason() == "instances: every limit is wide enough for what is used"

    with_s3(scenario)


def test_after_a_move_a_pool_is_left_alone_until_a_whole_summary_shows_what_it_changed() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        hear(control, a=(3.0, 0.9))
        sample(control, 1, a=row(2, most=20))
        said = rig.said()
        (move,) = of(Move, said)
        assert move.limits == {INSTANCES: 4.0}
        control.on_moved(Moved(id=move.id, state="in force"), [])
        sample(control, 2, a=row(4, most=20))
        hear(control, a=(6.0, 0.9))  # began before the move
        sample(control, 3, a=row(4, most=20))
        assert rig.said() == []
        assert "not known yet" in control.claims[INSTANCES][0].fixed
        hear(control, a=(3.5, 0.0))
        sample(control, 4, a=row(4, most=20))
        (settled,) = of(Settled, rig.said())
        assert settled.key == of(Decided, said)[0].key
        assert settled.outcome == {
            "state": "in force",
            "crowded_share": [0.9, 0.0],
            "in_flight": [3.0, 3.5],
            "answered_per_s": [2.0, 2.0],
            "relieved": True,
        }

    with_s3(scenario, budget=20)


def test_pool_that_goes_to_and_fro_is_left_alone() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        control.on_rates(Rates(body={"damped": {"a": [INSTANCES]}}), [])
        hear(control, a=(6.0, 0.9))
        sample(control, 1, a=row(2))
        assert of(Move, rig.said()) == []
        control.on_rates(Rates(body={"damped": {}}), [])
        sample(control, 2, a=row(2))
        assert of(Move, rig.said())

    with_s3(scenario)


def test_pool_that_needs_more_than_its_ceiling_is_proposed_to_s5() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        hear(control, a=(9.0, 0.9))
        sample(control, 1, a=row(6))
        assert of(Move, rig.said()) == []
        (proposal,) = rig.said("system3>system5:proposal")
        assert (proposal.subject, proposal.change) == ("a", "instances ceiling")

    with_s3(scenario)


def test_what_s4_foresaw_and_s5_approved_is_given_ahead_of_the_calls() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        hear(control, a=(0.0, 0.0))
        sample(control, 1, a=row(2))
        approved = Policy(
            id=1, sender="system4", proposal=3, subject="a", change=INSTANCES,
            to_value=3.2, verdict="approved", rule="closure.unopposed",
        )  # fmt: skip
        control.on_policy(approved, [])
        sample(control, 2, a=row(2))
        (move,) = of(Move, said := rig.said())
        assert move.limits == {INSTANCES: 4.0}
        assert of(Decided, said)[0].rule == "budget.raise.foreseen"

    with_s3(scenario)


def test_lost_variety_and_priority_weigh_where_both_pools_are_short() -> None:
    def scenario(rig: Rig, control: Control) -> None:
        hear(control, a=(9.0, 0.9), b=(9.0, 0.9))
        sample(control, 1, a=row(2, most=12, priority=3), b=row(2, most=12))
        moves = {one.integration: one.limits[INSTANCES] for one in of(Move, rig.said())}
        assert moves["a"] > moves["b"] > 2
        assert sum(moves.values()) <= 12

    with_s3(scenario, budget=12)


# ---- the supervisor judges -----------------------------------------------------------------


class World:
    """The supervisor's part, and what it tells S1 and the record."""

    def __init__(self, budget: float = 6, **more: float) -> None:
        entries = {
            name: Integration(name=name, command=("x",), instances="pool", pool_max=4)
            for name in ("a", "b")
        }
        entries["single"] = Integration(name="single", command=("x",))
        self.told: list[Bound] = []
        self.bound: dict[str, int] = {}
        self.noted: list[Any] = []
        self.ranges: dict[str, Any] = {}
        hooks = SimpleNamespace(tell_operations=lambda message, _fds: self.told.append(message))
        self.group: Any = SimpleNamespace(
            integrations=entries,
            sets={name: SimpleNamespace(bind=self._bind(name)) for name in ("a", "b")},
            hooks=hooks,
            running_of=lambda _name: [1],
        )
        self.group.bounds = self.bounds = PoolBounds(self.group)
        config = Config(control=ControlTable(budget={INSTANCES: budget, **more}))
        supervisor: Any = SimpleNamespace(config=config, integrations=self.group, stopping=False)
        self.sizes = PoolSizes(
            supervisor,
            lambda name, _workers: self.ranges.get(name, {}),
            lambda _system, message: self.noted.append(message),
        )

    def _bind(self, name: str) -> Callable[[Terms], None]:
        def bind(terms: Terms) -> None:
            self.bound[name] = terms.most

        return bind

    def limit(self, name: str, workers: Any = ()) -> tuple[float, float, float]:
        rows: dict[str, ResourceRow] = {}
        self.sizes.add(rows, {key: [] for key in workers})
        found = rows[name]
        return found.floor[INSTANCES], found.limit[INSTANCES], found.ceiling[INSTANCES]


def test_move_within_bounds_and_budget_is_put_in_force_and_told_to_s1() -> None:
    world = World()
    assert world.limit("a") == (1, 4, 4)
    assert world.sizes.put("b", 2) == -2
    assert world.bound == {"b": 2}
    assert [(one.integration, one.most) for one in world.told] == [("b", 2)]
    assert world.limit("b") == (1, 2, 4)
    world.sizes.put("b", 1)
    assert world.sizes.put("a", 3) == -1
    assert world.sizes.put("a", 4) == 1


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("a", 0, "within 1 to 4"),
        ("a", 5, "within 1 to 4"),
        ("a", 2.5, "no number"),
        ("a", math.nan, "no number"),
        ("a", math.inf, "no number"),
        ("single", 1, "not system 3's"),
        ("nobody", 1, "not system 3's"),
    ],
)
def test_move_beyond_what_s3_may_is_refused(name: str, value: float, why: str) -> None:
    world = World()
    with pytest.raises(VsmError, match=why):
        world.sizes.put(name, value)
    assert (world.told, world.bounds.granted) == ([], {})


def test_raise_beyond_the_budget_is_refused_whatever_s3_says() -> None:
    world = World()
    world.sizes.put("a", 2)
    world.sizes.put("b", 3)
    with pytest.raises(VsmError, match="exceed the budget"):
        world.sizes.put("a", 4)
    world.sizes.put("a", 3)


def test_without_a_budget_nothing_is_told_or_moved() -> None:
    world = World(budget=0)
    rows: dict[str, ResourceRow] = {}
    world.sizes.add(rows, {})
    assert rows == {}
    with pytest.raises(VsmError, match="not system 3's"):
        world.sizes.put("a", 2)


def test_operators_bound_counts_stays_and_goes_when_he_says() -> None:
    world = World()
    world.sizes.put("a", 2)
    world.bounds.command("a", 3)
    assert world.limit("a") == (3, 3, 3)
    with pytest.raises(VsmError, match="a command"):
        world.sizes.put("a", 2)
    world.sizes.release("system 3 is gone")
    assert world.limit("a") == (3, 3, 3)
    world.bounds.command("a", None)
    assert world.limit("a") == (1, 4, 4)


def changed(name: str, phase: restart.Phase) -> restart.Changed:
    return restart.Changed(name, 1, phase, "")


def test_dead_s3_leaves_every_pool_as_configured() -> None:
    world = World()
    world.sizes.put("a", 1)
    world.sizes.changed(changed("system4", "starting"))
    world.sizes.changed(changed("system3", "ready"))
    assert world.limit("a") == (1, 1, 4)
    world.sizes.changed(changed("system3", "backing_off"))
    assert world.limit("a") == (1, 4, 4)
    assert world.bound["a"] == world.told[-1].most == 4
    assert [(one.event, one.integration) for one in world.noted] == [("control.released", "a")]


def test_ceiling_is_what_the_other_budgets_have_room_for() -> None:
    world = World(memory=400.0)
    world.ranges = {name: {"memory": (100.0, 500.0)} for name in ("a", "single")}
    assert world.limit("a", workers=("a",)) == (1, 4, 4)
    assert world.limit("a", workers=("a", "single")) == (1, 4, 3)
    world.ranges["a"] = {"memory": (900.0, 900.0)}
    assert world.limit("a", workers=("a",)) == (1, 4, 1)  # the floor stays


def test_new_s1_is_told_of_bounds_that_are_not_the_entrys() -> None:
    world = World()
    world.bounds.tell("a")
    assert world.told == []
    world.sizes.put("a", 2)
    world.told.clear()
    world.bounds.tell("a")
    assert [one.most for one in world.told] == [2]
    world.bounds.pop("a", None)
    assert world.limit("a") == (1, 4, 4)


def test_summary_that_lacks_something_is_no_news_of_a_pool() -> None:
    pools = Pools()
    for row in ({"pool_in_flight": 3}, {"pool_crowded_share": 1.0}, {}):
        pools.hear(Summary(interval_s=5.0, integrations={"a": row}))
        sampled = ResourceRow(limit={INSTANCES: 4.0})
        assert pools.fill("a", sampled) == sampled
        assert not pools.is_pressed("a")
        assert pools.evidence("a") == {}
