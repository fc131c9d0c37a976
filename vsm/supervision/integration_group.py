"""The integrations: started through the launcher, attached to S1, restarted or quarantined.

Runs in the supervisor. Owns the launcher's link and a duplicate of every worker's pipes, so that
a new S1 gets them, with the record that resuming a session needs. A bit long: whatever becomes of
a worker changes the same few tables.
"""

import asyncio
import os
import signal
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from vsm.configuration.config import Integration
from vsm.core import restart
from vsm.errors import VsmError
from vsm.governance.detection import Detection
from vsm.link import close_fds
from vsm.linux import pidfd
from vsm.messages import (
    Attach,
    Detach,
    Drain,
    Idle,
    IntegrationRow,
    Known,
    Session,
    Unfit,
    Wanted,
)
from vsm.processes.launch import ExitReport, LauncherLink, LaunchError, Spawned
from vsm.supervision import provision
from vsm.supervision.egress_actor import EgressActor
from vsm.supervision.forks import Forks
from vsm.supervision.group import GroupRunner
from vsm.supervision.instance_set import InstanceSet, integration_of, number_of
from vsm.supervision.integration_hooks import IntegrationHooks
from vsm.supervision.last_words import describe_start
from vsm.supervision.launcher_actor import LAUNCHER, LauncherActor, launcher_spec
from vsm.supervision.pool_bounds import PoolBounds
from vsm.supervision.refused_calls import RefusedCalls
from vsm.supervision.replacements import Replacements
from vsm.supervision.running_worker import (
    RunningWorker,
    availability_of,
    end_of,
    is_clean,
    open_pipes,
    remove_group,
    row_of,
    spec_of,
)


class IntegrationGroup:
    """The launcher and the integrations."""

    def __init__(self, integrations: dict[str, Integration], hooks: IntegrationHooks) -> None:
        self.integrations = dict(integrations)
        self.hooks = hooks
        self.workers = GroupRunner([spec_of(one) for one in integrations.values()], self)
        self.launcher_actor = LauncherActor(self)
        self.launcher = GroupRunner([launcher_spec()], self.launcher_actor)
        self.egress = EgressActor(hooks.host, hooks.changed, self._egress_refused)
        self.running: dict[str, RunningWorker] = {}
        self.sets: dict[str, InstanceSet] = {}
        self._numbers: dict[str, int] = {}
        self.forks = Forks(self)
        self.replacements = Replacements(self)
        self.detection = Detection(self)
        self.refused = RefusedCalls(hooks.calls_refused)
        self.limits: dict[str, dict[str, Any]] = {}  # set by command; see vsm.governance.limits
        self.granted: dict[str, dict[str, Any]] = {}  # set by S3; see vsm.governance.regulation
        self.bounds = PoolBounds(self)
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- commands --------------------------------------------------------------------------

    async def start_launcher(self) -> None:
        """Exec the launcher, first of all: it removes what is left if this process is killed."""
        self.launcher.send(restart.Start(LAUNCHER))
        await asyncio.sleep(0)  # the task that does it runs up to where it waits for the launcher

    def start(self) -> None:
        """Start every enabled integration."""
        for integration in self.integrations.values():
            if integration.enabled:
                self.workers.send(restart.Start(integration.name))

    def put(self, integration: Integration) -> bool:
        """Know an integration, stopped, or know one by new terms; whether it is new."""
        known = integration.name in self.workers.group.workers
        self.integrations[integration.name] = integration
        self.workers.put(spec_of(integration))
        return not known

    def overrides(self, name: str) -> dict[str, Any]:
        """What goes before the limits of a profile; a command before what S3 granted."""
        return {**self.granted.get(name, {}), **self.limits.get(name, {})}

    def slow_down(self, name: str, factor: float) -> None:
        """Restart an integration that keeps failing more slowly; 1 is as it is configured."""
        spec = spec_of(self.integrations[name])
        pause_s = min(spec.backoff_max_s, spec.backoff_initial_s * factor)
        self.workers.put(replace(spec, backoff_initial_s=pause_s, stable_s=spec.stable_s * factor))

    def forget(self, name: str) -> None:
        """Forget an integration that has no process."""
        self.workers.remove(name)
        self.replacements.forget(name)
        for kept in (self.limits, self.granted, self.bounds):
            kept.pop(name, None)
        self.refused.forget(name)
        del self.integrations[name]

    async def stop(self, *, drain_s: float) -> None:
        """Drain what is in flight for `drain_s` at most, then stop every integration."""
        for name in self.integrations:
            self.stop_one(name, drain=True, reason="vsm is shutting down")
        try:
            await asyncio.wait_for(self.workers.wait_all_dead(), drain_s)
        except TimeoutError:
            for name in tuple(self.workers.group.workers):
                self.stop_one(name, drain=False, reason="vsm is shutting down")
            await self.workers.wait_all_dead()
        await self.egress.stop()

    def stop_one(
        self, name: str, *, drain: bool, restart_it: bool = False, reason: str = "stopped"
    ) -> None:
        """Stop an integration; draining needs an S1 that serves."""
        gentle = drain and self.hooks.operations_ready()
        self.workers.send(restart.Stop(name, drain=gentle, restart=restart_it, reason=reason))

    async def wait_gone(self, name: str) -> None:
        """Wait until an integration is stopped, with everything that it replaced."""
        keys = (k for k in tuple(self.workers.group.workers) if integration_of(k) == name)
        for key in keys:
            await self.workers.wait_phase(key, "stopped")

    async def stop_launcher(self) -> None:
        """End the launcher, last of all."""
        self.launcher.send(restart.Stop(LAUNCHER, drain=False, reason="shutting down"))
        await self.launcher.wait_all_dead()
        self.detection.stop()
        self.refused.close()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self.workers.close()
        self.launcher.close()

    def rows(self) -> tuple[IntegrationRow, ...]:
        """What S1 must know of each integration."""
        return tuple(row_of(one) for one in self.integrations.values())

    # ---- S1 --------------------------------------------------------------------------------

    def on_operations_started(self) -> None:
        """A new S1: give it every worker and say how each integration stands."""
        for name in self.integrations:
            self.tell_availability(name)
            self._tell_known(name)
        for running in self.running.values():
            if running.stdin >= 0 and running.spawned is not None and not running.doomed:
                self.attach(running)

    def _tell_known(self, name: str) -> None:
        """What an integration offered when it last ran, so that no list waits for its server."""
        fd = self.hooks.recall(self.integrations[name])
        if fd is not None:
            self.hooks.pins(name)
            self.hooks.tell_operations(Known(integration=name, fds=("surface",)), [fd])
            close_fds([fd])

    def on_operations_lost(self) -> None:
        """S1 is gone: a half-initialised server cannot be resumed, and nothing is in flight."""
        for key in tuple(self.workers.group.workers):
            self.workers.send(restart.Drained(key))
        for instances in list(self.sets.values()):
            instances.gateway_lost()
        for key, running in list(self.running.items()):
            if self.workers.phase(key) == "starting" and running.attached:
                running.attached = False
                alone = running.name not in self.sets  # which starts another one
                again = alone or self.replacements.is_successor(key)
                reason = "the gateway restarted while it was initialising"
                self.workers.send(restart.Stop(key, drain=False, restart=again, reason=reason))

    def on_operations_message(self, message: Any) -> None:  # noqa: ANN401 - a model of FromSystem
        """What S1 reports about a worker."""
        match message:
            case Session():
                self._on_session(message)
            case Unfit():
                running = self._by_id(message.worker)
                if running is not None:
                    reason = f"unfit: {message.reason}"
                    event = restart.Failed(running.key, running.incarnation, reason)
                    self.workers.send(event)
            case Wanted():
                self._on_wanted(message)
            case Idle(worker=None) if message.integration in self.integrations:
                self.workers.send(restart.Drained(message.integration))
            case Idle() if (running := self._by_id(message.worker or "")) is not None:
                self.workers.send(restart.Drained(running.key))

    def _on_session(self, message: Session) -> None:
        running = self._by_id(message.worker)
        if running is not None:
            running.record = message.record
            self.workers.send(restart.Ready(running.key, running.incarnation))

    def _on_wanted(self, message: Wanted) -> None:
        instances = self.sets.get(message.integration)
        if instances is not None:
            release = {}
            for worker, why in message.release.items():
                running = self._by_id(worker)
                if running is not None and running.name == message.integration:
                    release[running.key] = why
                else:  # S1 has missed its end
                    gone = Detach(worker=worker, integration=message.integration, reason="ended")
                    self.hooks.tell_operations(gone, [])
            instances.want(message.count, release)

    def running_of(self, name: str) -> list[RunningWorker]:
        """Every process of an integration that was started by itself; forks are below one."""
        return [r for r in self.running.values() if r.name == name and r.base is None]

    def _by_id(self, worker_id: str) -> RunningWorker | None:
        return next((r for r in self.running.values() if r.worker_id == worker_id), None)

    def attach(self, running: RunningWorker) -> None:
        """Give S1 a server's pipes."""
        self.hooks.pins(running.name)
        beside = self.replacements.is_successor(running.key)
        several = running.name in self.sets
        message = Attach(
            worker=running.worker_id,
            integration=running.name,
            record=running.record,
            instance=number_of(running.key) if several else 0,
            beside=row_of(running.entry) if beside else None,
            outdated=running.outdated,
            fds=("stdin", "stdout"),
        )
        running.attached = self.hooks.tell_operations(message, [running.stdin, running.stdout])

    def tell_availability(self, name: str) -> None:
        """Tell S1 how an integration stands."""
        self.hooks.tell_operations(availability_of(self.workers.worker(name)), [])
        self.bounds.tell(name)

    # ---- what the restart decisions do -----------------------------------------------------

    def spawn(self, name: str, incarnation: int) -> None:
        """Note the incarnation; start it now or when the launcher can."""
        entry = self.replacements.entry_of(name) or self.integrations[integration_of(name)]
        self._forget_set(name)
        terms = None if number_of(name) else self.bounds.terms_of(name)
        if terms is not None:
            self.forks.make_set(name, incarnation, terms, self._numbers.get(name, 0))
            if not entry.zygote:
                return
        now = asyncio.get_running_loop().time()
        running = self.running[name] = RunningWorker(entry, name, incarnation, now)
        if entry.zygote and self.forks.take(running):
            return
        link = self.launcher_actor.usable_link
        if link is not None:
            self.run_task(self._spawn(running, link))

    def spawn_waiting(self, link: LauncherLink) -> None:
        """The launcher can spawn now."""
        for running in list(self.running.values()):
            if running.provided is None and running.output is None and running.base is None:
                self.run_task(self._spawn(running, link))

    def run_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it on the loop; the end of vsm waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _spawn(self, running: RunningWorker, link: LauncherLink) -> None:
        if self.running.get(running.key) is not running:
            return  # stopped before this task had its turn
        try:
            running.provided = provision.provide(
                self.hooks.host(),
                running.entry,
                running.worker_id,
                self.overrides(running.name),
                instance=number_of(running.key),
            )
            running.tier = running.provided.plan.tier
            running.spawned = await self._launch(running, link)
        except VsmError as error:
            self.hooks.refused(running.name, error)
            self.gone(running, str(error), hopeless=True)
            return
        except (LaunchError, OSError) as error:
            lost = self.launcher_actor.usable_link is not link
            hopeless = isinstance(error, LaunchError) and error.hopeless
            why = describe_start(running, error)
            self.gone(running, why, hopeless=hopeless, collateral=lost)
            return
        self.detection.start()
        if running.provided.egress is not None:
            rules = running.provided.egress
            self.egress.serve(running.worker_id, rules, running.spawned.listeners)
        if running.report is not None:  # it ended before we were told that it had begun
            self._ended(running, running.report)
        elif running.doomed:
            await link.kill(running.worker_id)
        elif self.workers.phase(running.key) != "starting":
            self.terminate(running.key)
        elif running.zygote is not None:
            running.zygote.begin(running.spawned.pid)
        else:
            self.attach(running)

    async def _launch(self, running: RunningWorker, link: LauncherLink) -> Spawned:
        provided = running.provided
        if provided is None:
            raise LaunchError("nothing was provided")
        theirs: list[int] = []  # closed even if the next descriptor is the one too many
        try:
            self.hooks.hide(provided.secrets.items())
            ring = self.hooks.ring(running.name)
            stdin, stdout, stderr = open_pipes(running, ring, provided.secrets, theirs)
            if running.zygote is not None:
                running.close_pipes()  # nobody talks to it but by its channel
                stdin = running.zygote.stdin
            return await link.spawn(running.worker_id, provided.plan, stdin, stdout, stderr)
        finally:
            close_fds(theirs)

    def drain(self, name: str) -> None:
        """S1 finishes what is in flight; it knows first whether new calls are to wait."""
        if number_of(name):
            worker = self.running[name].worker_id
            message = Drain(integration=integration_of(name), worker=worker)
            self.hooks.tell_operations(message, [])
            return
        self.tell_availability(name)
        self.hooks.tell_operations(Drain(integration=name), [])

    def terminate(self, name: str) -> None:
        """As MCP asks for: close its stdin; SIGTERM as well, since many wait for that only."""
        if name in self.sets:
            self.sets[name].close(self.workers.worker(name).reason or "stopping")
            return
        running = self.running.get(name)
        if running is None:
            return  # it has just ended, which is about to be told
        if running.spawned is None:
            if running.provided is None and running.base is None:
                self.gone(running, "stopped before it was started")
            return
        self._detach(running, self.workers.worker(name).reason or "stopping")
        running.close_pipes()
        self.signal(running, signal.SIGTERM)

    def ask_stack(self, name: str) -> None:
        """A foreign server owes no stack; SIGTERM is the most that it may understand."""
        self.terminate(name)

    def kill(self, name: str) -> None:
        """Kill its whole tree, or the spawn to come."""
        running = self.running.get(name)
        if running is None:
            self.terminate(name)
            return
        running.doomed = True
        link = self.launcher_actor.usable_link
        if running.spawned is not None and (running.base is not None or link is not None):
            self._detach(running, self.workers.worker(name).reason or "killed")
            if running.base is not None:
                self.signal(running, signal.SIGKILL)
            elif link is not None:
                self.run_task(link.kill(running.worker_id))
        elif running.provided is None and running.base is None:
            self.gone(running, "stopped before it was started")

    def signal(self, running: RunningWorker, signo: int) -> None:
        """Send a signal to a server, not to its whole tree."""
        if running.base is not None and running.spawned is not None:
            pidfd.send_signal(running.spawned.pidfd, signo)
            return
        link = self.launcher_actor.usable_link
        if link is not None:
            self.run_task(link.signal(running.worker_id, signo))

    def _detach(self, running: RunningWorker, reason: str) -> None:
        message = Detach(worker=running.worker_id, integration=running.name, reason=reason[:4096])
        self.hooks.tell_operations(message, [])

    def changed(self, change: restart.Changed) -> None:
        """Tell S1 and pass on."""
        self.hooks.changed(change)
        if number_of(change.name):
            self._instance_changed(change)
            return
        self.tell_availability(change.name)
        if change.phase not in restart.ALIVE:
            self._forget_set(change.name)

    def next_number(self, name: str) -> int:
        """The number of one more instance of an integration, never used before."""
        self._numbers[name] = self._numbers.get(name, 0) + 1
        return self._numbers[name]

    def _forget_set(self, name: str) -> None:
        """All its instances have ended; the next one's number goes on from there."""
        if name in self.sets:
            self._numbers[name] = self.sets.pop(name).number

    def _instance_changed(self, change: restart.Changed) -> None:
        instances = self.sets.get(integration_of(change.name))
        if change.phase == "stopped":
            self.workers.remove(change.name)
        self.replacements.changed(change)
        if instances is None:
            return
        if change.phase == "stopped":
            instances.gone()
        elif change.phase == "ready":
            instances.ready()

    def _egress_refused(self, worker_id: str, host: str, reason: str) -> None:
        running = self._by_id(worker_id)
        if running is not None:
            self.hooks.egress_refused(running.name, host, reason)

    def on_refused_calls(self, worker_id: str, calls: dict[int, int]) -> None:
        """The launcher counted system calls that a worker was refused."""
        running = self._by_id(worker_id)
        if running is not None:
            self.refused.add(running.name, calls)

    # ---- what the processes report ---------------------------------------------------------

    def on_exit(self, worker_id: str, report: ExitReport) -> None:
        """The launcher reaped a worker, or lost it."""
        running = self._by_id(worker_id)
        if running is None:
            return
        running.report = report
        if running.spawned is not None:
            self._ended(running, report)

    def _ended(self, running: RunningWorker, report: ExitReport) -> None:
        if running.output is not None:
            running.output.finish()  # its last words say what is to be done
        reason, hopeless = end_of(running, report, self.hooks.ring(running.name).lines)
        self.gone(running, reason, clean=is_clean(report), hopeless=hopeless)

    def gone(
        self,
        running: RunningWorker,
        reason: str,
        *,
        clean: bool = False,
        hopeless: bool = False,
        collateral: bool = False,
    ) -> None:
        """A process has ended, or never came to be."""
        if self.running.get(running.key) is not running:
            return
        del self.running[running.key]
        if running.spawned is not None:
            self._detach(running, reason)
            os.close(running.spawned.pidfd)
            self.egress.forget(running.worker_id)
        running.close_pipes()
        if running.zygote is not None:
            running.zygote.end()
        if running.output is not None:
            running.output.finish()
        self.refused.ended(running.name)
        remove_group(running)
        report = running.report
        lost = collateral or (report is not None and report.cause == "launcher")
        instances = self.sets.get(running.name)
        unexpected = self.workers.worker(running.key).after != "stop"
        why = "the launcher died" if lost else reason
        innocent = lost and (instances is None or running.zygote is not None)
        verdict = restart.Exited(running.key, running.incarnation, why, clean, innocent, hopeless)
        if instances is None:
            self.workers.send(verdict)
        elif running.zygote is not None:
            instances.zygote_gone(verdict)
        else:
            if unexpected and not lost and not self.replacements.is_successor(running.key):
                served = running.record is not None
                instances.failed(running.key, reason, served=served, hopeless=hopeless)
            self.workers.send(verdict)
