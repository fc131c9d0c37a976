"""The egress process: the one way out of workers whose network mode is `proxy`.

`main([FD, PLAN])` under `python -SI`, started by `vsm.egress.link`: one per vsm, and one for each
`vsm sandbox run` that needs it. It confines itself by the plan it is given before it hears a
worker: a uid of its own where root started it, no files, no programs, the host's network. Owns
listeners inside the workers' network namespaces and the connections made for them; decides by
`vsm.core.egress` alone. It resolves a name once for each connection and connects to an address
that it has judged, so no later answer of a name server counts. Asyncio; standard library only.
"""

import asyncio
import contextlib
import encodings.idna  # noqa: F401 - getaddrinfo imports it, and files are out of reach by then
import json
import os
import signal
import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from vsm.confinement.execution import Plan, confine_self
from vsm.core.egress import PROXY_ADDRESS, Rules
from vsm.core.proxy_request import (
    MOST_HEAD_BYTES,
    TUNNEL_OPEN,
    error_response,
    parse_proxy_request,
)
from vsm.egress.counts import Counts
from vsm.linux import prctl
from vsm.processes.launcher import receive, send

EXIT_UNCONFINED: Final = 3
MOST_CONNECTIONS: Final = 64  # of one worker
MOST_LOOKUPS: Final = 4  # of one worker, so that slow names do not starve another's
CONNECT_TIMEOUT_S: Final = 10.0
LOOKUP_TIMEOUT_S: Final = 15.0
HEAD_TIMEOUT_S: Final = 15.0
IDLE_TIMEOUT_S: Final = 900.0
CLOSE_TIMEOUT_S: Final = 30.0
_MOST_TRIED: Final = 4  # addresses of one name
_THREADS: Final = 24
_BLOCK_BYTES: Final = 65536
_REPORT_S: Final = 0.1
_ARGUMENTS: Final = 2

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class RefusedError(Exception):
    """A connection that is not made; says why."""

    status = 403


class FailedError(RefusedError):
    """A connection that was allowed and did not come about."""

    status = 502


class WorkerEgress:
    """One worker's way out.

    Args:
        rules: what it may reach.
        pool: for name look-ups, shared by all workers.
        changed: called when the counts changed.
    """

    def __init__(self, rules: Rules, pool: ThreadPoolExecutor, changed: Any) -> None:  # noqa: ANN401 - a callback
        self.rules = rules
        self.counts = Counts()
        self._pool = pool
        self._changed = changed
        self._lookups = asyncio.Semaphore(MOST_LOOKUPS)
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._closed = False

    async def listen(self, listeners: list[socket.socket]) -> None:
        """Serve on the worker's listeners; they are this object's from now on."""
        for listener in listeners:
            server = await asyncio.start_server(self._accept, sock=listener, limit=MOST_HEAD_BYTES)
            self._servers.append(server)
            if self._closed:  # meanwhile
                server.close()

    def close(self) -> None:
        """Close the listeners and cut every connection."""
        self._closed = True
        for server in self._servers:
            server.close()
        for task in self._connections:
            task.cancel()

    # -- one connection ----------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if self._closed:  # since it was accepted
            _reset(writer)
            return
        if task is None or len(self._connections) >= MOST_CONNECTIONS:
            self._count_refused("", "too many connections at once")
            _reset(writer)
            return
        self._connections.add(task)
        try:
            if await self._serve(reader, writer):
                await _close(writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # either end went away, or was silent for too long
        finally:
            self._connections.discard(task)
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether it came to an orderly end; if not, the worker sees a reset."""
        address, port = writer.get_extra_info("sockname")[:2]
        if (address, port) == (PROXY_ADDRESS, self.rules.proxy_port):
            return await self._serve_proxy(reader, writer)
        target = self.rules.target(address, port)
        name = self.rules.names.get(address, address)
        try:
            if target is None:
                raise RefusedError("not allowed on this port")  # noqa: TRY301 - counted below
            upstream = await self._connect(*target)
        except RefusedError as error:
            self._count_refused(f"{name}:{port}", str(error))
            return False
        return await self._splice(f"{name}:{port}", (reader, writer), upstream)

    async def _serve_proxy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        async with asyncio.timeout(HEAD_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        key = "(malformed)"
        try:
            request = parse_proxy_request(head)
            key = f"{request.host}:{request.port}"
            if not self.rules.allows(request.host, request.port):
                raise RefusedError("not on the allow-list")  # noqa: TRY301 - answered below
            upstream = await self._connect(request.host, request.port)
        except (ValueError, RefusedError) as error:
            self._count_refused(key, str(error))
            status = error.status if isinstance(error, RefusedError) else 400
            writer.write(error_response(status, f"{key}: {error}"))
            return True
        if request.tunnel:
            writer.write(TUNNEL_OPEN)
        upstream[1].write(request.head)
        return await self._splice(key, (reader, writer), upstream, len(request.head))

    # -- connecting --------------------------------------------------------------------------------

    async def _connect(self, host: str, port: int) -> Streams:
        """Resolve, judge, connect to what was judged.

        Raises:
            RefusedError: no address of it may be connected to, or none answers.
        """
        allowed, reason = [], "it has no address"
        for address in await self._resolve(host, port):
            why = self.rules.refuses_address(address, port)
            if why:
                reason = f"its address {address} is {why}"
            else:
                allowed.append(address)
        if not allowed:
            raise RefusedError(reason)
        problem = OSError("no address")
        for address in allowed[:_MOST_TRIED]:
            try:
                return await _connect_to(address, port)
            except OSError as error:
                problem = error
        raise FailedError(f"cannot connect: {problem.strerror or type(problem).__name__}")

    async def _resolve(self, host: str, port: int) -> list[str]:
        if (host, port) in {(t.host, t.port) for t in self.rules.targets if t.literal}:
            return [host]
        await self._lookups.acquire()
        loop = asyncio.get_running_loop()
        lookup = self._pool.submit(
            socket.getaddrinfo, host, port, socket.AF_UNSPEC, socket.SOCK_STREAM
        )
        # Freed by the thread's end, not by our time-out: a thread that still waits counts.
        lookup.add_done_callback(lambda _: _call_soon(loop, self._lookups.release))
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                answers = await asyncio.wrap_future(lookup)
        except TimeoutError:
            raise FailedError("its name server does not answer") from None
        except (OSError, UnicodeError) as error:
            raise FailedError(f"cannot be resolved: {error}") from None
        return list(dict.fromkeys(str(answer[4][0]) for answer in answers))

    # -- forwarding --------------------------------------------------------------------------------

    async def _splice(self, key: str, inner: Streams, outer: Streams, sent: int = 0) -> bool:
        count = self.counts.allowed(key)
        count["sent_bytes"] += sent
        self._changed()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S) as idle:

                def moved(direction: str, size: int) -> None:
                    count[direction] += size
                    idle.reschedule(loop.time() + IDLE_TIMEOUT_S)
                    self._changed()

                async with asyncio.TaskGroup() as both:
                    out, back = partial(moved, "sent_bytes"), partial(moved, "received_bytes")
                    both.create_task(_pump(inner[0], outer[1], out))
                    both.create_task(_pump(outer[0], inner[1], back))
            orderly = True
            await _close(outer[1])
        except* OSError:
            orderly = False  # cut short, or silent for too long: both ends see a reset
        finally:
            _reset(outer[1])
        return orderly

    def _count_refused(self, key: str, reason: str) -> None:
        self.counts.refused(key or "(any)", reason)
        self._changed()


class EgressProcess:
    """The process's state: the link and the workers."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="lookup")
        self._workers: dict[str, WorkerEgress] = {}
        self._changed: set[str] = set()
        self._ended = asyncio.Event()

    async def serve(self, layers: list[dict[str, str]]) -> None:
        """Until the supervisor closes the link, or is gone."""
        self._link.setblocking(False)  # noqa: FBT003 - the method takes no keyword
        asyncio.get_running_loop().add_reader(self._link, self._readable)
        self._send({"kind": "ready", "layers": layers})
        await self._ended.wait()

    def _readable(self) -> None:
        try:
            data, fds = receive(self._link)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._ended.set()
            return
        message = json.loads(data)
        sockets = [socket.socket(fileno=fd) for fd in fds]
        name = message["worker"]
        if message["kind"] == "serve":
            self._serve(name, Rules.from_json(message["rules"]), sockets)
        elif worker := self._workers.pop(name, None):
            worker.close()
            self._report(name, worker, last=True)

    def _serve(self, name: str, rules: Rules, listeners: list[socket.socket]) -> None:
        if previous := self._workers.pop(name, None):
            previous.close()
        worker = WorkerEgress(rules, self._pool, lambda: self._note(name))
        self._workers[name] = worker
        for listener in listeners:
            listener.setblocking(False)  # noqa: FBT003 - the method takes no keyword
        self._starting = asyncio.ensure_future(worker.listen(listeners))

    # -- counts ------------------------------------------------------------------------------------

    def _note(self, name: str) -> None:
        if not self._changed:
            asyncio.get_running_loop().call_later(_REPORT_S, self._report_changed)
        self._changed.add(name)

    def _report_changed(self) -> None:
        names, self._changed = self._changed, set()
        for name in names:
            if worker := self._workers.get(name):
                self._report(name, worker)

    def _report(self, name: str, worker: WorkerEgress, *, last: bool = False) -> None:
        counts = {"worker": name, "counts": worker.counts.table, "last": last}
        self._send({"kind": "counts", **counts})

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            send(self._link, json.dumps(message).encode(), [])  # full: a later one says it too


async def _connect_to(address: str, port: int) -> Streams:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
        return await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, moved: Any) -> None:  # noqa: ANN401 - a callback
    """Forward until the end of one direction; a slow taker slows the giver down."""
    while block := await reader.read(_BLOCK_BYTES):
        writer.write(block)
        await writer.drain()
        moved(len(block))
    writer.write_eof()


async def _close(writer: asyncio.StreamWriter) -> None:
    """Deliver what is left, for as long as a close may take."""
    writer.close()
    async with asyncio.timeout(CLOSE_TIMEOUT_S):
        await writer.wait_closed()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Cut it; nothing happens to a connection that was closed in order."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _call_soon(loop: asyncio.AbstractEventLoop, work: Any) -> None:  # noqa: ANN401 - a callback
    with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
        loop.call_soon_threadsafe(work)


def _confine(plan: str, link: socket.socket) -> list[dict[str, str]] | None:
    """The layers in force; None, and said so, if they are not: then it must not run."""
    try:
        return confine_self(Plan.from_json(json.loads(plan)))
    except Exception as error:  # noqa: BLE001 - whatever went wrong, it must not run unconfined
        message = {"kind": "failed", "what": f"cannot confine itself: {error}"}
        send(link, json.dumps(message).encode(), [])
        return None


def main(arguments: list[str]) -> int:
    """Run on the inherited descriptor until the other end closes."""
    if len(arguments) != _ARGUMENTS:
        sys.stderr.write("vsm.egress.process: started by vsm itself: FD PLAN\n")
        return 2
    for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signo, signal.SIG_IGN)
    prctl.set_name("vsm-egress")
    prctl.set_death_signal(signal.SIGKILL)  # the end of the link, seen below, is the other line
    with socket.socket(fileno=int(arguments[0])) as link:
        os.set_inheritable(link.fileno(), False)  # noqa: FBT003 - the function takes no keyword
        layers = _confine(arguments[1], link)
        if layers is None:
            return EXIT_UNCONFINED

        async def run() -> None:
            await EgressProcess(link).serve(layers)
            os._exit(0)  # threads may still wait for name servers

        asyncio.run(run())
    return 0
