"""Audits of running workers: kernel facts, attacks from within, and the contract called.

Runs in the supervisor: it reads /proc itself, has the launcher put a sibling inside the worker
(`vsm.processes.sibling`) and S1 ask the server (`vsm.gateway.contract`). Nothing that the worker
says counts but the answer that its clients would get.
"""

import asyncio
import itertools
import os
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vsm.errors import VsmError
from vsm.governance import attacks, kernel_facts, pressure
from vsm.linux import pidfd
from vsm.messages import Audit, Audited, Contract, Contracted, Message

if TYPE_CHECKING:
    from vsm.supervision.running_worker import RunningWorker
    from vsm.supervision.supervisor import Supervisor

CONTRACT_TIMEOUT_S: Final = 20.0
BESIDE: Final = (
    "no namespaces to enter in this tier: the sibling stood beside, under the same rules"
)
_MOST_FAILED: Final = 64
_NEARLY_FULL: Final = 0.9
_NO_ROOM: Final = ("Resource temporarily unavailable", "not now:")

Workers = Callable[[], dict[str, "list[RunningWorker]"]]
Tell = Callable[[str, Message], bool]


class Found(NamedTuple):
    """What one audit found.

    Args:
        checked: all that was compared or tried. processes: how many were looked at.
        failed: what → how. unknown: what could not be looked at.
        attacks: how many were tried. contract: answers and items. detail: what it is not.
    """

    checked: int
    processes: int
    failed: dict[str, str]
    unknown: tuple[str, ...]
    attacks: int
    contract: int
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the control socket and the journal."""
        return {**self._asdict(), "unknown": list(self.unknown)}


class Audits:
    """Looks at running workers, when S3 or a person asks.

    Args:
        supervisor: whose workers they are.
        workers: those that serve, by integration.
        tell: sends a system a message.
        dice: which attacks are tried in an audit that nobody asked for.
    """

    def __init__(
        self,
        supervisor: "Supervisor",
        workers: Workers,
        tell: Tell,
        dice: random.Random | None = None,
    ) -> None:
        self._supervisor = supervisor
        self._workers = workers
        self._tell = tell
        self._dice = dice or random.SystemRandom()
        self._numbers = itertools.count(1)
        self._contracts: dict[int, asyncio.Future[Contracted]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Look at nothing more."""
        for task in self._tasks:
            task.cancel()

    # ---- who asks --------------------------------------------------------------------------

    def asked(self, message: Audit) -> None:
        """S3 asks: a few attacks, drawn by lot."""
        task = asyncio.get_running_loop().create_task(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: Audit) -> None:
        found = await self._look(message.integration, few=True)
        failed = list(found.failed.items())[:_MOST_FAILED] if found is not None else []
        answer = Audited(
            id=message.id,
            integration=message.integration,
            checked=found.checked if found is not None else 0,
            attacks=found.attacks if found is not None else 0,
            contract=found.contract if found is not None else 0,
            failed={name[:200]: text[:1000] for name, text in failed},
            detail=found.detail if found is not None else "it does not serve now",
        )
        self._tell("system3", answer)

    async def command(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """`vsm audit NAME`: all of it at once, for a person; the journal hears of it.

        Raises:
            VsmError: it does not serve now.
        """
        name = str(arguments.get("name", ""))
        found = await self._look(name, few=False)
        if found is None:
            raise VsmError(name[:64], "it does not serve now", "See `vsm status`.")
        detail = {"checked": found.checked, "failed": found.failed, "by": "command"}
        self._supervisor.recorder.journal.event(
            "audit.failed" if found.failed else "audit.passed",
            integration=name,
            severity="error" if found.failed else "info",
            detail=detail | {"attacks": found.attacks, "contract": found.contract},
        )
        return {"name": name, **found.to_json()}

    # ---- what is looked at -----------------------------------------------------------------

    async def _look(self, name: str, *, few: bool) -> Found | None:
        workers = self._workers().get(name)
        if not workers:
            return None
        facts = kernel_facts.compare_all(workers)
        failed, unknown = dict(facts.failed), list(facts.unknown)
        tried_all = 0
        for running in workers[:1] if few else workers:
            tried, wrong, why_not = await self._attack(running, few=few)
            tried_all += tried
            failed |= wrong
            unknown += why_not
        kept = await self._call_contract(name)
        failed |= {f"contract: {item}": text for item, text in kept.failed.items()}
        beside = any(r.provided is not None and not r.provided.plan.clone_flags for r in workers)
        return Found(
            checked=facts.checked + tried_all + kept.checked,
            processes=facts.processes,
            failed=failed,
            unknown=(*unknown, *kept.unknown),
            attacks=tried_all,
            contract=kept.checked,
            detail=BESIDE if beside else "",
        )

    async def _attack(
        self, running: "RunningWorker", *, few: bool
    ) -> tuple[int, dict[str, str], list[str]]:
        """How many attacks were tried, which succeeded, and why none was tried.

        What fails is tried once more: a worker that is at its limits may have left no room.
        """
        if running.provided is None:
            return 0, {}, []
        names = attacks.attacks(running.provided.plan, root=os.geteuid() == 0)
        if few:
            names = attacks.sample(names, self._dice)
        launcher = self._supervisor.integrations.launcher_actor.link
        killed = _killed_for_memory(running)
        failed: dict[str, str] = {}
        for _ in range(2):
            if launcher is None:
                return 0, {}, ["attacks: there is no launcher now"]
            found = await launcher.attack(running.worker_id, names)
            failed = attacks.judge(names, found)
            if not failed:
                return len(names), {}, []
        why_not = self._why_no_answer(running, failed, killed)
        return (0, {}, [f"attacks: {why_not}"]) if why_not else (len(names), failed, [])

    def _why_no_answer(
        self, running: "RunningWorker", failed: dict[str, str], killed: int | None
    ) -> str:
        """Why it is nobody's fault that there was no sibling; "" if it may be.

        Args:
            running: whose.
            failed: what was found.
            killed: processes of its group that the kernel had killed for memory before.
        """
        text = failed.get("sibling", "")
        if not text:
            return ""
        if running not in self._workers().get(running.name, ()) or _has_ended(running):
            return "the worker has ended meanwhile"
        was_killed = _killed_for_memory(running) != killed
        if was_killed or any(reason in text for reason in _NO_ROOM) or _is_full(running):
            return f"no room within its limits ({text})"
        return ""

    async def _call_contract(self, name: str) -> Contracted:
        number = next(self._numbers)
        future = self._contracts[number] = asyncio.get_running_loop().create_future()
        try:
            self._tell("system1", Contract(id=number, integration=name))
            return await asyncio.wait_for(future, CONTRACT_TIMEOUT_S)
        except TimeoutError:
            return Contracted(id=number, checked=0, unknown=("contract: system 1 did not answer",))
        finally:
            del self._contracts[number]

    def contracted(self, message: Contracted) -> None:
        """S1 asked the server."""
        future = self._contracts.get(message.id)
        if future is not None and not future.done():
            future.set_result(message)


def _has_ended(running: "RunningWorker") -> bool:
    """Its process has, whether or not anybody was told yet."""
    return running.spawned is not None and pidfd.wait(running.spawned.pidfd, 0)


def _killed_for_memory(running: "RunningWorker") -> int | None:
    """How many processes of its group, a sibling too, the kernel has killed; None: unknown."""
    group = running.provided.group if running.provided is not None else None
    return None if group is None else group.usage().oom_kills


def _is_full(running: "RunningWorker") -> bool:
    """Its memory is nearly used up: then the kernel kills the sibling first."""
    provided = running.provided
    if provided is None or provided.group is None or provided.profile.limits.memory_bytes is None:
        return False
    used = pressure.sample(provided.group).used.get("memory", 0.0)
    return used > _NEARLY_FULL * provided.profile.limits.memory_bytes
