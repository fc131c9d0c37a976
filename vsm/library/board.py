"""`vsm.Board`: the counts of a running vsm, read from the memory that it shares.

Runs in a program of vsm's owner (or root). The supervisor hands out descriptors of the sealed
segments (docs/board.md); reading asks nobody and holds nobody up.
"""

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, cast

import vsm.core.demand as names
from vsm.board.memory import BoardError
from vsm.board.reader import Demand, DemandReader, as_array
from vsm.board.resources import ResourceReader, Sample
from vsm.control_socket import connect
from vsm.errors import VsmError
from vsm.paths import CONTROL_SOCKET

if TYPE_CHECKING:
    import numpy as np

_TIMEOUT_S: Final = 10.0
_MOST_ANSWER_BYTES: Final = 4096
_MOST_FDS: Final = 9  # segments, and the resource board
_WHERE: Final = "vsm.Board"


class Board:
    """What a running vsm counted: every call by integration, demand class and outcome.

    A context manager, or `close` it. Counts are as of the moment of reading, whole rows only.

    Args:
        runtime_dir: of that vsm, if it is not the one that the environment names.

    Attributes:
        outcomes: the names of the columns of a class.
        epoch: of the S1 that counts.
        pid: its pid.

    Raises:
        VsmError: no vsm runs there, it is not yours, or it counts nothing yet.
    """

    outcomes: Final = names.OUTCOMES

    def __init__(self, runtime_dir: str | os.PathLike[str] | None = None) -> None:
        self._directory = None if runtime_dir is None else Path(runtime_dir)
        self.epoch = self.pid = 0
        self._reader, self._resources = self._open()

    def _open(self) -> tuple[DemandReader, ResourceReader]:
        answer, fds = _ask(self._directory)
        try:
            self.epoch, self.pid = int(answer["epoch"]), int(answer["pid"])
            last = fds.pop(int(answer["segments"]))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            _close(fds)
            raise VsmError(_WHERE, "the answer makes no sense", "Use the same version.") from error
        try:
            demand = DemandReader(fds, epoch=self.epoch, pid=self.pid or None)
            try:
                return demand, ResourceReader(last)
            except BaseException:
                demand.close()
                raise
        except BoardError as error:
            raise VsmError(_WHERE, f"its memory must not be believed: {error}") from error
        finally:
            os.close(last)

    def read(self) -> dict[str, Demand]:
        """What was asked of each integration, by name; "(nobody)" is what none offers.

        Returns:
            `classes` (label → counts in the order of `outcomes`), `latency` (counts by bucket),
            `cancelled` and `events` of each. Labels are foreign text.
        """
        return self._reader.totals()

    def changes(self) -> int:
        """A number that is another whenever something was counted since."""
        return self._reader.changes()

    def resources(self) -> dict[str, Sample]:
        """What each integration that serves in a control group used at the newest look."""
        return self._resources.read(self.read())

    def arrays(self) -> "list[np.ndarray[Any, Any]]":
        """The segments as read-only structured arrays over the shared memory; rows may be torn."""
        return [cast("np.ndarray[Any, Any]", as_array(fd)[1]) for fd in self._reader.fds]

    def refresh(self) -> None:
        """Ask for the memory anew: after a restart of system1, or for new integrations."""
        before = self._reader, self._resources
        self._reader, self._resources = self._open()
        for one in before:
            one.close()

    def close(self) -> None:
        """Give the memory back."""
        self._reader.close()
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _ask(directory: Path | None) -> tuple[dict[str, Any], list[int]]:
    """The answer and the descriptors, which are the caller's."""
    with connect(CONTROL_SOCKET, directory) as connection:
        connection.settimeout(_TIMEOUT_S)
        try:
            connection.sendall(b'{"command": "segments", "arguments": {}}\n')
            data, fds, _, _ = socket.recv_fds(
                connection, _MOST_ANSWER_BYTES, _MOST_FDS, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise VsmError(_WHERE, f"no answer: {error}", "See `vsm status`.") from error
    try:
        return _result(data), fds
    except BaseException:
        _close(fds)
        raise


def _result(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
        told = answer["result"] if answer["ok"] else answer["error"]
        if answer["ok"]:
            return dict(told)
        error = VsmError(told["where"], told["what"], told["remedy"])
    except (ValueError, KeyError, TypeError):
        error = VsmError(_WHERE, "the answer makes no sense", "Use the same version.")
    raise error


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
