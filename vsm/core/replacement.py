"""When one worker takes the place of another that serves: `vsm.core.restart` and a rule more, pure.

A successor is a worker of the same group that names in its spec whom it `replaces`; it is started
once and never restarted. The one that it replaces goes on, by its own rules, until the successor
is ready: then they change places. The name goes to the process that is ready, and the process
that was there drains under the name of the successor, and ends.

the successor            the other
ready                    its process drains, or is ended if it was not ready; the name is ready
ends before it is ready  nothing: it serves, is restarted or given up as if there had been none
starting                 told to stop: both are; panic: both are
"""

from dataclasses import dataclass, replace

from vsm.core import restart
from vsm.core.restart import Action, Drain, Event, Group, Ready, Stop, Terminate, Worker

REPLACED = "replaced"


@dataclass(frozen=True)
class Switched(Action):
    """The name, by a new incarnation, is the successor's process; the old one is `left`'s."""

    left: str


def successor_spec(spec: restart.WorkerSpec, key: str) -> restart.WorkerSpec:
    """The spec of a successor under the name `key`; `spec` is that of the worker's new terms."""
    return replace(spec, name=key, restart="temporary", replaces=spec.name)


def step(group: Group, event: Event, now: float, jitter: float = 0.5) -> tuple[Group, list[Action]]:
    """Apply one event; as `restart.step`, which does it wherever nothing is replaced."""
    after, actions = restart.step(group, event, now, jitter)
    match event:
        case Stop():
            for key in _beside(group, event):
                follow = Stop(key, drain=False, reason=event.reason)
                after, more = restart.step(after, follow, now, jitter)
                actions += more
        case Ready() if _became_ready(group, after, event.name):
            after, switch = _switch(after, event.name, now)
            due = [one for one in actions if not isinstance(one, restart.Changed)]
            return after, [*due, *switch, *restart.changes(group, after)]
    return after, actions


def _beside(group: Group, event: Stop) -> list[str]:
    """Who stops with a worker: its successor, and what of it still drains unless it may."""
    return [
        key
        for key, worker in group.workers.items()
        if worker.spec.replaces == event.name and (worker.wanted or not event.drain)
    ]


def _became_ready(before: Group, after: Group, key: str) -> bool:
    worker = after.workers.get(key)
    if worker is None or worker.spec.replaces not in after.workers:
        return False
    return worker.phase == "ready" and before.workers[key].phase == "starting"


def _switch(group: Group, key: str, now: float) -> tuple[Group, list[Action]]:
    new = group.workers[key]
    old = group.workers[new.spec.replaces]
    name = old.spec.name
    taken = Worker(
        spec=old.spec,
        phase="ready",
        incarnation=old.incarnation + 1,
        wanted=True,
        deadline=new.deadline,
        restarts=old.restarts + 1,
    )
    workers = {**group.workers, name: taken}
    if not old.alive:
        del workers[key]
        return replace(group, workers=workers), [Switched(name, taken.incarnation, key)]
    workers[key], actions = _retire(new, old, now)
    return replace(group, workers=workers), [Switched(name, taken.incarnation, key), *actions]


def _retire(new: Worker, old: Worker, now: float) -> tuple[Worker, list[Action]]:
    """The old process under the successor's name: it ends, and nothing follows."""
    key, spec = new.spec.name, new.spec
    left = replace(
        new,
        spec=replace(
            spec,
            drain_timeout_s=old.spec.drain_timeout_s,
            stop_timeout_s=old.spec.stop_timeout_s,
        ),
        phase=old.phase,
        deadline=old.deadline,
        wanted=False,
        after="stop",
        reason=old.reason or REPLACED,
    )
    if old.phase == "ready":
        until = now + old.spec.drain_timeout_s
        draining = replace(left, phase="draining", deadline=until)
        return draining, [Drain(key, new.incarnation)]
    if old.phase == "starting":
        until = now + old.spec.stop_timeout_s
        ending = replace(left, phase="stopping", deadline=until)
        return ending, [Terminate(key, new.incarnation)]
    return left, []
