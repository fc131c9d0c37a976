"""`vsm.Gateway`: an MCP endpoint inside a program, in front of its own confined workers.

Runs in the program, on its event loop. The same gateway as S1's, with the program in the place of
the supervisor: no journal, no policy, no reload. Listens on loopback only, behind a token.
"""

import errno
import secrets
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from vsm.core import restart
from vsm.errors import ConfigurationError, VsmError
from vsm.library.process import Process
from vsm.library.spec import WorkerEvent, WorkerSpec
from vsm.library.supervisor import Worker
from vsm.library.workers import Hooks, Workers

if TYPE_CHECKING:
    from vsm.gateway import gateway as gateways

_BACKLOG: Final = 128
_GONE: Final = {"draining": "stopped", "stopping": "stopped"}
_LEAST_TOKEN: Final = 16


class _Wiring(Hooks):
    """Between the workers and the gateway: pipes one way, sessions the other."""

    def __init__(self) -> None:
        self.workers: Workers | None = None
        self.gateway: gateways.Gateway | None = None
        self._attached: dict[str, Process] = {}

    # -- what the workers say ----------------------------------------------------------------------

    def began(self, workers: Workers, process: Process) -> None:
        """Its pipes are the gateway's; it is ready when its session stands."""
        if self.gateway is None or workers.worker(process.name).phase != "starting":
            return  # it is to end already
        key = f"{process.name}-{process.incarnation}"
        self._attached[key] = process
        self.gateway.fleet.attach(key, process.name, process.take_pipes())

    def ended(self, workers: Workers, process: Process, reason: str) -> bool:
        """Fail what is in flight, at once."""
        del workers
        key = f"{process.name}-{process.incarnation}"
        self._attached.pop(key, None)
        if self.gateway is not None:
            self.gateway.fleet.detach(key, reason)
        return False

    def changed(self, change: restart.Changed) -> None:
        """Why it can or cannot be called."""
        if self.gateway is not None:
            state = _GONE.get(change.phase, change.phase)
            self.gateway.fleet.availability(change.name, state, change.reason)

    # -- what the gateway says (`vsm.gateway.fleet.Reports`) ---------------------------------------

    def session(self, worker: str, record: dict[str, Any]) -> None:
        """Its session stands."""
        del record
        if self.workers is not None and (process := self._attached.get(worker)):
            self.workers.ready(process)

    def unfit(self, worker: str, reason: str) -> None:
        """It is to be stopped and started again."""
        if self.workers is not None and (process := self._attached.get(worker)):
            self.workers.failed(process, reason)

    def noticed(self, worker: str, text: str) -> None:
        """Its server broke a rule for the first time; it is borne."""

    def idle(self, integration: str, worker: str | None = None) -> None:
        """Nothing here drains."""

    def breaker(self, integration: str, phase: str, detail: str) -> None:
        """Its calls are refused, tried or let through from now on; the caller is told why."""

    def wanted(self, integration: str, count: int, release: dict[str, str]) -> None:
        """A worker here is one process."""

    def learnt(self, integration: str, content: bytes) -> None:
        """Nothing is started late here."""

    def retried(self, integration: str, answered: int, failed: int) -> None:
        """The program keeps no record."""

    def dead_letter(self, integration: str, letter: dict[str, Any]) -> None:
        """Its caller was told; the program keeps no record."""

    def offered(self, integration: str, document: bytes) -> None:
        """Nothing is pinned here: the program chose its servers itself."""


class Gateway:
    """An endpoint in front of confined MCP servers: an async context manager.

    Each worker speaks MCP at its stdin and stdout; its tools are called `WORKER__TOOL`. Entering
    waits until every session stands; leaving ends the endpoint, then the workers.

    Args:
        specs: the servers; what `vsm.Supervisor` says of them holds here.
        port: to listen on at 127.0.0.1; 0 takes a free one.
        token: what a client has to show, at least 16 characters; made where none is given.
        strategy: as of `vsm.Supervisor`.
        call_timeout_s: a call over this time fails.
        concurrency: calls in flight at one server.

    Attributes:
        url: where it serves streamable HTTP.
        token: what a client has to show as a bearer.

    Raises:
        ConfigurationError: a specification, its profile or an argument is wrong.
        ConfinementError: a layer that a profile requires cannot be applied here.
        VsmError: a server was given up, or the port is taken; nothing runs then.
    """

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        *,
        port: int = 0,
        token: str | None = None,
        strategy: restart.Strategy = "one_for_one",
        call_timeout_s: float = 60.0,
        concurrency: int = 64,
    ) -> None:
        if token is not None and len(token) < _LEAST_TOKEN:
            what = f"the token has fewer than {_LEAST_TOKEN} characters"
            raise ConfigurationError("vsm.Gateway", what, "Leave it out: one is made.")
        self.url = ""
        self.token = token or secrets.token_urlsafe(32)
        self._port = port
        self._call_timeout_s, self._concurrency = call_timeout_s, concurrency
        self._wiring = _Wiring()
        self._workers = self._wiring.workers = Workers(specs, strategy, self._wiring)

    @property
    def headers(self) -> Mapping[str, str]:
        """What a client sends with each request."""
        return {"Authorization": f"Bearer {self.token}"}

    async def __aenter__(self) -> Self:
        from vsm.gateway.gateway import Gateway as Endpoint
        from vsm.gateway.integration import Settings

        self._workers.check_unused()
        listener = _listen(self._port)
        gateway = self._wiring.gateway = Endpoint(1, self._wiring)
        try:
            for name, spec in self._workers.specs.items():
                gateway.add(
                    Settings(
                        name=name,
                        prefix=name,
                        start_timeout_s=spec.start_timeout_s,
                        call_timeout_s=self._call_timeout_s,
                        concurrency=self._concurrency,
                    )
                )
            await self._workers.start()
            await gateway.listen_http(listener, token=self.token)
        except BaseException:
            listener.close()
            await self.__aexit__(None, None, None)
            raise
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        gateway, self._wiring.gateway = self._wiring.gateway, None
        try:
            if gateway is not None:
                await gateway.stop()
        finally:
            await self._workers.stop()

    def __getitem__(self, name: str) -> Worker:
        self._workers.worker(name)
        return Worker(self._workers, name)

    def events(self) -> AsyncIterator[WorkerEvent]:
        """What happens to the workers, as `Supervisor.events`."""
        return self._workers.events.read()


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        what = f"cannot listen on port {port}: {'it is taken' if taken else error}"
        raise VsmError("vsm.Gateway", what, "Leave it out: a free one is found.") from error
    listener.settimeout(0)
    return listener
