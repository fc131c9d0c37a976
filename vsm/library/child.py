"""What runs inside a confined worker of `vsm.run`: takes the work, does it, sends the value.

Runs after every layer is in force, in a fork of the runner that is nobody else's; loads the
program's pickle (trusted → confined). Whatever it says afterwards is a foreign word.
"""

import errno
import fcntl
import json
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

from vsm.confinement.execution import ABSENT, Plan
from vsm.library.values import UnfitError, send_failure, send_value
from vsm.linux import prctl, rlimits

_FIRST_FD = 10
_MOST_BYTES = 64
_FAILED = 1
_NOT_STARTED = 127
_STACK_BYTES = 8 << 20


def load_ahead() -> None:
    """In the runner: what every worker needs and none can be sure to find."""
    import dill  # noqa: F401

    from vsm.library import code  # noqa: F401


def run(plan: Plan) -> NoReturn:
    """Wait for the run that this worker is to be, take its work, do it, exit."""
    channel = _become_run()
    try:
        order, content = _take(channel)
        _prepare(plan, order)
    except (OSError, ValueError) as error:
        send_failure(channel, "start", f"{type(error).__name__}: {error}")
        os._exit(_NOT_STARTED)
    if order["argv"]:
        _exec(channel, plan.argv[0], order["argv"])
    work = _serve if order["serves"] else _call
    if plan.clone_flags:
        os._exit(work(channel, order, content))
    _in_thread(lambda: os._exit(work(channel, order, content)))


def _prepare(plan: Plan, order: dict[str, Any]) -> None:
    with suppress(OSError):
        prctl.allow_dumps()  # as after an exec: its own /proc/self; a core has no bytes anyway
    os.environ.clear()
    os.environ.update({**plan.env, **order["env"]})
    by_group = any(layer.name == "memory" and layer.state != ABSENT for layer in plan.expected)
    if order["memory_bytes"] and not by_group:
        rlimits.lower("data", order["memory_bytes"])


def _become_run() -> socket.socket:
    """The runner sends, to fd 0, the channel to the program, stdout and stderr; its end: no run."""
    with socket.socket(fileno=os.dup(0)) as runner:
        _, fds, _, _ = socket.recv_fds(runner, _MOST_BYTES, 3)
    if not fds:
        os._exit(0)
    channel = socket.socket(fileno=fcntl.fcntl(fds[0], fcntl.F_DUPFD_CLOEXEC, _FIRST_FD))
    for number, fd in enumerate(fds):
        os.dup2(fd, number)  # fd 0 until stdin comes
    os.closerange(3, _FIRST_FD)
    return channel


def _take(channel: socket.socket) -> tuple[dict[str, Any], bytes]:
    """The first line of the work is JSON, the rest the pickle."""
    _, fds, _, _ = socket.recv_fds(channel, _MOST_BYTES, 2)
    if not fds:
        os._exit(0)  # given up before it began
    work, stdin = fds
    os.dup2(stdin, 0)
    os.close(stdin)
    with open(work, "rb") as file:
        return json.loads(file.readline()), file.read()


def _exec(channel: socket.socket, program: str, argv: list[str]) -> NoReturn:
    for signo in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with suppress(OSError):
            signal.signal(signo, signal.SIG_DFL)
    try:
        os.execve(program, argv, dict(os.environ))  # noqa: S606 - an argv, never a shell
    except OSError as error:
        send_failure(channel, "start", f"cannot exec {program}: {error.strerror}")
    os._exit(_NOT_STARTED)


def _in_thread(work: Any) -> NoReturn:  # noqa: ANN401 - a callable
    """With a stack of ordinary size: the thread that forked this process had a small one."""
    import threading

    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    os._exit(_FAILED)


def _call(channel: socket.socket, order: dict[str, Any], content: bytes) -> int:
    status = _FAILED
    loaded = _loaded(channel, order, content)
    if loaded is None:
        return _NOT_STARTED
    function, arguments = loaded
    try:
        send_value(channel, function(*arguments), order["most_bytes"])
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        send_failure(channel, "error", f"SystemExit: {error.code}")
    except UnfitError as error:
        send_failure(channel, "unfit", str(error))
    except BaseException as error:  # noqa: BLE001 - the boundary
        _print_traceback()
        send_failure(channel, "error", _text(error), _denied(error, order))
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # whatever the work made of it
                stream.flush()
    return status & 0xFF


def _serve(channel: socket.socket, order: dict[str, Any], content: bytes) -> int:
    """Call the function for every message, until the program closes the channel."""
    loaded = _loaded(channel, order, content)
    if loaded is None:
        return _NOT_STARTED
    send_failure(channel, "ready", "")
    while True:
        data, fds, _, _ = socket.recv_fds(channel, _MOST_BYTES, 1)
        if not fds:
            return 0
        with open(fds[0], "rb") as file:
            _serve_one(channel, order, int(data), (loaded[0], file.read()))


def _serve_one(
    channel: socket.socket, order: dict[str, Any], number: int, call: tuple[Any, bytes]
) -> None:
    function, content = call
    try:
        arguments = _unpack(content)
        send_value(channel, function(*arguments), order["most_bytes"], number)
    except UnfitError as error:
        send_failure(channel, "unfit", str(error), call=number)
    except BaseException as error:  # noqa: BLE001 - the boundary; an exit, too, ends a call only
        _print_traceback()
        send_failure(channel, "error", _text(error), _denied(error, order), number)


def _loaded(channel: socket.socket, order: dict[str, Any], content: bytes) -> Any:  # noqa: ANN401
    """The function and its arguments; None, and the program has been told why."""
    sys.path[:] = order["path"]
    sys.argv[:] = ["-"]
    if random := sys.modules.get("numpy.random"):
        random.seed()  # forks of one process would draw the same numbers
    try:
        return _unpack(content)
    except BaseException as error:  # noqa: BLE001 - the boundary
        hint = " (its folder belongs in read=)" if isinstance(error, ImportError) else ""
        send_failure(channel, "start", f"{_text(error)}{hint}")
        return None


def _unpack(content: bytes) -> Any:  # noqa: ANN401 - what was packed
    import dill

    return dill.loads(content)  # noqa: S301 - the program's own, in here


def _print_traceback() -> None:
    """Whatever the work made of its stderr: its error is told all the same."""
    with suppress(Exception):
        traceback.print_exc()


def _text(error: BaseException) -> str:
    told = traceback.TracebackException(type(error), error, None)
    told.__notes__ = None  # they come behind its own words
    lines = list(told.format_exception_only())
    return lines[-1].strip() if lines else type(error).__name__


def _denied(error: BaseException, order: dict[str, Any]) -> str:
    """Either "memory" or "violation", where the error means that it met its profile."""
    if isinstance(error, MemoryError):
        return "memory"
    denials = {errno.EPERM, errno.EACCES, errno.EROFS}
    if order["isolated"]:
        denials.add(errno.ENETUNREACH)  # its namespace leads nowhere
    return "violation" if isinstance(error, OSError) and error.errno in denials else ""
