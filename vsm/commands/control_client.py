"""The command line's side of the control socket: one question, one answer, or a stream of lines.

Runs as the person at the terminal. The protocol is in docs/architecture.md.
"""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vsm.errors import VsmError
from vsm.paths import CONTROL_SOCKET, runtime_dir

ANSWER_TIMEOUT_S = 10.0
MOST_ANSWER_BYTES = 16 * 2**20


class NotRunningError(VsmError):
    """No vsm listens in the runtime directory."""

    exit_code = 4


class NotFoundError(VsmError):
    """There is no integration, worker or tool of that name."""

    exit_code = 5


class RefusedError(VsmError):
    """The supervisor answered with an error; the exit code is its own."""

    def __init__(self, where: str, what: str, remedy: str, exit_code: int) -> None:
        super().__init__(where, what, remedy)
        self.exit_code = exit_code


def connect(name: str) -> socket.socket:
    """Connect to a socket of the running vsm.

    Args:
        name: `vsm.paths.CONTROL_SOCKET` or `MCP_SOCKET`.

    Raises:
        NotRunningError: nobody listens there.
        VsmError: somebody else's socket, or no right to use it.
    """
    path = runtime_dir() / name
    _check_owner(path)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = -1
    try:
        # Through the folder's descriptor: a socket's address holds 107 bytes, a path may be longer.
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        connection.connect(f"/proc/self/fd/{folder}/{name}")
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        raise _not_running(path) from None
    except OSError as error:
        connection.close()
        raise VsmError(str(path), f"cannot connect: {error.strerror}") from error
    finally:
        if folder >= 0:
            os.close(folder)
    return connection


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
        connection.sendall(question.encode())
        with connection.makefile("rb") as lines:
            while line := lines.readline(MOST_ANSWER_BYTES):
                yield _result(line)
    except TimeoutError:
        raise VsmError(
            "control socket", f"no answer to `{command}` in time", "See `vsm doctor`."
        ) from None
    except ConnectionError as error:
        raise VsmError("control socket", f"vsm hung up: {error.strerror}") from error


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


def _check_owner(path: Path) -> None:
    """Somebody else's socket in a shared folder could answer anything."""
    try:
        owner = path.lstat().st_uid
    except FileNotFoundError:
        raise _not_running(path) from None
    except OSError as error:
        raise VsmError(str(path), f"cannot be looked at: {error.strerror}") from error
    if owner not in {0, os.geteuid()}:
        raise VsmError(str(path), f"belongs to uid {owner}", "Set VSM_RUNTIME_DIR.")


def _not_running(path: Path) -> NotRunningError:
    return NotRunningError(
        str(path),
        "no vsm is running here",
        "Start it with `vsm up`, or point VSM_RUNTIME_DIR at the directory of the running one.",
    )
