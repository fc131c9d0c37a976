"""The command line's side of the control socket: one question, one answer, or a stream of lines.

Runs as the person at the terminal. The protocol is in docs/architecture.md.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from vsm.control_socket import NotRunningError, connect
from vsm.errors import VsmError
from vsm.paths import CONTROL_SOCKET

__all__ = ["NotRunningError", "RefusedError", "connect", "request", "stream"]

ANSWER_TIMEOUT_S = 10.0
# For what the supervisor bounds itself: this only guards against a hung supervisor.
MOVE_TIMEOUT_S = 180.0
MOST_ANSWER_BYTES = 16 * 2**20


class RefusedError(VsmError):
    """The supervisor answered with an error; the exit code is its own."""

    def __init__(self, where: str, what: str, remedy: str, exit_code: int) -> None:
        super().__init__(where, what, remedy)
        self.exit_code = exit_code


def request(command: str, *, timeout_s: float = ANSWER_TIMEOUT_S, **arguments: object) -> Any:  # noqa: ANN401 - JSON
    """Ask the supervisor and return the result."""
    with connect(CONTROL_SOCKET) as connection:
        connection.settimeout(timeout_s)
        for answer in _exchange(connection, command, arguments):
            return answer
    raise VsmError("control socket", "vsm went away without an answer", "See `vsm status`.")


def stream(command: str, **arguments: object) -> Iterator[Any]:
    """Ask the supervisor and yield every line that it answers until it closes."""
    with connect(CONTROL_SOCKET) as connection:
        yield from _exchange(connection, command, arguments)


def _exchange(
    connection: socket.socket, command: str, arguments: dict[str, object]
) -> Iterator[Any]:
    question = json.dumps({"command": command, "arguments": arguments}) + "\n"
    try:
        with suppress(BrokenPipeError):  # it hung up on what is too long, after an answer
            connection.sendall(question.encode())
        with connection.makefile("rb") as lines:
            while line := lines.readline(MOST_ANSWER_BYTES):
                yield _result(line)
    except TimeoutError:
        raise VsmError(
            "control socket", f"no answer to `{command}` in time", "See `vsm doctor`."
        ) from None
    except ConnectionError as error:
        what = f"vsm hung up: {error.strerror}"
        raise VsmError("control socket", what, "See `vsm status`.") from error


def _result(line: bytes) -> Any:  # noqa: ANN401 - JSON
    try:
        answer = json.loads(line)
    except ValueError:
        raise VsmError("control socket", "the answer is no JSON", "Use vsm's own socket.") from None
    if not isinstance(answer, dict) or "ok" not in answer:
        return answer
    if answer["ok"]:
        return answer.get("result")
    error = answer.get("error", {})
    raise RefusedError(
        error.get("where", ""),
        error.get("what", "it was refused"),
        error.get("remedy", ""),
        int(error.get("exit_code", 1)),
    )
