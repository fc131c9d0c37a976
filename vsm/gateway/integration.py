"""One integration as S1 sees it: its settings, why it can or cannot be called, its server.

Owns the server's handshake and the fetching of its lists; reports when the session stands and
when a list changed. Runs in S1's event loop.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, Raw

import vsm
from vsm.board.demand import DemandRow
from vsm.core.instance_demand import Terms
from vsm.core.restart import PANIC
from vsm.core.trust import Mode
from vsm.gateway.call import Gate, Inquiry, Passage
from vsm.gateway.resilience import Guard, Resilience
from vsm.gateway.trust import Vetting
from vsm.gateway.upstream import Upstream
from vsm.protocol import catalogue, era, jsonrpc
from vsm.protocol.catalogue import Surface
from vsm.protocol.jsonrpc import DecodeError, Message, Object
from vsm.protocol.tables import CHANGE_OF_LIST, LISTEN_FILTERS, LISTS, Era

if TYPE_CHECKING:
    from vsm.gateway.instances import Instances
    from vsm.gateway.successors import Succession

GATEWAY: Final[dict[str, Any]] = {"name": "vsm", "version": vsm.__version__}
CAPABILITY_OF_LIST: Final = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resources",
}
HIDDEN_STATES: Final = frozenset({"quarantined", "stopped"})
CLOSED_STATES: Final = HIDDEN_STATES | {"restarting"}  # what comes while it restarts waits for it
MAX_SURFACE_BYTES: Final = 16 * 1024 * 1024
LIST_TIMEOUT_S: Final = 30.0
MAX_ERROR_CHARS: Final = 200


@dataclass(frozen=True)
class Settings:
    """What the configuration says of an integration, as far as the gateway needs it."""

    name: str
    prefix: str
    era: str = "auto"
    start_timeout_s: float = 30.0
    call_timeout_s: float = 60.0
    concurrency: int = 64
    max_frame_bytes: int = 8 * 1024 * 1024
    resilience: Resilience = field(default_factory=Resilience)
    trust: Mode = "off"
    most_argument_bytes: int = 0  # 0: whatever a message may have
    most_argument_depth: int = 0
    strict_arguments: bool = False
    audit_contents_bytes: int = 0  # of what calls carry, each way, that is recorded
    remote: bool = False
    credentials: frozenset[str] = frozenset()  # clients whose calls carry their name
    terms: Terms | None = None


@dataclass(eq=False)
class Server:
    """One process of an integration: its way to a session, and what it was asked to tell.

    Args:
        upstream: takes calls, once its session stands and its lists are here.
        behind: lists that it did not give when it was asked last, and how often in a row.
    """

    settings: Settings
    upstream: Upstream | None = None
    starting: "Startup | None" = None
    session: era.PeerSession | None = None
    surface: Surface = field(init=False)
    listen_id: int | None = None
    watched: dict[str, int] = field(default_factory=dict)
    behind: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.surface = Surface(self.settings.prefix)


@dataclass(eq=False)
class Integration(Server):
    """An integration's state, and its server where it has one only.

    Args:
        demand: where its calls are counted. guard: what becomes of those that fail.
        state: what the supervisor said last; `reason` is its explanation.
        draining: takes no new calls.
        gates: asked in order before a call is sent; `gate_of` has them by kind. passage: the way
            past them.
        vetting: what of the surface may be shown.
        instances: its servers, where there may be several; `upstream` is None then, and `session`
            and `surface` are of the one that became ready last.
        succession: servers that are to take the place of one, and those whose place was taken.
    """

    demand: DemandRow = field(kw_only=True)
    guard: Guard = field(kw_only=True)
    succession: "Succession" = field(kw_only=True)
    state: str = "starting"
    reason: str = ""
    draining: bool = False
    gate_of: dict[str, Gate | None] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    passage: Passage = ()
    vetting: Vetting = field(default_factory=Vetting)
    instances: "Instances | None" = None
    totals: dict[str, int] = field(default_factory=lambda: {"calls": 0, "refused": 0})

    def vet(self) -> None:
        """Suspend what of the surface is not as it was approved; before there is one, nothing."""
        if self.session is not None:
            self.vetting.judge(self.surface, self.session.instructions)

    @property
    def is_settled(self) -> bool:
        """Whether waiting for it makes no sense: it serves, or it failed."""
        if self.state == "restarting":
            return False
        failed = self.state not in ("starting", "ready") and self.starting is None
        if self.instances is not None:
            return failed or self.session is not None
        return self.upstream is not None or failed

    @property
    def is_unknown(self) -> bool:
        """Whether it may soon say for the first time what it offers."""
        return self.session is None and not self.is_settled

    def is_settled_for(self, client: object) -> bool:
        """The same for one client, which may wait for an instance of its own."""
        if self.instances is None or self.state not in ("starting", "ready"):
            return self.is_settled
        return self.is_settled and not self.instances.is_awaited_by(client)

    @property
    def takes_calls(self) -> bool:
        """Whether a call can be sent now."""
        serves = self.upstream is not None or self.instances is not None
        return serves and not self.draining and self.state not in CLOSED_STATES

    @property
    def in_flight(self) -> int:
        """Requests in flight to all its servers."""
        own = 0 if self.upstream is None else self.upstream.in_flight
        own += self.succession.in_flight
        return own if self.instances is None else own + self.instances.in_flight

    @property
    def servers(self) -> Iterator[Server]:
        """Every server of it that takes calls or will; without instances it is its own."""
        yield self
        if self.succession.coming is not None:
            yield self.succession.coming
        if self.instances is not None:
            yield from self.instances.members.values()

    @property
    def unavailable(self) -> str:
        """Why a call cannot be served now, and what to do."""
        name, reason = self.settings.name, f" ({self.reason})" if self.reason else ""
        if self.state == "stopped" and self.reason == PANIC:
            return f"{name} is stopped by `vsm panic`. `vsm resume` starts it."
        if self.draining and self.state != "restarting":
            return f"{name} is draining and takes no calls. `vsm start {name}` opens it again."
        texts = {
            "restarting": f"{name} is restarting{reason}. Try again shortly.",
            "starting": f"{name} is still starting{reason}. Try again shortly.",
            "ready": f"{name} is still starting{reason}. Try again shortly.",
            "backing_off": f"{name} failed and will be started again{reason}. Try again shortly, "
            f"or see `vsm logs {name}`.",
            "quarantined": f"{name} failed too often and is quarantined{reason}. "
            f"See `vsm logs {name}`, then `vsm start {name}`.",
            "stopped": f"{name} is stopped{reason}. `vsm start {name}` starts it.",
        }
        return texts.get(self.state, f"{name} is {self.state}{reason}.")

    @property
    def availability(self) -> dict[str, str]:
        """The same for a program to read."""
        return {
            "integration": self.settings.name,
            "state": "draining" if self.draining else self.state,
            "reason": self.reason,
        }


class Startup:
    """A server's way from attached pipes to a session with lists.

    Args:
        on_ready: called once with the session. on_failure: called once with the reason.
    """

    def __init__(
        self,
        upstream: Upstream,
        settings: Settings,
        *,
        on_ready: Callable[["Startup"], None],
        on_failure: Callable[["Startup", str], None],
    ) -> None:
        self.upstream = upstream
        self.surface = Surface(settings.prefix)
        self.session: era.PeerSession | None = None
        self.failures: dict[str, str] = {}  # lists that did not come
        self.stale: set[str] = set()  # lists that changed before it served
        self._settings = settings
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._handshake = era.Handshake(GATEWAY, wanted=settings.era)
        self._loop = asyncio.get_running_loop()
        self._probe_timer: asyncio.TimerHandle | None = None
        self._over = False

    def begin(self, session: era.PeerSession | None) -> None:
        """Start with the handshake, or with the lists where a session stands already."""
        if session is not None:
            self._established(session)
            return
        self._wait()
        self._do(self._handshake.begin())

    def _wait(self) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        timeout_s = min(era.PROBE_TIMEOUT_S, self._settings.start_timeout_s / 2)
        self._probe_timer = self._loop.call_later(timeout_s, self._probe_timed_out)

    def stop(self) -> None:
        """Whatever comes now is too late."""
        self._over = True
        if self._probe_timer is not None:
            self._probe_timer.cancel()

    def _probe_timed_out(self) -> None:
        if not self._over and self.session is None:
            self._do(self._handshake.probe_timed_out())

    def _do(self, step: era.Step) -> None:
        if isinstance(step, era.Ask):
            self._ask(step)
        elif isinstance(step, era.Established):
            if step.announce is not None:
                self.upstream.tell(jsonrpc.notification(step.announce))
            self._established(step.session)
        elif isinstance(step, era.Refused):
            self._fail(step.reason)
        else:
            self._wait()

    def _ask(self, step: era.Ask) -> None:
        def answered(message: Message) -> None:
            if not self._over and self.session is None:
                self._do(self._handshake.answered(step.method, message))

        def failed(_: int, text: str) -> None:
            if self.session is None:
                self._fail(text)

        inquiry = Inquiry(answered, failed, timeout_s=self._settings.start_timeout_s)
        self.upstream.ask(step.method, step.params, inquiry)

    def _established(self, session: era.PeerSession) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        self.session = session
        self.upstream.era = Era(session.era)
        self.surface.serves_resources = session.offers("resources")
        wanted = [m for m, capability in CAPABILITY_OF_LIST.items() if session.offers(capability)]
        fetch = Fetch(self.upstream, session, wanted, self._fetched)
        self.failures = fetch.failures
        fetch.begin()

    def _fetched(self, lists: dict[str, list[Object]]) -> None:
        if self._over or self.upstream.lost:  # then its owner hears of that
            return
        self.surface.lists = lists
        self.stop()
        self._on_ready(self)

    def _fail(self, reason: str) -> None:
        if not self._over:
            self.stop()
            self._on_failure(self, reason)


class Fetch:
    """Fetches some lists, page by page within bounds.

    Args:
        on_done: called once with the lists that came whole; one that the server does not know
            (-32601) is empty. timeout_s: for each page.

    Attributes:
        failures: why the others did not come, by method.
        refused: of those, the ones that were answered with an error.
    """

    def __init__(
        self,
        upstream: Upstream,
        session: era.PeerSession,
        methods: list[str],
        on_done: Callable[[dict[str, list[Object]]], None],
        *,
        timeout_s: float = LIST_TIMEOUT_S,
    ) -> None:
        self.failures: dict[str, str] = {}
        self.refused: set[str] = set()
        self._timeout_s = timeout_s
        self._upstream = upstream
        self._session = session
        self._methods = methods
        self._on_done = on_done
        self._lists: dict[str, list[Object]] = {}
        self._pending = set(methods)
        self._pages = dict.fromkeys(methods, 0)
        self._bytes = 0

    def begin(self) -> None:
        """Ask for the first page of each."""
        if not self._methods:
            self._on_done({})
        for method in self._methods:
            self._lists[method] = []
            self._ask(method, None)

    def _ask(self, method: str, cursor: str | None) -> None:
        params: dict[str, object] = {} if cursor is None else {"cursor": cursor}
        if self._session.is_modern:
            params["_meta"] = era.envelope(GATEWAY)
        inquiry = Inquiry(
            lambda message: self._answered(method, message),
            lambda _code, text: self._failed(method, text),
            timeout_s=self._timeout_s,
        )
        self._upstream.ask(method, params, inquiry)

    def _answered(self, method: str, message: Message) -> None:
        if message.result is UNSET:
            self._refused(method, message)
            return
        try:
            items, cursor = catalogue.parse_page(method, message.result)
        except DecodeError as error:
            self._failed(method, f"{method}: {error}")
            return
        kept = self._lists[method]
        kept.extend(items[: catalogue.MAX_ITEMS - len(kept)])
        self._pages[method] += 1
        self._bytes += len(memoryview(message.result))
        within = self._pages[method] < catalogue.MAX_PAGES and self._bytes < MAX_SURFACE_BYTES
        if cursor and within and len(kept) < catalogue.MAX_ITEMS:
            self._ask(method, cursor)
        else:
            self._finished(method)

    def _refused(self, method: str, message: Message) -> None:
        error = jsonrpc.error_of(message.error) if isinstance(message.error, Raw) else None
        if error is not None and error.code == jsonrpc.METHOD_NOT_FOUND:
            self._lists[method] = []
            self._finished(method)
        else:
            self.refused.add(method)
            what = "an invalid error" if error is None else repr(error.message[:MAX_ERROR_CHARS])
            self._failed(method, f"{method} was answered with {what}")

    def _failed(self, method: str, text: str) -> None:
        del self._lists[method]
        self.failures[method] = text
        self._finished(method)

    def _finished(self, method: str) -> None:
        self._pending.discard(method)
        if not self._pending:
            self._pending = {""}
            self._on_done(self._lists)


def listen_params(session: era.PeerSession, uris: list[str]) -> dict[str, Any] | None:
    """The gateway's own subscription to a modern server; None where there is nothing to hear."""
    wanted: dict[str, Any] = {
        LISTEN_FILTERS[CHANGE_OF_LIST[method]]: True
        for method in LISTS
        if session.offers(CAPABILITY_OF_LIST[method], "listChanged")
    }
    if uris:
        wanted["resourceSubscriptions"] = uris
    return {"_meta": era.envelope(GATEWAY), "notifications": wanted} if wanted else None
