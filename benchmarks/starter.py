"""A process as small as the launcher: times bare and confined starts of a command, interleaved.

Run as `python -SI starter.py REPOSITORY ROUNDS` with {"argv", "plans": {variant: plan},
"others": {variant: {"argv", "filter"}}} on stdin; prints {variant: [milliseconds]}. It does what
the launcher does for a worker, without the link.
"""

import base64
import json
import os
import sys
import time

sys.path.insert(0, sys.argv[1])

from vsm.confinement.execution import Plan
from vsm.linux import pidfd
from vsm.processes.forked_worker import ForkedWorker, Spare

WARM_UP = 3
PREPARED = ", prepared"  # the first process was forked ahead, as the launcher does when idle
PREPARE_S = 0.03


def main() -> None:
    """Interleave the variants; the first rounds fill caches and do not count."""
    order = json.load(sys.stdin)
    plans = {variant: Plan.from_json(table) for variant, table in order["plans"].items()}
    ahead = [f"{variant}{PREPARED}" for variant in plans]
    others = {variant: _Other(**table) for variant, table in order["others"].items()}
    variants = ("bare", *others, *plans, *ahead)
    taken: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(int(sys.argv[2]) + WARM_UP):
        for variant, times in taken.items():
            plan = plans.get(variant.removesuffix(PREPARED))
            spare = Spare(plan) if plan and variant.endswith(PREPARED) else None
            time.sleep(PREPARE_S if spare else 0)
            start = time.perf_counter()
            if plan:
                _confined(plan, spare)
            elif other := others.get(variant):
                other.run()
            else:
                _bare(order["argv"])
            if number >= WARM_UP:
                times.append((time.perf_counter() - start) * 1e3)
    json.dump(taken, sys.stdout)


class _Other:
    """Another sandbox's command; FILTER in it is where it reads the system call filter."""

    def __init__(self, argv: list[str], filter: str) -> None:  # noqa: A002 - the key's name
        self._fd = os.memfd_create("filter", 0)
        os.write(self._fd, base64.b64decode(filter))
        self._argv = [str(self._fd) if word == "FILTER" else word for word in argv]

    def run(self) -> None:
        """Start and wait."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        _bare(self._argv)


def _bare(argv: list[str]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(argv[0], argv)
        finally:
            os._exit(127)
    _insist(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, argv[0])


def _confined(plan: Plan, spare: Spare | None) -> None:
    worker = ForkedWorker(plan, (0, 1, 2), tty=False, spare=spare)
    pidfd.wait(worker.status_fd)  # as the launcher hears that it has started
    worker.events()
    pidfd.wait(worker.pidfd)
    worker.events()
    pidfd.reap(worker.pidfd)
    worker.close()
    worker.remove_scratch()
    _insist(any(event["event"] == "started" for event in worker.heard), plan.tier)


def _insist(worked: bool, what: str) -> None:  # noqa: FBT001
    if not worked:
        raise RuntimeError(f"{what}: it did not start")


main()
