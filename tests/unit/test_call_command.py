"""`vsm call`: what is said on the way changes nothing about the call."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import pytest

from vsm.commands import call
from vsm.errors import VsmError

ANSWER = {"content": []}


class Slow:
    """A client whose answer comes after it was told that it waits."""

    def __init__(self, timeout_s: float | None) -> None:
        del timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def request(
        self, method: str, params: dict[str, Any], on_wait: Callable[[], None]
    ) -> dict[str, Any]:
        del method, params
        on_wait()
        return ANSWER


def test_call_goes_on_where_nobody_says_in_time_who_is_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def busy(_command: str) -> None:
        raise VsmError("control socket", "no answer to `status` in time", "")

    monkeypatch.setattr(call, "Client", Slow)
    monkeypatch.setattr(call, "tool_prefixes", lambda _name: {"echo": "echo"})
    monkeypatch.setattr(call, "request", busy)
    assert call.call_tool("echo", "say", {}, timeout_s=None) == ANSWER
