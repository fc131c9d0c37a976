"""The control socket: one JSON object a line, for the owner (and root) only.

Runs in the supervisor. Owns parsing, bounds and who may ask; what a command does is the
supervisor's. An exception of a command becomes an answer here and nowhere else.
"""

import asyncio
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from vsm import logs
from vsm.errors import ConfigurationError, NotFoundError, VsmError
from vsm.governance import limits, limits_in_force
from vsm.introspection import measures, own_answers, status
from vsm.output import KEPT_LINES
from vsm.supervision import moves

if TYPE_CHECKING:
    from vsm.supervision.supervisor import Supervisor

MAX_LINE_BYTES: Final = 64 * 1024
MAX_FOLLOW_QUEUE: Final = 1000
PANIC_TIMEOUT_S: Final = 5.0  # whoever asks waits for ten
_MOST_FAILURE: Final = 300
_UCRED: Final = struct.Struct("=iII")  # struct ucred, unix(7)

Arguments = dict[str, Any]
Command = Callable[[Arguments], Awaitable[Any]]


class ControlServer:
    """Serves the control socket for as long as the supervisor runs."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._commands: dict[str, Command] = {
            "status": self._status,
            "variety": self._variety,
            "board": self._board,
            "start": self._move,
            "stop": self._move,
            "restart": self._move,
            "drain": self._move,
            "panic": self._panic,
            "resume": self._resume,
            "reload": self._reload,
            "log-level": self._log_level,
            "limit": self._limit,
            "audit": self._audit,
            "trust": self._trust,
            "trust-diff": self._trust_diff,
            "trust-approve": self._trust_approve,
            "reflect": self._reflect,
            "approvals": supervisor.policing.approvals,
            "approve": supervisor.policing.approve,
            "deny": supervisor.policing.deny,
            "replayed": self._replayed,
            "shutdown": self._shutdown,
        }

    async def start(self, listener: socket.socket) -> None:
        """Serve on a bound, listening socket; takes it over."""
        self._server = await asyncio.start_unix_server(
            self._serve, sock=listener, limit=MAX_LINE_BYTES
        )

    async def close(self) -> None:
        """Stop listening and end every connection."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        try:
            if _peer_uid(writer) in {0, os.geteuid()}:
                await self._answer_lines(reader, writer)
            else:
                error = VsmError("control socket", "it is not yours", "Ask its owner.")
                _write(writer, _failure(error))
        except ValueError:
            what = f"the request has more than {MAX_LINE_BYTES} bytes"
            _write(writer, _failure(VsmError("control socket", what, "Ask for less at once.")))
        except (ConnectionError, asyncio.CancelledError):
            pass  # gone, or we are closing
        finally:
            writer.close()

    async def _answer_lines(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while line := await reader.readline():
            try:
                command, arguments = _parse(line)
                if command == "logs":
                    await self._logs(arguments, reader, writer)
                    continue
                if command == "segments":
                    self._segments(writer)
                    continue
                answer = {"ok": True, "result": await self._run(command, arguments)}
            except VsmError as error:
                answer = _failure(error)
            except ConnectionError:
                raise
            except Exception as error:  # noqa: BLE001 - the boundary: an operator is told, whatever it is
                what = f"cannot be answered: {type(error).__name__}: {error}"[:_MOST_FAILURE]
                self._supervisor.log.error("command failed", reason=what)  # noqa: TRY400 - foreign words are in it
                answer = _failure(VsmError("control socket", what, "See the log of vsm."))
            _write(writer, answer)
            await writer.drain()

    async def _run(self, command: str, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        run = self._commands.get(command)
        if run is None:
            known = ", ".join(sorted([*self._commands, "logs", "segments"]))
            raise VsmError("control socket", f"no command {command!r}", f"Known: {known}.")
        return await run(arguments | {"command": command})

    # ---- commands --------------------------------------------------------------------------

    async def _status(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        del arguments
        return await status.collect(self._supervisor)

    async def _variety(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        if "what_if" in arguments:
            return await measures.what_if(self._supervisor, _text(arguments, "what_if"))
        return await measures.variety(self._supervisor)

    async def _reflect(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        del arguments
        return {
            **await own_answers.reflect(self._supervisor),
            "predictions": await own_answers.predictions(self._supervisor),
        }

    async def _board(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        del arguments
        return measures.board(self._supervisor)

    async def _move(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        name, command = self._integration(arguments), arguments["command"]
        if command in {"start", "restart"} and name not in self._supervisor.config.integrations:
            remedy = "Put it back into vsm.toml, then `vsm reload`."
            raise VsmError(name, "it was removed from the configuration, and ends", remedy)
        await moves.move(self._supervisor.integrations, command, name)
        worker = self._supervisor.integrations.workers.group.workers.get(name)
        if worker is None:
            raise NotFoundError(name, "it was removed from the configuration meanwhile")
        return {"name": name, "state": worker.phase, "detail": worker.reason}

    async def _panic(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        del arguments
        try:
            await asyncio.wait_for(self._supervisor.panic(), PANIC_TIMEOUT_S)
        except TimeoutError:
            workers = self._supervisor.integrations.workers.group.workers
            left = ", ".join(name for name, worker in workers.items() if worker.alive)
            what = f"calls are refused and every integration was killed; not ended yet: {left}"
            raise VsmError(
                "panic", what, "See `vsm status`; `vsm resume` ends the panic."
            ) from None
        return {"panic": True}

    async def _resume(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        del arguments
        self._supervisor.resume()
        return {"panic": False}

    async def _reload(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        return await self._supervisor.reloader.reload(wait=arguments.get("wait") is not False)

    async def _log_level(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        level = _text(arguments, "level")
        if level not in logs.LEVELS:
            known = ", ".join(logs.LEVELS)
            raise ConfigurationError("log-level", f"no level {level!r}", f"Known: {known}.")
        before = logs.level()
        logs.set_level(level)
        return {"level": level, "before": before}

    async def _limit(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        name, wanted = _text(arguments, "name"), arguments.get("limits")
        known = self._supervisor.integrations.integrations
        if name not in known:
            what = f"no integration {name!r}"
            raise NotFoundError("limit", what, f"Known: {', '.join(known) or 'none'}.")
        if not isinstance(wanted, dict):
            raise VsmError("control socket", "arguments.limits: expected an object")
        rows = limits.set_limits(self._supervisor, name, wanted) if wanted else []
        group = self._supervisor.integrations
        running = next(iter(group.running_of(name)), None)
        held = limits_in_force.table(running, limits.set_by(group, running))
        held += limits_in_force.of_pool(group, name)
        return {"name": name, "limits": rows, "held": held}

    async def _trust(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        del arguments
        return {"integrations": self._supervisor.pinning.overview()}

    async def _trust_diff(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        return self._supervisor.pinning.differences(self._integration(arguments))

    async def _trust_approve(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        name, items = self._integration(arguments), arguments.get("items") or None
        if items is not None and not (
            isinstance(items, list) and all(isinstance(item, str) for item in items)
        ):
            raise VsmError("control socket", "arguments.items: expected a list of items")
        seen = arguments.get("seen") or ""
        if not isinstance(seen, str):
            raise VsmError("control socket", "arguments.seen: expected a digest")
        return {"name": name, "approved": self._supervisor.pinning.approve(name, items, seen)}

    def _integration(self, arguments: Arguments) -> str:
        name, known = _text(arguments, "name"), self._supervisor.integrations.integrations
        if name not in known:
            what = f"no integration {name!r}"
            raise NotFoundError(arguments["command"], what, f"Known: {', '.join(known) or 'none'}.")
        return name

    async def _audit(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        self._integration(arguments)
        return await self._supervisor.regulator.audits.command(arguments)

    async def _replayed(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        name, outcome = _text(arguments, "name"), _text(arguments, "outcome")
        letter = arguments.get("id")
        if type(letter) is not int:
            raise VsmError("control socket", "arguments.id: expected a number")
        self._supervisor.recorder.replayed(letter, name, outcome)
        return {"id": letter}

    async def _shutdown(self, arguments: Arguments) -> Any:  # noqa: ANN401 - JSON
        del arguments
        self._supervisor.request_shutdown("commanded")
        return {"stopping": True}

    def _segments(self, writer: asyncio.StreamWriter) -> None:
        """The demand and resource boards, sealed: their descriptors go with the answer."""
        message, fds = self._supervisor.systems.demand.message()
        if not fds:
            raise VsmError("board", "nothing is counted yet", "Try again.")
        told = {"epoch": message.epoch, "pid": message.pid, "age_s": message.age_s}
        answer = {"ok": True, "result": {**told, "segments": len(fds)}}
        fds = [*fds, self._supervisor.regulator.samples.board().fileno()]
        transport: asyncio.WriteTransport = writer.transport
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as own:
            try:
                if transport.get_write_buffer_size():
                    raise BlockingIOError  # noqa: TRY301 - it would overtake what waits
                socket.send_fds(own, [json.dumps(answer).encode() + b"\n"], fds)
            except BlockingIOError:
                raise VsmError("board", "earlier answers are unread", "Read them.") from None

    # ---- logs ------------------------------------------------------------------------------

    async def _logs(
        self, arguments: Arguments, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        name = _text(arguments, "name")
        if name in self._supervisor.integrations.integrations:
            ring = self._supervisor.ring(name)  # empty where it never ran
        elif name in self._supervisor.rings:
            ring = self._supervisor.rings[name]
        else:
            known = ", ".join(sorted(self._supervisor.rings)) or "none"
            what = f"{name!r} has written nothing, or is no worker"
            raise NotFoundError("logs", what, f"These have: {known}. `vsm status` shows all.")
        lines = arguments.get("lines", 100)
        count = max(0, min(lines, KEPT_LINES)) if type(lines) is int else 100
        kept = list(ring.lines)[-count:] if count else []
        if arguments.get("follow") is not True:
            _write(writer, {"ok": True, "result": kept})
            await writer.drain()
            return
        queue: asyncio.Queue[str] = asyncio.Queue(MAX_FOLLOW_QUEUE)
        follower = _follower(queue)
        ring.followers.add(follower)
        try:
            for line in kept:
                _write(writer, {"line": line})
            await _pass_on(queue, reader, writer)
        finally:
            ring.followers.discard(follower)


def _follower(queue: asyncio.Queue[str]) -> Callable[[str], None]:
    def follow(line: str) -> None:
        if not queue.full():  # a reader that does not keep up misses lines
            queue.put_nowait(line)

    return follow


async def _pass_on(
    queue: asyncio.Queue[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Write lines until the other side closes."""
    closed = asyncio.create_task(reader.read(1))
    try:
        while not closed.done():
            fetch = asyncio.create_task(queue.get())
            await asyncio.wait({fetch, closed}, return_when=asyncio.FIRST_COMPLETED)
            if fetch.done():
                _write(writer, {"line": fetch.result()})
                await writer.drain()
            else:
                fetch.cancel()
    finally:
        closed.cancel()


def _parse(line: bytes) -> tuple[str, Arguments]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise VsmError("control socket", "expected a JSON object on one line") from None
    if not isinstance(request, dict) or not isinstance(request.get("command"), str):
        raise VsmError("control socket", 'expected {"command": …, "arguments": {…}}')
    arguments = request.get("arguments", {})
    if not isinstance(arguments, dict):
        raise VsmError("control socket", "arguments: expected an object")
    return request["command"], arguments


def _text(arguments: Arguments, key: str) -> str:
    value = arguments.get(key)
    if not isinstance(value, str) or not value:
        raise VsmError("control socket", f"arguments.{key}: expected a name")
    return value


def _failure(error: VsmError) -> dict[str, Any]:
    return {
        "ok": False,
        "error": {
            "where": error.where,
            "what": error.what,
            "remedy": error.remedy,
            "exit_code": error.exit_code,
        },
    }


def _write(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    writer.write(json.dumps(answer).encode() + b"\n")


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    peer: socket.socket = writer.get_extra_info("socket")
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(raw)[1]
    return uid
