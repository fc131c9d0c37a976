"""The supervisor: wires endpoint, systems and integrations together, and ends them in order.

The parent of every process, single-threaded on asyncio, with the privilege that `vsm up` was
given. Runs no foreign code, parses no MCP and holds no secret longer than its worker runs, but
those that what is recorded of calls must not hold. Signals only enqueue. A bit long: who is told
what, and in which order, stands in one place.
"""

import asyncio
import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec

from vsm import endpoint, logs, paths
from vsm.configuration.config import Config, Integration
from vsm.confinement import cgroup_files
from vsm.core import restart
from vsm.errors import VsmError
from vsm.governance.pinning import Pinning
from vsm.governance.policing import Policing, govern
from vsm.governance.regulation import Regulator
from vsm.introspection import own_answers
from vsm.introspection.control import ControlServer
from vsm.introspection.reflection import Reflection
from vsm.link import LinkStatistics
from vsm.linux.prctl import become_subreaper
from vsm.messages import Configure, Message, Start
from vsm.output import OutputRing
from vsm.pins import PinStore
from vsm.processes.launcher_link import Order
from vsm.processes.remains import FILES, GROUPS
from vsm.processes.template_start import TemplateStart
from vsm.service.notify import notify, take_over, watchdog_interval_s
from vsm.supervision import provision
from vsm.supervision.integration_group import IntegrationGroup
from vsm.supervision.integration_hooks import IntegrationHooks
from vsm.supervision.recorder import Recorder
from vsm.supervision.reload import Reloader
from vsm.supervision.surfaces import SurfaceStore
from vsm.supervision.system_group import SystemGroup, SystemHooks

DRAIN_S: Final = 5.0


class Supervisor:
    """One running vsm.

    Args:
        config: what to run.
        on_ready: called once, when the five systems serve.
        load: reads the configuration anew for a reload; None where there is no file.
    """

    def __init__(
        self,
        config: Config,
        *,
        on_ready: Callable[[], None] = lambda: None,
        load: Callable[[], Config] | None = None,
        template: TemplateStart | None = None,
    ) -> None:
        self.config = config
        self._template = template
        self.on_ready = on_ready
        self.log = logs.logger()
        self.began = time.monotonic()
        self.rings: dict[str, OutputRing] = {}
        self.endpoint: endpoint.Endpoint
        self.host: provision.Host
        self.systems: SystemGroup
        self.integrations: IntegrationGroup
        self.regulator = Regulator(self)
        self.control: ControlServer
        calls = config.gateway.audit != "off"
        self.recorder = Recorder(self.log, config.journal, self._links, calls=calls)
        self.pinning = Pinning(
            PinStore(paths.state_dir() / "pins"),
            modes=lambda: {n: i.trust for n, i in self.integrations.integrations.items()},
            tell=self._tell_operations,
            note=self._note_trust,
        )
        self._clients = provision.client_rows(config)
        self.policing = Policing(self)
        self.reflection = Reflection(self)
        self.surfaces = SurfaceStore(paths.state_dir() / "surfaces")
        self.reloader = Reloader(self, load)
        self._announced = False
        self._failure: VsmError | None = None
        self._on_terminal = os.isatty(0)
        self._shutdown = asyncio.Event()
        self._hurry = asyncio.Event()
        self._plans: dict[str, str] = {}
        self._foreign = set(_children()) - ({template.process.pid} if template else set())
        self._groups: Order = ({"kind": GROUPS, "folders": cgroup_files.places()}, ())
        self._files: list[Order] = []
        self._watchdog: asyncio.TimerHandle | None = None

    @property
    def ready(self) -> bool:
        """The five systems serve."""
        return self.systems.ready

    @property
    def stopping(self) -> bool:
        """It was told to end."""
        return self._shutdown.is_set()

    @property
    def uptime_s(self) -> float:
        """Since the supervisor began."""
        return time.monotonic() - self.began

    async def run(self) -> int:
        """Start everything, run until told to stop, stop everything in order.

        Raises:
            VsmError: it cannot start here.
        """
        become_subreaper()
        self.recorder.began()
        self._build_systems()
        self._build_integrations()
        try:
            await self.integrations.start_launcher()
            self.endpoint = endpoint.claim(self.config.gateway.http, self._on_locked)
            try:
                await self._run()
            finally:
                self.endpoint.release()
        finally:
            self.systems.close()
            await self.integrations.stop_launcher()  # last: it removes what we could not
        if self._failure is not None:
            raise self._failure
        return 0

    async def _run(self) -> None:
        self._watch_signals()
        self._tell_kept()
        self.policing.restore()
        self.systems.start()  # the slowest: its imports go on while we look at the host
        try:
            self.host = provision.survey(self.config)
            self.recorder.start(lambda: provision.journal_plan(self.host))
            await self._serve()
        finally:
            self._unwatch_signals()
            await self.recorder.close(uptime_s=self.uptime_s)

    async def _serve(self) -> None:
        self.integrations.start()
        self.regulator.start()
        self.control = ControlServer(self)
        if self.endpoint.control is not None:
            await self.control.start(self.endpoint.control)
        interval_s = watchdog_interval_s()
        if interval_s is not None:
            self._feed_watchdog(interval_s)
        await self._shutdown.wait()
        await self._stop()

    def _tell_kept(self) -> None:
        """What a service manager kept of the supervisor before."""
        demand = self.systems.demand
        for reason in demand.store.refused:
            self.log.warning("kept counts refused", reason=reason)
        if demand.events:
            self.log.info("counts kept", calls=demand.events, since_s=round(demand.age_s))

    def _build_systems(self) -> None:
        hooks = SystemHooks(
            plan=self._system_plan,
            start=self._start_message,
            from_operations=lambda message: self.integrations.on_operations_message(message),  # noqa: PLW0108 - built later
            changed=self._changed,
            operations_started=lambda: self.integrations.on_operations_started(),  # noqa: PLW0108 - built later
            operations_lost=self._operations_lost,
            ring=self.ring,
            offered=self.pinning.offered,
            learnt=self._learnt,
            consult=lambda what, about: own_answers.answer(self, what, about),
            regulate=lambda system, message: govern(self, system, message),
        )
        self.systems = SystemGroup(hooks)
        self.systems.template_actor.ahead = self._template
        for runner in (self.systems.systems, self.systems.template):
            self.recorder.watch(runner, integrations=False)

    def _build_integrations(self) -> None:
        hooks = IntegrationHooks(
            tell_operations=self._tell_operations,
            operations_ready=lambda: self.systems.operations_ready,
            changed=self._changed,
            host=lambda: self.host,
            ring=self.ring,
            refused=self.recorder.refused,
            spared=lambda: self.recorder.pids() | self.integrations.egress.pids(),
            egress_refused=self._egress_refused,
            calls_refused=self._calls_refused,
            pins=self.pinning.tell,
            hide=self.recorder.calls.hide,
            recall=self.surfaces.recall,
            adopted=self._adopted,
            replacing=self._replacing,
            remains=self._orders,
        )
        self.integrations = IntegrationGroup(self.config.integrations, hooks)
        self.recorder.watch(self.integrations.workers, integrations=True)
        for runner in (self.integrations.launcher, self.integrations.egress.runner):
            self.recorder.watch(runner, integrations=False)

    def _learnt(self, name: str, fd: int) -> None:
        integration = self.config.integrations.get(name)
        if integration is not None:
            self.surfaces.keep(integration, fd)

    # ---- what a killed supervisor leaves ---------------------------------------------------

    def _orders(self) -> list[Order]:
        """What a launcher is told first."""
        return [self._groups, *self._files]

    def _on_locked(self, claimed: endpoint.Endpoint) -> None:
        """The directory is ours: every file in it that we make from now on may be removed."""
        fds = (claimed.directory_fd, claimed.lock_fd)
        self._files = [({"kind": FILES, "names": claimed.names()}, fds)]
        self.integrations.launcher_actor.tell(self._files[0])

    # ---- hooks -----------------------------------------------------------------------------

    def _system_plan(self, system: str) -> str:
        import json

        if system not in self._plans:
            plan = provision.system_plan(self.host, self.config, system)
            self._plans[system] = json.dumps(plan.to_json())
        return self._plans[system]

    def _start_message(self, system: str, epoch: int) -> tuple[Start, list[int]]:
        if system != "system1":
            rows, own = self.integrations.rows(), self.regulator.settings(system)
            policy = self.policing.table if system in {"system4", "system5"} else {}
            return Start(epoch=epoch, integrations=rows, settings=own, policy=policy), []
        self._keep_contents()
        listeners = self.endpoint.listeners() if not self._shutdown.is_set() else {}
        fds = {name: sock.fileno() for name, sock in listeners.items()}
        calls = self.recorder.calls.fileno()
        fds |= {} if calls is None else {"calls": calls}
        message = Start(
            epoch=epoch,
            token=self.endpoint.token,
            auth=self.config.gateway.auth,
            introspection=self.config.gateway.introspection,
            clients=self._clients,
            audit=self.config.gateway.audit,
            audit_rate=self.config.gateway.audit_rate,
            list_wait_s=self.config.gateway.list_wait_s,
            integrations=self.integrations.rows(),
            fds=tuple(fds),
            **self.policing.start_of_operations(),
        )
        return message, list(fds.values())

    def _keep_contents(self) -> None:
        """Before S1 hears of the integrations: what their calls carry may be recorded."""
        tokens = [("token", self.endpoint.token), *(("token", one.token) for one in self._clients)]
        running = [
            one.provided.secrets for one in self.integrations.running.values() if one.provided
        ]
        self.recorder.keep_contents(self.config, [*tokens, *chain(*(s.items() for s in running))])

    def _operations_lost(self) -> None:
        self.integrations.on_operations_lost()
        self.policing.operations_lost()

    def _tell_operations(self, message: Message, fds: list[int]) -> bool:
        return self.systems.tell_operations(message, fds)

    def ring(self, name: str) -> OutputRing:
        """What that worker wrote to stderr; an empty one where it never did."""
        if name not in self.rings:
            self.rings[name] = OutputRing(name, self._on_line)
        return self.rings[name]

    def _on_line(self, name: str, line: str) -> None:
        self.log.info("output", worker=name, line=line)

    def _egress_refused(self, name: str, host: str, reason: str) -> None:
        self.log.warning("egress refused", worker=name, host=host, reason=reason)
        self.recorder.egress_refused(name, host, reason)
        self.policing.attempted(name, 1)

    def _note_trust(self, kind: str, name: str, severity: str, detail: dict[str, Any]) -> None:
        say = {"info": self.log.info, "notice": self.log.info, "warning": self.log.warning}
        say.get(severity, self.log.error)(kind, worker=name, **detail)
        self.recorder.trust(kind, name, severity, detail)
        self.policing.trust(kind, name, detail)

    def _adopted(self, entry: Integration) -> None:
        """A server by this entry serves in place of the one before: it is in force."""
        if self.config.integrations.get(entry.name) == entry:
            return
        integrations = {**self.config.integrations, entry.name: entry}
        self.config = msgspec.structs.replace(self.config, integrations=integrations)
        self.integrations.put(entry)
        self.configure_systems()

    def _replacing(self, stage: str, name: str, detail: dict[str, Any]) -> None:
        say = self.log.error if stage == "failed" else self.log.info
        say(f"replacement {stage}", worker=name, **detail)
        self.recorder.replacing(stage, name, detail)

    def _calls_refused(self, name: str, calls: Mapping[str, int]) -> None:
        self.recorder.calls_refused(name, calls)
        self.policing.attempted(name, sum(calls.values()))

    def _changed(self, change: restart.Changed) -> None:
        if not self._files:
            return  # nobody cares for a launcher while this may not run here at all
        self.regulator.changed(change)
        self.policing.changed(change)
        told = {"worker": change.name} | ({"reason": change.reason} if change.reason else {})
        if change.escalated:
            self.log.error("keeps failing, retried at the longest back-off", **told)
            self._give_up(change)
        elif change.phase == "quarantined":
            self.log.error("quarantined", **told)
        elif change.phase == "backing_off" or (change.phase == "starting" and change.reason):
            self.log.warning("restarting", **told)
        else:
            self.log.info(change.phase, **told)
        if self.ready and not self._announced:
            self._announced = True
            self.log.info("ready", after_s=round(self.uptime_s, 3))
            self.on_ready()
            notify("READY=1")
        if self._announced:
            self._tell_status()

    def _give_up(self, change: restart.Changed) -> None:
        """What served once is retried for ever; what never did is somebody's to repair."""
        if not (self._announced or self.stopping or change.name in self.integrations.integrations):
            remedy = "Repair that and start vsm again; `vsm doctor` looks at the whole."
            reason = change.reason.removeprefix(f"{change.name}: ").rstrip(".")
            self._failure = VsmError(change.name, f"cannot run here: {reason}", remedy)
            self.request_shutdown(f"{change.name} cannot run here")

    def _tell_status(self) -> None:
        phases = [self.integrations.workers.phase(name) for name in self.integrations.integrations]
        notify(f"STATUS={phases.count('ready')} of {len(phases)} integrations ready")

    def _links(self) -> Iterator[tuple[str, int, LinkStatistics]]:
        for name, running in self.systems.running.items():
            if running.link is not None:
                yield name, running.epoch, running.link.statistics()

    def _feed_watchdog(self, interval_s: float) -> None:
        notify("WATCHDOG=1")
        self._watchdog = asyncio.get_running_loop().call_later(
            interval_s, self._feed_watchdog, interval_s
        )

    # ---- commands --------------------------------------------------------------------------

    async def panic(self) -> None:
        """Stop every integration now; nothing starts before `resume`."""
        self.log.error("panic: every integration is killed")
        self.recorder.panic()
        self.integrations.workers.send(restart.Panic())
        await self.integrations.workers.wait_all_dead()

    def resume(self) -> None:
        """End a panic."""
        self.log.info("resumed")
        self.recorder.resume()
        self.integrations.workers.send(restart.Resume())

    def configure_systems(self) -> None:
        """Tell every system which integrations there are, and which rules hold."""
        self._keep_contents()
        rows, policing = self.integrations.rows(), self.policing
        message = Configure(integrations=rows, rules=policing.digest, policy=policing.table)
        if untold := self.systems.tell_all(message):
            text = "systems not told of the configuration: restart vsm"
            self.log.error(text, systems=untold, bytes=len(message.to_wire()))

    def forget(self, name: str) -> None:
        """An integration that was removed from the configuration is dead: nothing is left of it."""
        self.integrations.forget(name)
        self.surfaces.forget(name)
        self.policing.forget(name)
        self.rings.pop(name, None)
        self.host.uids.pop(name, None)
        self.configure_systems()

    def request_shutdown(self, why: str) -> None:
        """Begin to shut down; asked again, do not wait for what is in flight."""
        if self._shutdown.is_set():
            self._hurry.set()
            return
        self.log.info("shutting down", reason=why)
        self.recorder.shutting_down(why)
        notify("STOPPING=1")
        self._shutdown.set()

    # ---- the end ---------------------------------------------------------------------------

    async def _stop(self) -> None:
        """Clients, integrations, systems, template: what needs the next goes first."""
        self.regulator.stop()
        self.policing.close()
        self.endpoint.stop_accepting()
        await self.reloader.close()
        hurry = asyncio.create_task(self._panic_on_hurry())
        await self.integrations.stop(drain_s=DRAIN_S)
        await self.systems.stop()
        hurry.cancel()
        await self.control.close()
        self.host.cgroups.close()
        self._sweep()
        self.log.info("stopped", after_s=round(self.uptime_s, 3))

    async def _panic_on_hurry(self) -> None:
        await self._hurry.wait()
        await self.panic()

    # ---- signals and orphans ---------------------------------------------------------------

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for signo in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signo, self.request_shutdown, signo.name)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        loop.add_signal_handler(signal.SIGCHLD, self._sweep)

    def _on_hangup(self) -> None:
        """On a terminal it means that the terminal is gone, elsewhere that vsm.toml was edited."""
        if self._on_terminal:
            self.request_shutdown("SIGHUP")
        elif not self.stopping:
            self.reloader.request()

    def _unwatch_signals(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        loop = asyncio.get_running_loop()
        for signo in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            loop.remove_signal_handler(signo)

    def _sweep(self) -> None:
        """Kill and reap what a killed launcher or template left: it was reparented to us."""
        own = {self.systems.template_actor.pid, self.integrations.launcher_actor.pid or 0}
        own |= self.recorder.pids() | self.integrations.egress.pids()
        for pid in set(_children()) - own - self._foreign:
            _kill_and_reap(pid)


def _children() -> list[int]:
    text = Path("/proc/thread-self/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


def _kill_and_reap(pid: int) -> None:
    """Our own child, so its pid cannot be reused before we reap it; SIGCHLD brings us back."""
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, os.WNOHANG)


def run_supervisor(
    config: Config,
    *,
    on_ready: Callable[[], Any] = lambda: None,
    load: Callable[[], Config] | None = None,
    log: logs.Style = "auto",
    template: TemplateStart | None = None,
) -> int:
    """Run vsm until it is told to stop; the exit code. `template` was executed ahead of this.

    Raises:
        VsmError: it cannot start here.
    """
    take_over()
    faulthandler.enable()  # a watchdog's SIGABRT: where it hangs, for the journal
    logs.configure(log)

    async def main() -> int:
        return await Supervisor(config, on_ready=on_ready, load=load, template=template).run()

    return asyncio.run(main())
