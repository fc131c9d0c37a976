"""Whose an instance is, whatever happens in whatever order: never two sessions', not even later."""

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.core.instance_demand import Terms
from vsm.gateway.client import Client
from vsm.gateway.instances import Instance, Instances
from vsm.gateway.integration import Settings
from vsm.gateway.upstream import Upstream
from vsm.protocol.catalogue import Surface

TERMS = Terms(kind="session", most=3, spares=1)
SESSIONS = 3
KINDS = ["call"] * 4 + ["start"] * 2 + ["ready"] * 3 + ["leave", "quietly", "end", "eof", "renew"]
steps = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5)), max_size=60)


class Session(Client):
    def notify(self, frame: bytes) -> None: ...


class Pipes:
    """An upstream as far as instances look at it."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.lost = self.failed_some = False


class World:
    """A supervisor that does what it is told, in the order that the steps say."""

    def __init__(self) -> None:
        self.instances = Instances("a", TERMS, self)
        self.sessions = [Session() for _ in range(SESSIONS)]
        self.count = TERMS.first
        self.alive: dict[str, Instance] = {}
        self.ending: set[str] = set()
        self.number = 0
        self.owners: dict[str, Client] = {}

    # ---- InstanceHooks -------------------------------------------------------------------

    def release(self, instance: Instance, reason: str) -> None:
        assert reason
        instance.upstream = None

    def claimed(self, instance: Instance, client: Client) -> None:
        assert instance.worker not in self.owners, "it belonged to a session before"
        self.owners[instance.worker] = client

    def tell_wanted(self, name: str, count: int, release: dict[str, str]) -> None:
        assert name == "a"
        assert 0 <= count <= TERMS.most
        self.count = count
        self.ending |= release.keys() & self.alive.keys()

    # ---- steps ---------------------------------------------------------------------------

    def take(self, step: str, which: int) -> None:
        number = which % SESSIONS
        if step in {"call", "quietly"}:
            self.call(self.sessions[number], quietly=step == "quietly")
        elif step == "leave":
            self.instances.left(self.sessions[number])
            self.sessions[number] = Session()
        elif step == "start":
            if len(self.alive) - len(self.ending) < self.count and len(self.alive) < TERMS.most:
                self.number += 1
                worker = f"a-i{self.number}"
                settings = Settings(name="a", prefix="a")
                self.alive[worker] = self.instances.add(worker, self.number, settings)
        elif step == "renew":
            self.renew()
        elif self.alive:
            worker = sorted(self.alive)[which % len(self.alive)]
            getattr(self, step)(worker)

    def renew(self) -> None:
        """One that was started aside is ready: the others are to be replaced."""
        owned = {client: self.instances.of(client) for client in self.sessions}
        self.number += 1
        worker = f"a-i{self.number}"
        instance = self.instances.make(worker, self.number, Settings(name="a", prefix="a"))
        self.alive[worker] = instance
        self.instances.join(instance, Surface("a"), alike=True)
        instance.upstream = cast("Upstream", Pipes())
        self.instances.became_ready(instance)
        for client, before in owned.items():
            assert before is None or self.instances.of(client) is before
        free = {one for one in self.instances.ready if not one.claimed}
        assert free <= {instance}, "a new session could be given one that is outdated"

    def call(self, session: Client, *, quietly: bool) -> None:
        found = self.instances.pick(session, quietly=quietly)
        if found is None or isinstance(found, str):
            return
        own = self.instances.of(session)
        assert own is not None
        assert own.upstream is found
        assert self.owners[own.worker] is session

    def ready(self, worker: str) -> None:
        instance = self.alive[worker]
        if worker in self.instances.members and instance.upstream is None:
            instance.upstream = cast("Upstream", Pipes())
            self.instances.became_ready(instance)

    def eof(self, worker: str) -> None:
        if self.alive[worker].upstream is not None:
            cast("Any", self.alive[worker].upstream).lost = True

    def end(self, worker: str) -> None:
        instance = self.alive.pop(worker)
        self.ending.discard(worker)
        if self.instances.ended(worker, "died") is instance:
            instance.upstream = None

    def check(self) -> None:
        owned = [self.instances.of(session) for session in self.sessions]
        workers = [instance.worker for instance in owned if instance is not None]
        assert len(workers) == len(set(workers)) <= TERMS.most
        assert set(self.instances.members) <= set(self.alive)
        assert len(self.instances.releasing) <= len(self.alive)


@given(steps)
def test_no_instance_ever_serves_two_sessions(chosen: list[tuple[str, int]]) -> None:
    async def scenario() -> None:
        world = World()
        for step, which in chosen:
            world.take(step, which)
            world.check()
        for session in world.sessions:
            world.instances.left(session)
        assert {world.instances.of(session) for session in world.sessions} == {None}
        for worker in list(world.alive):
            world.end(worker)
        assert not world.instances.members
        assert not world.instances.releasing
        world.instances.close("the test ends")

    asyncio.run(scenario())


@pytest.mark.parametrize("alike", [True, False])
def test_pool_keeps_old_servers_until_there_are_enough_where_all_offer_the_same(
    *, alike: bool
) -> None:
    released: dict[str, str] = {}

    class Hooks(World):
        def release(self, instance: Instance, reason: str) -> None:
            released[instance.worker] = reason

        def tell_wanted(self, name: str, count: int, release: dict[str, str]) -> None:
            del name, release
            self.count = count

    async def scenario() -> None:
        hooks = Hooks()
        pool = Instances("a", Terms(kind="pool", least=2, most=2, resident=True), hooks)
        settings = Settings(name="a", prefix="a")
        old = [pool.add(f"a-i{number}", number, settings) for number in (1, 2)]
        for one in old:
            one.upstream = cast("Upstream", Pipes())
            pool.became_ready(one)
        cast("Any", old[0].upstream).in_flight = 1
        new = pool.make("a-i3", 3, settings)
        new.upstream = cast("Upstream", Pipes())
        pool.join(new, Surface("a"), alike=alike)
        pool.became_ready(new)
        assert pool.pick(Session()) is new.upstream
        assert released == {"a-i2": "it was replaced"}  # the one that has nothing to answer
        assert set(pool.ready) == ({new, old[0]} if alike else {new})
        assert hooks.count == (3 if alike else 2)
        last = pool.add("a-i4", 4, settings)
        last.upstream = cast("Upstream", Pipes())
        pool.became_ready(last)
        assert set(pool.ready) == {new, last}
        assert pool.in_flight == 1
        cast("Any", old[0].upstream).in_flight = 0
        pool.idle("a-i1")
        assert set(released) == {"a-i1", "a-i2"}
        assert hooks.count == 2
        pool.close("the test ends")

    asyncio.run(scenario())


@given(st.integers(0, SESSIONS - 1), steps)
def test_session_that_waits_is_served_once_the_others_are_gone(
    which: int, chosen: list[tuple[str, int]]
) -> None:
    async def scenario() -> None:
        world = World()
        for step, number in chosen:
            world.take(step, number)
        last = world.sessions[which]
        for session in world.sessions:
            if session is not last:
                world.instances.left(session)
        for _ in range(20):
            world.call(last, quietly=False)
            if world.instances.of(last) is not None:
                break
            for worker in list(world.ending):
                world.end(worker)
            world.take("start", 0)
            for worker in list(world.alive):
                world.ready(worker)
        assert world.instances.of(last) is not None or "lost" in str(world.instances.pick(last))
        world.instances.close("the test ends")

    asyncio.run(scenario())


@pytest.mark.parametrize("steady", [False, True])
def test_steady_pool_lets_no_unused_instance_go(*, steady: bool) -> None:
    class Hooks:
        def __init__(self) -> None:
            self.released: list[str] = []

        def release(self, instance: Instance, reason: str) -> None:
            assert reason
            self.released.append(instance.worker)

        def claimed(self, instance: Instance, client: Client) -> None: ...

        def tell_wanted(self, name: str, count: int, release: dict[str, str]) -> None: ...

    async def scenario() -> None:
        hooks = Hooks()
        terms = Terms(kind="pool", least=1, most=3, idle_stop_s=5.0, resident=True)
        instances = Instances("a", terms, hooks)
        for number in (1, 2):
            one = instances.add(f"a-i{number}", number, Settings(name="a", prefix="a"))
            one.upstream = cast("Upstream", Pipes())
            instances.became_ready(one)
            one.used_at -= 100.0 * number
        instances.is_steady = steady
        instances._stop_unused()
        assert hooks.released == ([] if steady else ["a-i2"])
        instances.close("the test ends")

    asyncio.run(scenario())
