"""A process as small as the launcher: times bare and confined starts of a command, interleaved.

Run as `python -SI starter.py REPOSITORY ROUNDS` with {"argv", "plans": {variant: plan}} on stdin;
prints {variant: [milliseconds]}. It does what the launcher does for a worker, without the link.
"""

import json
import os
import sys
import time

sys.path.insert(0, sys.argv[1])

from vsm.execution import Plan
from vsm.forked_worker import ForkedWorker, Spare
from vsm.linux import pidfd

WARM_UP = 3
PREPARED = ", prepared"  # the first process was forked ahead, as the launcher does when idle
PREPARE_S = 0.03


def main() -> None:
    """Interleave the variants; the first rounds fill caches and do not count."""
    order = json.load(sys.stdin)
    plans = {variant: Plan.from_json(table) for variant, table in order["plans"].items()}
    ahead = [f"{variant}{PREPARED}" for variant in plans]
    taken: dict[str, list[float]] = {variant: [] for variant in ("bare", *plans, *ahead)}
    for number in range(int(sys.argv[2]) + WARM_UP):
        for variant, times in taken.items():
            plan = plans.get(variant.removesuffix(PREPARED))
            spare = Spare(plan) if plan and variant.endswith(PREPARED) else None
            time.sleep(PREPARE_S if spare else 0)
            start = time.perf_counter()
            if plan is None:
                _bare(order["argv"])
            else:
                _confined(plan, spare)
            if number >= WARM_UP:
                times.append((time.perf_counter() - start) * 1e3)
    json.dump(taken, sys.stdout)


def _bare(argv: list[str]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(argv[0], argv)
        finally:
            os._exit(127)
    _insist(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "bare")


def _confined(plan: Plan, spare: Spare | None) -> None:
    worker = ForkedWorker(plan, (0, 1, 2), tty=False, spare=spare)
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
