"""When a worker is started, stopped, restarted or given up: OTP's semantics as a pure function.

`step(group, event, now, jitter) -> (group, actions)`. No clock, no process, no randomness: the
supervisor performs the actions and reports what happened as further events. Every Spawn is
answered by exactly one Exited, whether a process ever existed or not.

phase         a process may exist   leaves by
stopped       no                    Start
backing_off   no                    its deadline (Spawn), Stop
starting      yes                   Ready, Exited, its deadline (not ready in time), Failed, Stop
ready         yes                   Exited, Failed, Hung, Stop; its deadline forgets old crashes
draining      yes                   Drained, its deadline, Exited
stopping      yes                   Exited; its deadline kills
quarantined   no                    Start
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

Strategy: TypeAlias = Literal["one_for_one", "one_for_all", "rest_for_one"]
RestartType: TypeAlias = Literal["permanent", "transient", "temporary"]
Phase: TypeAlias = Literal[
    "stopped", "backing_off", "starting", "ready", "draining", "stopping", "quarantined"
]
After: TypeAlias = Literal["stop", "restart", "crash", "quarantine"]

PANIC: Final = "panic"  # why a worker is stopped during one
ALIVE: Final = frozenset({"starting", "ready", "draining", "stopping"})
_JITTER_SPREAD: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """How one worker is started, stopped and restarted. Times are seconds.

    Args:
        intensity: more crashes than this within `period_s` are quarantine.
        escalates: never quarantined: past the intensity it is retried at the longest back-off.
        replaces: whose place it takes once it is ready; see `vsm.core.replacement`.
    """

    name: str
    restart: RestartType = "permanent"
    intensity: int = 3
    period_s: float = 60.0
    backoff_initial_s: float = 0.5
    backoff_max_s: float = 60.0
    stable_s: float = 30.0
    start_timeout_s: float = 30.0
    drain_timeout_s: float = 5.0
    stop_timeout_s: float = 5.0
    stack_grace_s: float = 1.0
    escalates: bool = False
    replaces: str = ""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One worker's state. `deadline` means what the phase says; `after` is what follows an exit."""

    spec: WorkerSpec
    phase: Phase = "stopped"
    incarnation: int = 0
    wanted: bool = False
    after: After = "crash"
    deadline: float | None = None
    crashes: tuple[float, ...] = ()
    streak: int = 0
    restarts: int = 0
    reason: str = ""

    @property
    def alive(self) -> bool:
        """A process exists or has been asked for."""
        return self.phase in ALIVE


@dataclass(frozen=True, kw_only=True)
class Group:
    """Workers in their order of start."""

    workers: dict[str, Worker]
    strategy: Strategy = "one_for_one"
    panic: bool = False


# ---- events --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """Commanded: run it, whatever its past."""

    name: str


@dataclass(frozen=True)
class Stop:
    """Commanded: stop it, after draining where `drain` is set. `restart` starts it again."""

    name: str
    drain: bool = True
    restart: bool = False
    reason: str = "stopped by command"


@dataclass(frozen=True)
class Ready:
    """The incarnation serves."""

    name: str
    incarnation: int


@dataclass(frozen=True)
class Drained:
    """Nothing is in flight any more."""

    name: str


@dataclass(frozen=True)
class Failed:
    """It runs but is of no use (did not initialise, broke the protocol)."""

    name: str
    incarnation: int
    reason: str


@dataclass(frozen=True)
class Hung:
    """It stopped beating."""

    name: str
    incarnation: int
    reason: str


@dataclass(frozen=True)
class Exited:
    """Its process is gone, or never came to be.

    Args:
        clean: it ended by itself with status 0.
        collateral: something that it depends on died; not its own crash.
        hopeless: starting it again cannot help before someone changes something.
    """

    name: str
    incarnation: int
    reason: str
    clean: bool = False
    collateral: bool = False
    hopeless: bool = False


@dataclass(frozen=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True)
class Panic:
    """Stop everything now; nothing starts before Resume."""


@dataclass(frozen=True)
class Resume:
    """Start again what was wanted."""


Event: TypeAlias = Start | Stop | Ready | Drained | Failed | Hung | Exited | Tick | Panic | Resume

# ---- actions -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Action:
    """Something to do to one incarnation of a worker."""

    name: str
    incarnation: int


class Spawn(Action):
    """Start the process."""


class Drain(Action):
    """Take nothing new, report when nothing is in flight."""


class Terminate(Action):
    """Ask it to end."""


class AskStack(Action):
    """Ask it for its stack; it is hung."""


class Kill(Action):
    """Kill it and everything below it."""


@dataclass(frozen=True)
class Changed(Action):
    """Its phase or the reason for it changed."""

    phase: Phase
    reason: str
    escalated: bool = False


Step: TypeAlias = tuple[Worker, list[Action]]

# ---- decisions -----------------------------------------------------------------------------


def new_group(specs: Iterable[WorkerSpec], strategy: Strategy = "one_for_one") -> Group:
    """A group whose workers are all stopped."""
    return Group(workers={spec.name: Worker(spec=spec) for spec in specs}, strategy=strategy)


def with_worker(group: Group, spec: WorkerSpec) -> Group:
    """The group with one more worker, stopped; or with other terms for one that it has."""
    known = group.workers.get(spec.name)
    worker = Worker(spec=spec) if known is None else replace(known, spec=spec)
    return replace(group, workers={**group.workers, spec.name: worker})


def without_worker(group: Group, name: str) -> Group:
    """The group without a worker that has no process.

    Raises:
        ValueError: it has one.
    """
    if group.workers[name].alive:
        raise ValueError(f"{name} has a process")
    kept = {key: worker for key, worker in group.workers.items() if key != name}
    return replace(group, workers=kept)


def backoff_s(spec: WorkerSpec, streak: int, jitter: float) -> float:
    """How long to wait before restart number `streak` in a row; the first is at once.

    `jitter` is 0 … 1: a quarter up or down, so that doubling stays monotone whatever it is.
    """
    if streak <= 1:
        return 0.0
    doubled = spec.backoff_initial_s * 2.0 ** min(streak - 2, 64)
    factor = 1 - _JITTER_SPREAD + 2 * _JITTER_SPREAD * jitter
    return min(spec.backoff_max_s, doubled * factor)


def next_deadline(group: Group) -> float | None:
    """When Tick is due, or None."""
    return min((w.deadline for w in group.workers.values() if w.deadline is not None), default=None)


def step(group: Group, event: Event, now: float, jitter: float = 0.5) -> tuple[Group, list[Action]]:
    """Apply one event.

    Returns:
        The group's new state, and what to do, in order.
    """
    after, actions = _apply(group, event, now, jitter)
    after, spawns = _start_due(after, now)
    return after, [*actions, *spawns, *changes(group, after)]


def _apply(group: Group, event: Event, now: float, jitter: float) -> tuple[Group, list[Action]]:
    match event:
        case Tick():
            return _each(group, group.workers, lambda worker: _expire(worker, now))
        case Panic():
            return _each(replace(group, panic=True), group.workers, _panic)
        case Resume():
            return _each(replace(group, panic=False), group.workers, lambda w: _resume(w, now))
        case Exited():
            return _exited(group, event, now, jitter)
        case _:
            if event.name not in group.workers:
                return group, []
            return _each(group, [event.name], lambda w: _one(w, event, now, panic=group.panic))


def _each(
    group: Group, names: Iterable[str], change: Callable[[Worker], Step]
) -> tuple[Group, list[Action]]:
    workers, actions = dict(group.workers), []
    for name in names:
        workers[name], more = change(workers[name])
        actions += more
    return replace(group, workers=workers), actions


def _one(worker: Worker, event: Event, now: float, *, panic: bool) -> Step:
    match event:
        case Start() | Stop():
            return _command(worker, event, now, panic=panic)
        case Drained() if worker.phase == "draining":
            return _terminate(worker, now)
        case Ready(incarnation=i) if worker.phase == "starting" and i == worker.incarnation:
            stable = now + worker.spec.stable_s
            return replace(worker, phase="ready", deadline=stable, reason=""), []
        case Failed(incarnation=i) if worker.phase in {"starting", "ready"} and _is(worker, i):
            return _terminate(replace(worker, after="crash", reason=event.reason), now)
        case Hung(incarnation=i) if worker.phase in ALIVE - {"stopping"} and _is(worker, i):
            return _hung(worker, event.reason, now)
        case _:
            return worker, []


def _command(worker: Worker, event: Start | Stop, now: float, *, panic: bool) -> Step:
    if isinstance(event, Start):
        return _start(worker, now, panic=panic)
    return _stop(worker, event, now)


def _is(worker: Worker, incarnation: int) -> bool:
    return worker.incarnation == incarnation


def _start(worker: Worker, now: float, *, panic: bool) -> Step:
    worker = replace(worker, wanted=True)
    if panic or worker.phase in {"starting", "ready"}:
        return worker, []
    if worker.phase in {"draining", "stopping"}:
        return replace(worker, after="restart"), []
    fresh = replace(worker, phase="backing_off", deadline=now, crashes=(), streak=0, reason="")
    return fresh, []


def _stop(worker: Worker, event: Stop, now: float) -> Step:
    after: After = "restart" if event.restart else "stop"
    worker = replace(worker, wanted=event.restart, reason=event.reason)
    if not worker.alive:
        if event.restart:
            return _start(worker, now, panic=False)
        return replace(worker, phase="stopped", deadline=None), []
    worker = replace(worker, after=after)
    if worker.phase == "ready" and event.drain:
        until = now + worker.spec.drain_timeout_s
        action = Drain(worker.spec.name, worker.incarnation)
        return replace(worker, phase="draining", deadline=until), [action]
    if worker.phase == "stopping" or (worker.phase == "draining" and event.drain):
        return worker, []
    return _terminate(worker, now)


def _terminate(worker: Worker, now: float) -> Step:
    until = now + worker.spec.stop_timeout_s
    action = Terminate(worker.spec.name, worker.incarnation)
    return replace(worker, phase="stopping", deadline=until), [action]


def _hung(worker: Worker, reason: str, now: float) -> Step:
    after: After = worker.after if worker.phase == "draining" else "crash"
    until = now + worker.spec.stack_grace_s
    action = AskStack(worker.spec.name, worker.incarnation)
    return replace(worker, phase="stopping", after=after, deadline=until, reason=reason), [action]


def _expire(worker: Worker, now: float) -> Step:
    if worker.deadline is None or now < worker.deadline or worker.phase == "backing_off":
        return worker, []
    if worker.phase == "starting":
        reason = f"not ready within {worker.spec.start_timeout_s:g} s"
        return _hung(worker, reason, now)
    if worker.phase == "draining":
        return _terminate(worker, now)
    if worker.phase == "stopping":
        kill = Kill(worker.spec.name, worker.incarnation)
        return replace(worker, deadline=None), [kill]
    return replace(worker, deadline=None, streak=0, crashes=()), []  # ready long enough


def _panic(worker: Worker) -> Step:
    if not worker.alive:
        return replace(worker, phase="stopped", deadline=None, reason=PANIC), []
    kill = Kill(worker.spec.name, worker.incarnation)
    stopping = replace(worker, phase="stopping", after="stop", deadline=None, reason=PANIC)
    return stopping, [kill]


def _resume(worker: Worker, now: float) -> Step:
    return _start(worker, now, panic=False) if worker.wanted else (worker, [])


def _exited(group: Group, event: Exited, now: float, jitter: float) -> tuple[Group, list[Action]]:
    worker = group.workers.get(event.name)
    if worker is None or not worker.alive or worker.incarnation != event.incarnation:
        return group, []
    gone = _after_exit(worker, event, now, jitter, panic=group.panic)
    after = replace(group, workers={**group.workers, event.name: gone})
    if gone.phase == "stopped" or worker.after != "crash" or event.collateral:
        return after, []
    fate: After = "quarantine" if gone.phase == "quarantined" else "restart"
    others = _affected(group, event.name)
    return _each(after, others, lambda other: _drag(other, fate, event.name, now))


def _after_exit(worker: Worker, event: Exited, now: float, jitter: float, *, panic: bool) -> Worker:
    idle = replace(worker, deadline=None, after="crash")
    if panic or not worker.wanted or worker.after == "stop":
        return replace(idle, phase="stopped", reason=worker.reason or event.reason)
    if worker.after == "quarantine":
        return replace(idle, phase="quarantined")
    if worker.after == "restart" or event.collateral:
        return replace(idle, phase="backing_off", deadline=now, reason=event.reason)
    reason = event.reason
    if worker.phase == "stopping" and worker.reason:  # why we ended it comes before how it ended
        reason = f"{worker.reason}; {event.reason}"
    if worker.spec.restart == "temporary" or (worker.spec.restart == "transient" and event.clean):
        return replace(idle, phase="stopped", wanted=False, reason=reason)
    if event.hopeless:
        return replace(idle, phase="quarantined", reason=reason)
    return _crashed(replace(idle, reason=reason), now, jitter)


def _crashed(worker: Worker, now: float, jitter: float) -> Worker:
    spec = worker.spec
    recent = (*(at for at in worker.crashes if at > now - spec.period_s), now)
    worker = replace(worker, crashes=recent[-spec.intensity - 1 :], streak=worker.streak + 1)
    delay = backoff_s(spec, worker.streak, jitter)
    if len(recent) > spec.intensity:
        if not spec.escalates:
            many = f"{len(recent)} crashes within {spec.period_s:g} s"
            return replace(worker, phase="quarantined", reason=f"{many}; last: {worker.reason}")
        delay = spec.backoff_max_s
    return replace(worker, phase="backing_off", deadline=now + delay)


def _affected(group: Group, name: str) -> list[str]:
    names = list(group.workers)
    if group.strategy == "one_for_one":
        return []
    if group.strategy == "rest_for_one":
        return names[names.index(name) + 1 :]
    return [other for other in names if other != name]


def _drag(worker: Worker, fate: After, cause: str, now: float) -> Step:
    """Stop a worker because another one of its group failed."""
    if not worker.wanted or worker.phase in {"stopped", "quarantined"}:
        return worker, []
    if worker.phase == "backing_off":
        if fate == "quarantine":
            return replace(worker, phase="quarantined", deadline=None, reason=f"needs {cause}"), []
        return worker, []
    worker = replace(worker, after=fate, reason=f"needs {cause}")
    return (worker, []) if worker.phase == "stopping" else _terminate(worker, now)


def _start_due(group: Group, now: float) -> tuple[Group, list[Action]]:
    if group.panic or _awaits_exit(group):
        return group, []
    due = [
        name
        for name, worker in group.workers.items()
        if worker.phase == "backing_off" and worker.deadline is not None and worker.deadline <= now
    ]
    return _each(group, due, lambda worker: _spawn(worker, now))


def _awaits_exit(group: Group) -> bool:
    """A group that restarts together starts only when all that must stop have stopped."""
    together = group.strategy != "one_for_one"
    return together and any(w.phase == "stopping" for w in group.workers.values())


def _spawn(worker: Worker, now: float) -> Step:
    number = worker.incarnation + 1
    started = replace(
        worker,
        phase="starting",
        incarnation=number,
        restarts=worker.restarts + (worker.incarnation > 0),
        after="crash",
        deadline=now + worker.spec.start_timeout_s,
    )
    return started, [Spawn(worker.spec.name, number)]


def changes(before: Group, after: Group) -> list[Action]:
    """A Changed for each worker whose phase, or the reason for it, is another one."""
    found: list[Action] = []
    for name, worker in after.workers.items():
        old = before.workers[name]
        if (old.phase, old.reason) != (worker.phase, worker.reason):
            escalated = (
                worker.spec.escalates
                and worker.phase == "backing_off"
                and len(worker.crashes) > worker.spec.intensity
            )
            found.append(Changed(name, worker.incarnation, worker.phase, worker.reason, escalated))
    return found
