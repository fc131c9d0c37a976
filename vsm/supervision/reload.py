"""Applying an edited vsm.toml to the running whole: all of it is checked before any of it counts.

Runs in the supervisor. Owns the order: removed integrations drain, changed ones are replaced or
restart, new ones start, limits move under running workers; whoever is not named is not touched. An
entry whose server is to be replaced is in force once the new server serves. One reload at a time;
signals that arrive during one are answered by one more.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from vsm.configuration import changes
from vsm.configuration.changes import Change
from vsm.configuration.config import Config, Integration
from vsm.configuration.profile import Profile, load_profile
from vsm.confinement.cgroup import CgroupLimits
from vsm.core import restart
from vsm.errors import ConfigurationError, VsmError
from vsm.service.notify import notify, notify_reloading
from vsm.supervision import provision
from vsm.supervision.running_worker import RunningWorker

if TYPE_CHECKING:
    from vsm.supervision.supervisor import Supervisor

SETTLE_S: Final = 60.0
_SETTLED: Final[tuple[restart.Phase, ...]] = ("ready", "quarantined", "stopped", "backing_off")
_REPAIR: Final = "Repair the entry, then `vsm reload`."
_NEEDS_RESTART: Final = "takes effect when vsm itself is restarted"


@dataclass(frozen=True)
class Outcome:
    """What became of one change, as `reload` answers it."""

    name: str
    outcome: str
    keys: tuple[str, ...] = ()
    detail: str = ""


class Reloader:
    """Reloads one supervisor.

    Args:
        load: reads the configuration anew, as it was read at the start; None if there is no file.
    """

    def __init__(self, supervisor: "Supervisor", load: Callable[[], Config] | None) -> None:
        self._supervisor = supervisor
        self._load = load
        self._lock = asyncio.Lock()
        self._signalled: asyncio.Task[None] | None = None
        self._again = False
        self._removals: set[asyncio.Task[None]] = set()
        self._replacing: dict[str, asyncio.Future[str]] = {}

    # ---- who asks --------------------------------------------------------------------------

    def request(self) -> None:
        """Reload soon: a signal. However many come during a reload, one more follows it."""
        if self._signalled is not None and not self._signalled.done():
            self._again = True
            return
        self._signalled = asyncio.create_task(self._reload_signalled())

    async def _reload_signalled(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            try:
                await self.reload(wait=False)
            except VsmError as error:
                reason = str(error)
                self._supervisor.log.error("not reloaded, nothing changed", reason=reason)  # noqa: TRY400 - a person's mistake, no trace

    async def reload(self, *, wait: bool) -> dict[str, Any]:
        """Check everything, then apply it.

        Args:
            wait: until what was started, stopped or restarted is so, bounded.

        Raises:
            VsmError: something in it is wrong; nothing was changed.
        """
        async with self._lock:
            began = time.monotonic()
            notify_reloading()
            try:
                found = await self._apply_file()
            finally:
                notify("READY=1")
            took_ms = round((time.monotonic() - began) * 1000, 1)
        if wait:
            found = [await self._settled(outcome) for outcome in found]
        rows = [_row(outcome) for outcome in found]
        self._supervisor.log.info("reloaded", changes=rows, took_ms=took_ms)
        self._supervisor.recorder.reloaded(rows)
        return {"changes": rows, "took_ms": took_ms}

    async def close(self) -> None:
        """Forget what is going on; the supervisor ends."""
        tasks = [*self._removals, *([self._signalled] if self._signalled else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- checking --------------------------------------------------------------------------

    async def _apply_file(self) -> list[Outcome]:
        supervisor = self._supervisor
        if self._load is None or supervisor.config.path is None:
            remedy = "Start vsm with --config FILE."
            raise ConfigurationError("reload", "vsm was started without a file", remedy)
        config = self._load()
        profiles = _profiles(config)
        found = self._compare(config, profiles)
        numbers = self._uids(config)
        await self._check(config, found, numbers)
        if supervisor.stopping:
            raise VsmError("reload", "vsm is shutting down")
        found = self._compare(config, profiles)  # a server may have taken its place meanwhile
        return self._apply(config, profiles, found, numbers)

    def _compare(self, config: Config, profiles: dict[str, Profile]) -> list[Change]:
        found = {change.name: change for change in changes.compare(self._supervisor.config, config)}
        for running in self._supervisor.integrations.running.values():
            name = running.name
            if running.provided is None or name not in config.integrations or running.outdated:
                continue
            commanded = self._supervisor.integrations.overrides(name)  # on both: no difference
            old = provision.with_limits(running.provided.profile, commanded)
            new = provision.with_limits(profiles[name], commanded)
            change = changes.with_profile(found.get(name), name, old, new)
            if change is not None:
                found[name] = change
        return list(found.values())

    def _uids(self, config: Config) -> dict[str, int]:
        """A uid for each; whoever has one keeps it."""
        if not self._supervisor.host.facts.root:
            return {}
        numbers = provision.integration_uids(config) | self._supervisor.host.uids
        every = (*numbers.values(), *self._supervisor.host.system_uids.values())
        if len(set(every)) != len(every):
            raise VsmError("reload", "two names share a uid", "Restart vsm instead.")
        return numbers

    async def _check(self, config: Config, found: list[Change], numbers: dict[str, int]) -> None:
        """A typing error must not take a running server down."""
        host = replace(self._supervisor.host, written=provision.written_paths(config))
        for change in found:
            integration = config.integrations.get(change.name)
            if integration is not None and change.action in {"start", "restart"}:
                uid = numbers.get(change.name)
                _check_one(host, integration, uid)
                await asyncio.sleep(0)

    # ---- applying --------------------------------------------------------------------------

    def _apply(
        self,
        config: Config,
        profiles: dict[str, Profile],
        found: list[Change],
        numbers: dict[str, int],
    ) -> list[Outcome]:
        supervisor, group = self._supervisor, self._supervisor.integrations
        kept = self._replaceable(config, found)
        self._review_pending(config, kept)
        # What takes effect later is compared with what is in force, again and again.
        supervisor.config = msgspec.structs.replace(
            supervisor.config,
            path=config.path,
            integrations={**config.integrations, **kept},
            policy=config.policy,
        )
        supervisor.policing.configure()
        supervisor.host.uids.update(numbers)
        written = (*provision.written_paths(config), *provision.written_paths(supervisor.config))
        supervisor.host.written = tuple(dict.fromkeys(written))
        new = [one.name for one in supervisor.config.integrations.values() if group.put(one)]
        supervisor.configure_systems()
        for change in found:
            if change.name in group.integrations:
                group.bounds.refresh(change.name)
        for name in new:
            group.tell_availability(name)
            supervisor.regulator.acquired(name)
        for change in found:
            if "trust" in change.keys and change.name not in kept:
                supervisor.pinning.tell(change.name)
        for name in kept:
            reason = "its configuration changed"
            self._replacing[name] = group.replacements.begin(config.integrations[name], reason)
        return [
            Outcome(change.name, "replacing", change.keys)
            if change.name in kept
            else self._apply_one(change, profiles)
            for change in found
        ]

    def _replaceable(self, config: Config, found: list[Change]) -> dict[str, Integration]:
        """The entries that stay in force until the new one has a server that serves."""
        supervisor = self._supervisor
        can_begin = supervisor.integrations.replacements.can_begin
        return {
            change.name: supervisor.config.integrations[change.name]
            for change in found
            if change.action == "restart" and can_begin(config.integrations[change.name])
        }

    def _review_pending(self, config: Config, kept: dict[str, Integration]) -> None:
        """What is under way by an entry that is not wanted any more is given up."""
        replacements = self._supervisor.integrations.replacements
        for name, entry in replacements.entries().items():
            wanted = config.integrations.get(name)
            change = None if wanted is None else changes.compare_one(entry, wanted)
            if name in kept:  # which begins anew
                continue
            if wanted is not None and (change is None or change.action == "update"):
                replacements.amend(wanted)
            else:
                replacements.give_up(name, "the configuration was changed again")

    def _apply_one(self, change: Change, profiles: dict[str, Profile]) -> Outcome:
        group = self._supervisor.integrations
        name, keys = change.name, change.keys
        match change.action:
            case "impossible" | "policy" as action:
                applied = action == "policy"
                text = ("changed", "") if applied else ("not applied", _NEEDS_RESTART)
                return Outcome(name, text[0], keys, text[1])
            case "remove":
                self._begin_removal(name)
                return Outcome(name, "removing")
            case "stop":
                group.stop_one(name, drain=True, reason="disabled in the configuration")
                return Outcome(name, "stopping", keys)
            case "start":
                group.workers.send(restart.Start(name))
                return Outcome(name, "starting", keys)
            case "restart" if group.workers.worker(name).wanted:
                group.stop_one(
                    name, drain=True, restart_it=True, reason="its configuration changed"
                )
                return Outcome(name, "restarting", keys)
        return self._move_limits(change, profiles[name])

    def _move_limits(self, change: Change, profile: Profile) -> Outcome:
        """To all its processes; the first that the kernel refuses it to is the outcome."""
        outcome = Outcome(change.name, "changed", change.keys)
        for running in self._supervisor.integrations.running_of(change.name):
            outcome = self._move_limits_of(running, change, profile)
            if outcome.outcome != "changed":
                break
        return outcome

    def _move_limits_of(self, running: RunningWorker, change: Change, profile: Profile) -> Outcome:
        commanded = self._supervisor.integrations.overrides(change.name)
        written = profile.limits
        profile = provision.with_limits(profile, commanded)
        if not change.limits or running.provided is None:
            return Outcome(change.name, "changed", change.keys)
        if not changes.DETECTED_LIMITS.issuperset(change.limits):
            if running.provided.group is None:
                detail = "no control group holds it: restart it for its limits to count"
                return Outcome(change.name, "not applied", change.keys, detail)
            try:
                running.provided.group.set_limits(CgroupLimits(**changes.movable(profile.limits)))
            except VsmError as error:
                return Outcome(change.name, "not applied", change.keys, str(error))
        running.provided.profile, running.provided.written = profile, written
        running.provided.memory_bytes = profile.limits.memory_bytes
        self._supervisor.integrations.detection.start()
        return Outcome(change.name, "changed", change.keys)

    def _begin_removal(self, name: str) -> None:
        group = self._supervisor.integrations
        group.stop_one(name, drain=True, reason="removed from the configuration")
        self._supervisor.regulator.acquired(name, gone=True)
        task = asyncio.create_task(self._finish_removal(name))
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def _finish_removal(self, name: str) -> None:
        """Forget it once it is dead, unless a later reload brought it back, or removed it too."""
        group = self._supervisor.integrations
        await group.wait_gone(name)
        if name not in self._supervisor.config.integrations and name in group.integrations:
            self._supervisor.forget(name)

    # ---- waiting ---------------------------------------------------------------------------

    async def _settled(self, outcome: Outcome) -> Outcome:
        """The outcome once the worker has come to rest."""
        if outcome.outcome == "replacing":
            return await self._replaced(outcome)
        if outcome.outcome not in {"removing", "stopping", "starting", "restarting"}:
            return outcome
        workers = self._supervisor.integrations.workers
        gone = outcome.outcome in {"removing", "stopping"}
        phases: tuple[restart.Phase, ...] = ("stopped",) if gone else _SETTLED
        try:
            await asyncio.wait_for(workers.wait_phase(outcome.name, *phases), SETTLE_S)
        except TimeoutError:
            return replace(outcome, detail="not done yet: see `vsm status`")
        if outcome.outcome == "removing":
            return Outcome(outcome.name, "removed")
        worker = workers.group.workers.get(outcome.name)
        if worker is None:  # a later reload removed it
            return Outcome(outcome.name, "removed")
        return Outcome(outcome.name, worker.phase, outcome.keys, worker.reason)

    async def _replaced(self, outcome: Outcome) -> Outcome:
        """The outcome once the new server serves, or did not come to that."""
        try:
            done = self._replacing[outcome.name]
            failure = await asyncio.wait_for(asyncio.shield(done), SETTLE_S)
        except TimeoutError:
            return replace(outcome, detail="not done yet: see `vsm status`")
        if not failure:
            return replace(outcome, outcome="replaced")
        text = failure.rstrip(".")
        detail = f"{text}. The server before serves on, by the entry before. {_REPAIR}"
        return replace(outcome, outcome="not applied", detail=detail)


def _check_one(host: provision.Host, integration: Integration, uid: int | None) -> None:
    try:
        provision.check(host, integration, uid)
    except VsmError as error:
        error.where = f"integrations.{integration.name}: {error.where}"
        raise


def _profiles(config: Config) -> dict[str, Profile]:
    """That of each integration; a wrong one is an error although nobody may use it now."""
    for name in msgspec.structs.astuple(config.systems):
        load_profile(name)
    read: dict[str, Profile] = {}  # many share one, which takes milliseconds to read
    found = {}
    for name, one in config.integrations.items():
        if one.remote is not None:
            found[name] = provision.profile_of(one)
            continue
        if one.profile not in read:
            read[one.profile] = provision.profile_of(one)
        found[name] = read[one.profile]
    return found


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "outcome": outcome.outcome,
        "keys": list(outcome.keys),
        "detail": outcome.detail,
    }
