"""Servers that take the place of one that serves: started beside it, under the new entry.

Runs in the supervisor. `vsm.core.replacement` decides when the two change places; this owns what
is under way, the entry that is in force once it has happened, and what became of it. Where it
does not happen, the server that was there goes on by the entry as it was.
"""

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vsm.configuration.config import Integration
from vsm.core import replacement, restart
from vsm.errors import VsmError
from vsm.messages import Switch
from vsm.supervision import provision
from vsm.supervision.instance_set import SEPARATOR, integration_of, is_short_of_memory, terms_of
from vsm.supervision.running_worker import RunningWorker, spec_of

if TYPE_CHECKING:
    from vsm.supervision.integration_group import IntegrationGroup

SUPERSEDED = "another replacement was asked for"


@dataclass
class Pending:
    """A replacement under way.

    Args:
        key: the successor's in the restart group. entry: in force once it serves.
        done: resolved with why it did not happen; "" where it did.
    """

    key: str
    entry: Integration
    reason: str
    began_at: float
    done: "asyncio.Future[str]" = field(repr=False)


class Replacements:
    """The replacements of a group, one at a time for each integration."""

    def __init__(self, group: "IntegrationGroup") -> None:
        self._group = group
        self._pending: dict[str, Pending] = {}
        self._failed: dict[str, str] = {}
        group.workers.switched = self._switched

    # ---- asking ----------------------------------------------------------------------------

    def can_begin(self, entry: Integration) -> bool:
        """Whether a server by this entry can be started beside the one that serves."""
        group, old = self._group, self._group.integrations[entry.name]
        several = group.sets.get(entry.name)
        ready = group.workers.phase(entry.name) == "ready" and (several is None or several.serves)
        if not ready or not group.hooks.operations_ready() or is_short_of_memory():
            return False
        alike = _kind(old) == _kind(entry) and not (old.zygote or entry.zygote)
        return alike and all(overlaps(entry, one) for one in group.running_of(entry.name))

    def begin(self, entry: Integration, reason: str) -> "asyncio.Future[str]":
        """Start a server by this entry beside the one that serves; one under way is given up.

        Returns:
            Resolved when it has happened, or with the reason why it did not.
        """
        name, loop = entry.name, asyncio.get_running_loop()
        before = self._pending.pop(name, None)
        if before is not None:
            self._stop(before, SUPERSEDED)
        key, spec = self._successor(entry)
        done = loop.create_future() if before is None else before.done
        self._pending[name] = Pending(key, entry, reason, loop.time(), done)
        self._failed.pop(name, None)
        self._group.hooks.replacing("begun", name, {"by": key, "reason": reason})
        self._group.workers.put(spec)
        self._group.workers.send(restart.Start(key))
        return done

    def _successor(self, entry: Integration) -> tuple[str, restart.WorkerSpec]:
        """Its name and spec; where there are several, it is one more, and they serve on."""
        several, spec = self._group.sets.get(entry.name), spec_of(entry)
        if several is not None:
            key = several.begin_aside()
            return key, replace(spec, name=key, restart="temporary")
        key = f"{entry.name}{SEPARATOR}{self._group.next_number(entry.name)}"
        return key, replacement.successor_spec(spec, key)

    def give_up(self, name: str, reason: str) -> None:
        """Stop a successor; the server that serves goes on."""
        if name in self._pending:
            self._stop(self._pending[name], reason)

    def _stop(self, pending: Pending, reason: str) -> None:
        self._group.workers.send(restart.Stop(pending.key, drain=False, reason=reason))

    def forget(self, name: str) -> None:
        """The integration is removed."""
        self._failed.pop(name, None)

    # ---- what there is ---------------------------------------------------------------------

    def entries(self) -> dict[str, Integration]:
        """The entries that are to be in force, by integration."""
        return {name: pending.entry for name, pending in self._pending.items()}

    def amend(self, entry: Integration) -> None:
        """Let another entry be in force, which differs in what a running server need not know."""
        self._pending[entry.name].entry = entry

    def is_successor(self, key: str) -> bool:
        """Whether the worker is one that waits to take another's place."""
        return self.entry_of(key) is not None

    def entry_of(self, key: str) -> Integration | None:
        """What a successor is started by."""
        for pending in self._pending.values():
            if pending.key == key:
                return pending.entry
        return None

    def row(self, name: str) -> dict[str, Any] | None:
        """For `vsm status`: what is under way, or why the last one did not happen."""
        pending = self._pending.get(name)
        if pending is not None:
            return {"state": "starting", "by": pending.key, "reason": pending.reason}
        if name in self._failed:
            return {"state": "failed", "by": None, "reason": self._failed[name]}
        return None

    # ---- what becomes of it ----------------------------------------------------------------

    def _switched(self, change: replacement.Switched) -> None:
        """The processes have changed places: so do their names, and the entry is in force."""
        group, name = self._group, change.name
        new, old = group.running.pop(change.left), group.running.pop(name, None)
        new.key, new.incarnation = name, change.incarnation
        group.running[name] = new
        if old is not None:
            old.key, old.incarnation = change.left, group.workers.worker(change.left).incarnation
            old.outdated = True
            group.running[change.left] = old
        self._serves(name, new)

    def _renewed(self, name: str, new: RunningWorker) -> None:
        """One of several serves by the new entry; the others are replaced one by one."""
        for running in self._group.running_of(name):
            running.outdated = running is not new
        self._serves(name, new)

    def _serves(self, name: str, new: RunningWorker) -> None:
        group, pending = self._group, self._pending.pop(name)
        group.hooks.adopted(pending.entry)
        if name in group.sets:  # by the entry that is in force
            group.sets[name].renew(spec_of(new.entry))
        group.bounds.refresh(name)
        group.hooks.pins(name)
        group.hooks.tell_operations(Switch(worker=new.worker_id, integration=name), [])
        took_s = round(asyncio.get_running_loop().time() - pending.began_at, 3)
        detail = {"by": pending.key, "reason": pending.reason, "took_s": took_s}
        group.hooks.replacing("done", name, detail)
        pending.done.set_result("")

    def changed(self, change: restart.Changed) -> None:
        """A successor that is stopped before it was ready has failed; one of several serves."""
        name = integration_of(change.name)
        several, pending = self._group.sets.get(name), self._pending.get(name)
        if several is not None and change.phase == "stopped":
            several.give_up_aside(change.name)
        if pending is None or pending.key != change.name:
            return
        if change.phase == "stopped":
            self._failed_to(name, change.reason)
        elif change.phase == "ready" and several is not None:
            if self._group.workers.phase(name) == "ready":
                self._renewed(name, self._group.running[change.name])
            else:
                self.give_up(name, f"{name} is {self._group.workers.phase(name)}")

    def _failed_to(self, name: str, reason: str) -> None:
        pending = self._pending.pop(name)
        self._failed[name] = reason
        remedy = f"the one before serves on; see `vsm logs {name}`, then try again"
        detail = {"by": pending.key, "reason": reason, "remedy": remedy}
        self._group.hooks.replacing("failed", name, detail)
        pending.done.set_result(reason)


def _kind(entry: Integration) -> str:
    """Who gets a server: one for all, whoever calls, or one session."""
    terms = terms_of(entry)
    return "one" if terms is None else terms.kind


def overlaps(entry: Integration, running: RunningWorker) -> bool:
    """Whether a server may run beside the one that it is to replace.

    What both could write would be written by two that know nothing of each other: a login's tokens
    are such a thing, which whoever renews them first takes from the other.
    """
    if entry.replace != "auto" or entry.instances != "shared":  # several run at once anyway
        return entry.replace != "stop-first"
    try:
        profiles = [provision.profile_of(entry)]
    except VsmError:
        return True  # its start fails of that, and the one that serves goes on
    profiles += [running.provided.profile] if running.provided is not None else []
    writes = any(profile.files.write for profile in profiles)
    entries = (entry, running.entry)
    logins = any(one.remote is not None and one.remote.oauth for one in entries)
    return not (writes or logins or any(one.state or one.write for one in entries))
