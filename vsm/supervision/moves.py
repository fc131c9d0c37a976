"""`vsm start|stop|restart|drain NAME` in the supervisor: tell the group, wait until it is so.

Owns the order of what a command does and the bound of its waiting; what follows from it is the
restart group's.
"""

import asyncio
from typing import TYPE_CHECKING, Final

from vsm.configuration.config import Integration
from vsm.core import restart
from vsm.errors import VsmError

if TYPE_CHECKING:
    from vsm.supervision.integration_group import IntegrationGroup

MOVE_TIMEOUT_S: Final = 120.0
_RUNS: Final[tuple[restart.Phase, ...]] = ("ready", "quarantined", "stopped")


async def move(group: "IntegrationGroup", command: str, name: str) -> None:
    """Start, stop, restart or drain an integration and wait until it is so, bounded.

    Raises:
        VsmError: panic forbids a start, or it is not replaced.
    """
    if command in {"start", "restart"} and group.workers.group.panic:
        raise VsmError(name, "panic: nothing is started", "End it by `vsm resume`.")
    entry = group.integrations[name]
    if command == "restart" and group.replacements.can_begin(entry):
        await _replaced(group, entry)
        return
    if command == "start":
        group.workers.send(restart.Start(name))
    else:
        reason, again = f"{command} by command", command == "restart"
        group.stop_one(name, drain=command != "stop", restart_it=again, reason=reason)
    await _settled(
        group, name, ("stopped",) if command in {"stop", "drain"} else _runs(group, name)
    )


async def _replaced(group: "IntegrationGroup", entry: Integration) -> None:
    done = group.replacements.begin(entry, "restart by command")
    try:
        failure = await asyncio.wait_for(asyncio.shield(done), MOVE_TIMEOUT_S)
    except TimeoutError:
        what = "its replacement is still starting; the one before serves"
        raise VsmError(entry.name, what, "See `vsm status`.") from None
    if failure:
        what = f"not replaced, the one before serves on: {failure.rstrip('.')}"
        remedy = f"See `vsm logs {entry.name}`; repair it and try again."
        raise VsmError(entry.name, what, remedy)


def _runs(group: "IntegrationGroup", name: str) -> tuple[restart.Phase, ...]:
    """Where a start ends; what is never given up has failed twice in a row when it waits."""
    return (*_RUNS, "backing_off") if group.workers.worker(name).spec.escalates else _RUNS


async def _settled(group: "IntegrationGroup", name: str, phases: tuple[restart.Phase, ...]) -> None:
    if "ready" in phases:
        await asyncio.sleep(0)
    try:
        await asyncio.wait_for(group.workers.wait_phase(name, *phases), MOVE_TIMEOUT_S)
    except TimeoutError:
        what = f"is still {group.workers.phase(name)}"
        raise VsmError(name, what, "See `vsm status`.") from None
