"""Times the steps of confined starts: where a start spends what confining adds.

Run as `python -SI steps.py REPOSITORY ROUNDS` with {variant: plan} on stdin; prints
{variant: {step: [milliseconds]}}, the steps in order. Every step's end is stamped into memory
that this process and its forks share; a stamp costs about a microsecond.
"""

import json
import mmap
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, sys.argv[1])

from vsm.confinement import execution, scratch
from vsm.confinement.execution import Plan
from vsm.linux import namespaces, pidfd
from vsm.processes import forked_worker, mini_init
from vsm.processes.forked_worker import ForkedWorker, Spare

WARM_UP = 3
PREPARED = ", prepared"
PREPARE_S = 0.03
_BYTES = 1 << 16


class Stamps:
    """Lines "NANOSECONDS STEP", the parent's in the first half and the child's in the second."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _BYTES)
        self._at = 0

    def clear(self) -> None:
        """Forget all; before a round."""
        self._memory[:] = bytes(_BYTES)
        self._at = 0

    def enter_child(self) -> None:
        """From now on this process is the child."""
        self._at = _BYTES // 2

    def stamp(self, step: str) -> None:
        """The step has ended."""
        line = f"{time.perf_counter_ns()} {step}\n".encode()
        self._memory[self._at : self._at + len(line)] = line
        self._at += len(line)

    def since(self, start_ns: int) -> list[tuple[str, float]]:
        """(step, milliseconds that it took), in order of time."""
        lines = bytes(self._memory).replace(b"\0", b"").decode().splitlines()
        found = sorted((int(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines)
        found = [one for one in found if one[0] > start_ns]
        before = [start_ns, *(at for at, _ in found)]
        return [(s, (at - then) / 1e6) for (at, s), then in zip(found, before, strict=False)]


_stamps = Stamps()


def _after(owner: Any, name: str, step: str) -> None:  # noqa: ANN401 - a class or a module
    """Stamp whenever that function returns."""
    function: Callable[..., Any] = getattr(owner, name)

    def stamped(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401
        result = function(*args, **keywords)
        _stamps.stamp(step)
        return result

    setattr(owner, name, stamped)


def _stamp_forks() -> None:
    fork_into = namespaces.fork_into

    def stamped(flags: int) -> tuple[int, int]:
        _stamps.stamp("before the fork")
        pid, fd = fork_into(flags)
        if pid == 0:
            _stamps.enter_child()
            _stamps.stamp("fork, in the child")
        return pid, fd

    namespaces.fork_into = stamped


def _stamp_steps() -> None:
    _stamp_forks()
    _after(scratch, "make", "make the private directory")
    _after(forked_worker, "open_id_maps", "id maps")
    _after(mini_init, "_arrange_fds", "arrange descriptors")
    _after(mini_init, "_receive_plan", "receive the plan")
    _after(mini_init._Init, "prepare", "signals, session")  # noqa: SLF001
    for name, kind in execution._OPERATIONS.items():  # noqa: SLF001
        _after(kind, "execute", name)
    _after(mini_init, "_spawn", "posix_spawn")
    _after(mini_init, "_describe_end", "the server runs, its end is seen")
    _after(mini_init, "_report", "report")


def _round(plan: Plan, spare: Spare | None) -> list[tuple[str, float]]:
    start = time.perf_counter_ns()
    worker = ForkedWorker(plan, (0, 1, 2), tty=False, spare=spare)
    pidfd.wait(worker.status_fd)
    worker.events()
    pidfd.wait(worker.pidfd)
    _stamps.stamp("exit of the first process")
    worker.events()
    pidfd.reap(worker.pidfd)
    worker.close()
    _stamps.stamp("reap it")
    worker.remove_scratch()
    _stamps.stamp("remove the private directory")
    return _stamps.since(start)


def main() -> None:
    """Interleave the variants; the first rounds fill caches and do not count."""
    order = json.load(sys.stdin)
    plans = {variant: Plan.from_json(table) for variant, table in order.items()}
    plans |= {f"{variant}{PREPARED}": plan for variant, plan in plans.items()}
    taken: dict[str, dict[str, list[float]]] = {variant: {} for variant in plans}
    _stamp_steps()
    for number in range(int(sys.argv[2]) + WARM_UP):
        for variant, plan in plans.items():
            _stamps.clear()
            spare = Spare(plan) if variant.endswith(PREPARED) else None
            time.sleep(PREPARE_S if spare else 0)
            steps = _round(plan, spare)
            if number >= WARM_UP:
                _add(taken[variant], steps)
    json.dump(taken, sys.stdout)


def _add(taken: dict[str, list[float]], steps: list[tuple[str, float]]) -> None:
    once: dict[str, float] = {}
    for step, ms in steps:
        once[step] = once.get(step, 0.0) + ms
    for step, ms in once.items():
        taken.setdefault(step, []).append(ms)


main()
