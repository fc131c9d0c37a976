"""Counts every call of a client into the demand board: what was asked, and how it ended.

Owns the board and the rule by which a call belongs to a demand class and an outcome. Only what
asks an integration for something is demand: tools, prompts, resources, completions; lists and
the session's own traffic are not. Runs in S1's event loop, on the hot path.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, cast

import msgspec

import vsm.core.demand as names
from vsm.board.demand import Counted, DemandBoard, DemandRow
from vsm.protocol import jsonrpc
from vsm.protocol.catalogue import SEPARATOR, Catalogue
from vsm.protocol.jsonrpc import Message, Object
from vsm.protocol.tables import ROUTED

if TYPE_CHECKING:
    from vsm.gateway.fleet import Fleet

_NAMED: Final = frozenset({"tools/call", "prompts/get"})

TOOL_ERROR_KEY: Final = b'"isError"'
_FALSE: Final = b":false"


class _Result(msgspec.Struct):
    isError: object = False  # noqa: N815 - the name of a member


class _Envelope(msgspec.Struct):
    result: _Result


now_ns: Final = time.perf_counter_ns
"""The clock that latencies are measured by."""
_answers: Final = msgspec.json.Decoder(_Envelope)


class Accounting:
    """The demand board of one incarnation of S1.

    Args:
        epoch: the incarnation.
        integrations: who gets a row at once.
    """

    def __init__(self, epoch: int, integrations: Iterable[str] = ()) -> None:
        defer = asyncio.get_running_loop().call_soon
        self.board = DemandBoard(epoch, integrations, defer=defer)
        self._announce: Callable[[list[int]], None] | None = None

    @property
    def nobody(self) -> DemandRow:
        """The row for what no integration offers."""
        return self.board.nobody

    def row(self, name: str) -> DemandRow:
        """An integration's row, a new one where it has none."""
        if self.board.add([name]):
            self._changed()
        return self.board.rows[name]

    def remove(self, name: str) -> None:
        """An integration is gone, and its counts with it."""
        if self.board.remove(name):
            self._changed()

    def begin(self, inherited: Iterable[Counted], announce: Callable[[list[int]], None]) -> None:
        """Add a predecessor's counts, then hand out the descriptors now and at every change."""
        self.board.inherit(inherited)
        self._announce = self.board.on_moved = announce
        self._changed()

    def _changed(self) -> None:
        if self._announce is not None:
            self._announce(self.board.filenos())

    def close(self) -> None:
        """Close the board's descriptors."""
        self.board.close()


def label_of(method: str, params: Object) -> str | None:
    """The demand class of a request; None where it asks no integration for anything.

    A resource is a class of its own, a prompt too; whatever is completed is one class.
    """
    if method == "tools/call":
        return jsonrpc.text(params, "name")
    if method == "prompts/get":
        name = jsonrpc.text(params, "name")
        return None if name is None else f"prompt {name}"
    if method == "resources/read":
        uri = jsonrpc.text(params, "uri")
        return None if uri is None else f"resource {uri}"
    return "completion" if method == "completion/complete" else None


def routed_label(catalogue: Catalogue, method: str, params: Object) -> str:
    """The class of a request that is routed; all resources that no list names are one."""
    if method == "resources/read":
        uri = jsonrpc.text(params, "uri") or ""
        return f"resource {uri}" if uri in catalogue.resources else "resource (not listed)"
    return label_of(method, params) or ""


def count_unserved(fleet: "Fleet", message: Message) -> None:
    """Count what could not be passed to a server, for the integration that it was meant for."""
    method = cast("str", message.method)
    label = label_of(method, jsonrpc.members(message.params)) if method in ROUTED else None
    if label is not None:
        row, label = _meant_for(fleet, method, label)
        row.count(label, names.UNSERVED, now_ns())


def _meant_for(fleet: "Fleet", method: str, label: str) -> tuple[DemandRow, str]:
    """The row and the class of a label with a public name in it; nobody's where none fits."""
    kind = "prompt " if method == "prompts/get" else ""
    name = label.removeprefix(kind)
    entry = (fleet.catalogue.prompts if kind else fleet.catalogue.tools).get(name)
    if entry is not None and method in _NAMED:
        return fleet.integrations[entry.integration].demand, kind + entry.name
    for integration in fleet.integrations.values():
        start = f"{integration.settings.prefix}{SEPARATOR}"
        if start != SEPARATOR and name.startswith(start) and not integration.takes_calls:
            return integration.demand, kind + name.removeprefix(start)
    return fleet.accounting.nobody, label


def outcome_of(frame: bytes) -> int:
    """Whether an answered tools/call says of itself that it failed; `frame` is the answer.

    Most answers are told by looking for the key; only a doubtful one is decoded again.
    """
    at = frame.rfind(TOOL_ERROR_KEY)  # from behind: where it mostly is, and ten times as quick
    if at < 0:
        return names.OK
    end = at + len(TOOL_ERROR_KEY)
    if frame.startswith(_FALSE, end) and frame.rfind(TOOL_ERROR_KEY, 0, at) < 0:
        return names.OK
    try:
        failed = _answers.decode(frame).result.isError is True
    except (msgspec.DecodeError, RecursionError):
        return names.PROTOCOL_ERROR
    return names.TOOL_ERROR if failed else names.OK


def outcome_of_failure(code: int) -> int:
    """What a failure of the gateway's own counts as."""
    if code == jsonrpc.TIMED_OUT:
        return names.TIMEOUT
    if code == jsonrpc.DENIED:
        return names.DENIED
    return names.UNSERVED if code == jsonrpc.UNAVAILABLE else names.PROTOCOL_ERROR
