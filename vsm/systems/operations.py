"""S1, operations: the gateway, wired to the supervisor.

Owns the gateway and turns control messages into its methods and its reports into messages.
Runs in its own confined process on uvloop; the only system on the data path, and it decides
nothing by asking: snapshots of the others are kept as they come. Importing this module starts
no thread and no loop, because the template does it before it forks.
"""

import asyncio
import itertools
import os
import socket
import sys
from typing import Any, Final, Literal

import msgspec

from vsm.board.memory import BoardError
from vsm.board.relay import take_segments
from vsm.core.instance_demand import Terms
from vsm.core.retry import RETRIED, ROUTED
from vsm.gateway.accounting import Accounting
from vsm.gateway.call_log import CallLog
from vsm.gateway.contract import Kept
from vsm.gateway.gate_rates import Rule, gate_maker, rules_of
from vsm.gateway.gateway import Gateway
from vsm.gateway.integration import Settings
from vsm.gateway.own_tools import OwnTools
from vsm.gateway.pool_load import LOOK_S, PoolLoad
from vsm.gateway.resilience import Resilience
from vsm.gateway.views import View
from vsm.link import close_fds
from vsm.messages import (
    Algedonic,
    Ask,
    Attach,
    AvailabilityChanged,
    Body,
    Bound,
    ClientRow,
    Configure,
    Contract,
    Contracted,
    Decided,
    Detach,
    Drain,
    Idle,
    IntegrationRow,
    Known,
    Learnt,
    Noted,
    Offered,
    Pins,
    Segments,
    Session,
    Settled,
    SnapshotIn,
    Start,
    Summary,
    Switch,
    Told,
    Unfit,
    Wanted,
)
from vsm.pins import MAX_DOCUMENT_BYTES, from_memory, to_memory
from vsm.systems.base import SystemContext
from vsm.systems.policing import Policing

SUMMARY_INTERVAL_S: Final = 5.0
CONSULT_TIMEOUT_S: Final = 3.0
MAX_REASON_CHARS: Final = 4000


class SupervisorReports:
    """Tells the supervisor what the gateway found out about servers; S5 hears of pain."""

    def __init__(self, context: SystemContext) -> None:
        self._context = context
        self._unfit: set[str] = set()  # integrations that hurt
        self._opened: dict[str, str] = {}  # integration → the decision to open its breaker
        self._openings = itertools.count(1)

    def session(self, worker: str, record: dict[str, Any]) -> None:
        """The worker's session stands."""
        self._context.report(Session(worker=worker, record=record))
        integration = _integration_of(worker)
        if integration in self._unfit:
            self._unfit.discard(integration)
            self._feel("relief", integration, "unfit", f"{worker} serves")

    def unfit(self, worker: str, reason: str) -> None:
        """The worker is to be stopped and started again."""
        text = reason[:MAX_REASON_CHARS]
        self._context.report(Unfit(worker=worker, reason=text))
        self._unfit.add(_integration_of(worker))
        self._feel("pain", _integration_of(worker), "unfit", f"{worker}: {text}"[:MAX_REASON_CHARS])

    def _feel(
        self, severity: Literal["pain", "relief"], subject: str, cause: str, detail: str
    ) -> None:
        signal = Algedonic(severity=severity, subject=subject, cause=cause, detail=detail)
        self._context.send("system5", signal)

    def noticed(self, worker: str, text: str) -> None:
        """The worker's server broke a rule for the first time; the log is enough."""
        sys.stderr.write(f"{worker}: {text[:MAX_REASON_CHARS]}\n")

    def idle(self, integration: str, worker: str | None = None) -> None:
        """A draining integration has nothing in flight, or a server of it that was replaced."""
        self._context.report(Idle(integration=integration, worker=worker))

    def wanted(self, integration: str, count: int, release: dict[str, str]) -> None:
        """How many instances there should be, and which should not."""
        why = {worker: reason[:MAX_REASON_CHARS] for worker, reason in release.items()}
        self._context.report(Wanted(integration=integration, count=count, release=why))

    def learnt(self, integration: str, content: bytes) -> None:
        """What an integration offers, for its next start."""
        self._hand_over(Learnt(integration=integration, fds=("surface",)), content)

    def offered(self, integration: str, document: bytes) -> None:
        """A server offers what is not pinned."""
        if len(document) > MAX_DOCUMENT_BYTES:
            sys.stderr.write(f"{integration}: offers too much to be pinned\n")
            return
        self._hand_over(Offered(integration=integration, fds=("items",)), document)

    def _hand_over(self, message: Learnt | Offered, content: bytes) -> None:
        try:
            fd = to_memory(content)
        except OSError as error:  # no descriptor is left just now: its server serves all the same
            sys.stderr.write(f"{message.integration}: {message.kind} is not kept: {error}\n")
            return
        self._context.control.send(message, [fd])
        close_fds([fd])

    def breaker(self, integration: str, phase: str, detail: str) -> None:
        """A breaker changed: the journal hears of it, and S5 of the pain and its end."""
        text = detail[:MAX_REASON_CHARS]
        severity: Literal["warning", "notice"] = "warning" if phase == "open" else "notice"
        noted = Noted(
            event=f"breaker.{phase}",
            severity=severity,
            integration=integration,
            detail={"reason": text},
        )
        self._context.report(noted)
        if phase != "half_open":
            self._feel("pain" if phase == "open" else "relief", integration, "breaker", text)
            self._decided(integration, text, closed=phase == "closed")

    def _decided(self, integration: str, text: str, *, closed: bool) -> None:
        """To open a breaker is a decision; what came of it is that it closed, or opened again."""
        if integration in self._opened:
            outcome: Body = {"state": "closed" if closed else "opened again", "reason": text}
            self._context.report(Settled(key=self._opened.pop(integration), outcome=outcome))
        if closed:
            return
        key = self._opened[integration] = f"breaker-{next(self._openings)}"
        decided = Decided(
            key=key,
            subject=integration,
            rule="breaker.failures",
            inputs={"why": text},
            alternatives=("let calls through",),
            choice="refuse calls",
        )
        self._context.report(decided)

    def retried(self, integration: str, answered: int, failed: int) -> None:
        """Calls that were sent again ended: the journal keeps whether that helped."""
        detail: Body = {"answered": answered, "failed": failed}
        self._context.report(Noted(event=RETRIED, integration=integration, detail=detail))

    def dead_letter(self, integration: str, letter: dict[str, Any]) -> None:
        """A call was accepted and not answered: the journal keeps it."""
        self._context.report(
            Noted(event="call.failed", severity="notice", integration=integration, detail=letter)
        )


def _integration_of(worker: str) -> str:
    """A worker is called after its integration, with a number behind."""
    return worker.rpartition("-")[0] or worker


class Operations:
    """What S1 knows: the gateway, and the last snapshot of each other system."""

    def __init__(self, context: SystemContext, start: Start) -> None:
        self.context = context
        self.accounting = Accounting(start.epoch, [row.name for row in start.integrations])
        views = [_view(row) for row in start.clients]
        self.gateway = Gateway(start.epoch, SupervisorReports(context), self.accounting, views)
        self.snapshots: dict[str, Body] = {}
        self._rates: tuple[Rule, ...] = ()
        self._pools = PoolLoad(self.gateway.fleet)
        self._summarised: dict[str, dict[str, int]] = {}
        self._asked: dict[int, asyncio.Future[Body | None]] = {}
        self._asked_last = 0
        self.gateway.fleet.list_wait_s = start.list_wait_s
        if start.introspection:
            self.gateway.fleet.offer(OwnTools(self._consult))
        for row in start.integrations:
            self.gateway.add(_settings(row))
        self._take_rates()
        self.policing = Policing(context, self.gateway.fleet, start)

    def register(self) -> None:
        """Take control messages from now on."""
        self.context.handle("attach", self._attach)
        self.context.handle("switch", self._switch)
        self.context.handle("pins", self._pinned)
        self.context.handle("known", self._known)
        self.context.handle("detach", self._detach)
        self.context.handle("availability", self._availability)
        self.context.handle("drain", self._drain)
        self.context.handle("contract", self._contract)
        self.context.handle("bound", self._bind)
        self.context.handle("configure", self._configure)
        self.context.handle("snapshot", self._snapshot)
        self.context.handle("segments", self._inherit)
        self.context.handle("told", self._told)
        self.context.answer("state", self.state)
        self.context.answer("catalogue", self.gateway.fleet.status)
        self.policing.register()

    async def listen(self, start: Start, fds: dict[str, int]) -> None:
        """Serve on the listeners that came with `start`, and record calls before the first."""
        if "calls" in fds and start.audit != "off":
            sender = f"system1-{start.epoch}-{os.getpid()}-{os.urandom(8).hex()}"
            sock = socket.socket(fileno=fds.pop("calls"))
            self.gateway.record_calls(
                CallLog(sock, sender=sender, mode=start.audit, rate=start.audit_rate)
            )
        if "unix" in fds:
            await self.gateway.listen_unix(socket.socket(fileno=fds.pop("unix")))
        if "http" in fds:
            token = start.token if start.auth == "token" else ""
            if start.auth == "token" and not token:
                raise ValueError("start: auth is by token, and there is none")
            listener = socket.socket(fileno=fds.pop("http"))
            await self.gateway.listen_http(listener, token=token)
        close_fds(list(fds.values()))

    def state(self) -> Body:
        """What it has and what it lacks."""
        lacks = [f"no snapshot of {name}" for name in ("system2", "system3", "system5")]
        return {
            "role": "operations",
            **self.gateway.status(),
            "policy": self.policing.gate.status(),
            "snapshots": sorted(self.snapshots),
            "lacks": [text for text in lacks if text.rpartition(" ")[2] not in self.snapshots],
            **self.context.channel_state(),
        }

    async def summarise(self) -> None:
        """Tell S2 and S3, at intervals, what was asked since the last time."""
        while True:
            for _ in range(round(SUMMARY_INTERVAL_S / LOOK_S)):
                await asyncio.sleep(LOOK_S)
                self._pools.look()
            totals, pools = self._totals(), self._pools.take()
            rows = {name: self._since(name, row) for name, row in totals.items()}
            summary = Summary(
                interval_s=SUMMARY_INTERVAL_S,
                integrations={name: {**row, **pools.get(name, {})} for name, row in rows.items()},
            )
            self._summarised = totals
            for name, instances in self._pools.routed().items():
                told: list[Any] = [*instances]
                detail: Body = {"instances": told}
                self.context.report(Noted(event=ROUTED, integration=name, detail=detail))
            for receiver in ("system2", "system3"):
                self.context.send(receiver, summary)

    def _since(self, name: str, row: dict[str, int]) -> dict[str, int | float]:
        before = self._summarised.get(name, {})
        return {key: max(0, value - before.get(key, 0)) for key, value in row.items()}

    def _totals(self) -> dict[str, dict[str, int]]:
        rows = self.accounting.board.rows
        return {
            name: {**row, **rows[name].outcomes()}
            for name, row in self.gateway.fleet.totals().items()
        }

    # ---- control messages ------------------------------------------------------------------

    def _attach(self, message: Attach, fds: list[int]) -> None:
        named = dict(zip(message.fds, fds, strict=True))
        if set(named) != {"stdin", "stdout"}:
            close_fds(fds)
            return
        pipes = (named["stdin"], named["stdout"])
        self.gateway.fleet.attach(
            message.worker,
            message.integration,
            pipes,
            message.record,
            instance=message.instance,
            beside=None if message.beside is None else _settings(message.beside),
            outdated=message.outdated,
        )

    def _switch(self, message: Switch, fds: list[int]) -> None:
        close_fds(fds)
        self.gateway.fleet.switch(message.integration, message.worker)

    def _known(self, message: Known, fds: list[int]) -> None:
        try:
            content = from_memory(fds[0]) if fds else b""
            self.gateway.fleet.know(message.integration, content)
        except BoardError as error:
            sys.stderr.write(f"{message.integration}: cannot be read: {error}\n")
        finally:
            close_fds(fds)

    def _pinned(self, message: Pins, fds: list[int]) -> None:
        try:
            document = from_memory(fds[0]) if fds else b""
            self.gateway.fleet.pinned(message.integration, document)
        except (BoardError, msgspec.DecodeError) as error:
            sys.stderr.write(f"{message.integration}: pins cannot be read: {error}\n")
        finally:
            close_fds(fds)

    def _detach(self, message: Detach, fds: list[int]) -> None:
        close_fds(fds)
        self.gateway.fleet.detach(message.worker, message.reason)

    def _availability(self, message: AvailabilityChanged, fds: list[int]) -> None:
        close_fds(fds)
        self.gateway.fleet.availability(message.integration, message.state, message.reason)

    def _drain(self, message: Drain, fds: list[int]) -> None:
        close_fds(fds)
        self.gateway.fleet.drain(message.integration, message.worker)

    def _contract(self, message: Contract, fds: list[int]) -> None:
        close_fds(fds)

        def done(kept: Kept) -> None:
            failed = {key[:200]: text[:MAX_REASON_CHARS] for key, text in kept.failed.items()}
            self.context.report(
                Contracted(id=message.id, checked=kept.checked, failed=failed, unknown=kept.unknown)
            )

        self.gateway.fleet.check_contract(message.integration, done)

    def _bind(self, message: Bound, fds: list[int]) -> None:
        close_fds(fds)
        self.gateway.fleet.bind(message.integration, message.most)

    def _configure(self, message: Configure, fds: list[int]) -> None:
        close_fds(fds)
        self.gateway.configure([_settings(row) for row in message.integrations])
        self.policing.configure(message)

    async def _consult(self, what: Any, about: str) -> Body | None:  # noqa: ANN401 - a literal of the model's
        """Ask the supervisor what a model wants to know of vsm."""
        self._asked_last += 1
        asked_id = self._asked_last
        future = self._asked[asked_id] = asyncio.get_running_loop().create_future()
        self.context.report(Ask(id=asked_id, what=what, about=about))
        try:
            return await asyncio.wait_for(future, CONSULT_TIMEOUT_S)
        except TimeoutError:
            return None
        finally:
            del self._asked[asked_id]

    def _told(self, message: Told, fds: list[int]) -> None:
        close_fds(fds)
        future = self._asked.get(message.id)
        if future is not None and not future.done():
            future.set_result(message.body)

    def _inherit(self, message: Segments, fds: list[int]) -> None:
        """Begin with what our predecessor counted; whoever reads then needs our board alone."""
        predecessor = take_segments(message, fds)
        rows = predecessor.rows() if predecessor else []
        self.accounting.begin(rows, self._announce)
        self._summarised = self._totals()  # it told of its own
        if predecessor is not None:
            predecessor.close()

    def _announce(self, fds: list[int]) -> None:
        names = tuple(f"segment{index}" for index in range(len(fds)))
        self.context.control.send(Segments(fds=names), fds)

    def _take_rates(self) -> None:
        """Put S2's rates before the integrations that they concern, and hold pools steady."""
        snapshot: Any = self.snapshots.get("system2", {"rates": []})
        try:
            steady = [str(name) for name in snapshot.get("steady", ())]
            rules = rules_of(snapshot)
        except (LookupError, TypeError, ValueError) as error:
            sys.stderr.write(f"system2's rates make no sense, those before stay: {error!r:.200}\n")
            return
        self.gateway.fleet.hold(steady)
        if rules != self._rates:  # else whoever used up a rate would have it whole again
            self._rates = rules
            self.gateway.fleet.guard("rates", gate_maker(rules))

    def _snapshot(self, message: SnapshotIn, fds: list[int]) -> None:
        close_fds(fds)
        self.snapshots[message.sender] = message.body
        if message.sender == "system2":
            self._take_rates()
        if message.sender == "system5":
            self.policing.take(message.body)


def _view(row: ClientRow) -> View:
    seen = None if row.integrations is None else frozenset(row.integrations)
    return View(row.name, seen, row.tools, search=row.search, token=row.token)


def _settings(row: IntegrationRow) -> Settings:
    return Settings(
        name=row.name,
        prefix=row.name if row.prefix is None else row.prefix,
        era=row.era,
        start_timeout_s=row.start_timeout_s,
        call_timeout_s=row.call_timeout_s,
        concurrency=row.concurrency,
        max_frame_bytes=row.max_frame_bytes,
        resilience=Resilience(
            **row.resilience.model_dump(),
            moves=row.instances is None or row.instances.kind == "pool",
        ),
        terms=None if row.instances is None else Terms(**row.instances.model_dump()),
        trust=row.trust,
        most_argument_bytes=row.most_argument_bytes,
        most_argument_depth=row.most_argument_depth,
        strict_arguments=row.strict_arguments,
        audit_contents_bytes=row.audit_contents_bytes,
        remote=row.remote,
        credentials=frozenset(row.credentials),
    )


async def main(context: SystemContext) -> None:
    """Serve until told to stop."""
    start, fds = await context.started()
    operations = Operations(context, start)
    operations.register()
    await operations.listen(start, fds)
    context.ready()
    summaries = context.run_beside(operations.summarise())
    try:
        await context.stopping.wait()
    finally:
        summaries.cancel()
        operations.policing.close()
        await operations.gateway.stop()
