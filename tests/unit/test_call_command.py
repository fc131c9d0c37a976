"""Commands that ask: what was typed and what servers say ends in words, never in a traceback."""

import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from vsm.cli import main
from vsm.commands import audit_worker, call, login, logs, tools, worker
from vsm.commands.control_client import NotRunningError
from vsm.commands.mcp_client import CallError, Client
from vsm.errors import ConfigurationError, NotFoundError, VsmError
from vsm.governance.worker_audit import CONTRACT_TIMEOUT_S
from vsm.supervision import oauth_store

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


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', '{"a": -Infinity}', '{"a": -1e999}', "[" * 100_000, "{", "3"]
)
def test_arguments_that_no_server_could_read_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"JSON"):
        call._parse_arguments(text)


@pytest.mark.parametrize("time", ["-1", "0", "nan", "inf", "1e300", "soon"])
def test_time_that_no_socket_takes_is_refused(
    time: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["call", "a", "b"], ["dead-letters", "replay", "1"]):
        assert main([*words, "--timeout", time]) == 2
        assert f"--timeout: invalid seconds value: '{time}'" in capsys.readouterr().err


def test_answer_that_is_to_no_request_of_ours_is_the_one_to_what_could_not_be_read() -> None:
    ours, gateway = socket.socketpair()
    with ours, gateway:
        client = object.__new__(Client)
        client._socket, client._lines, client._next_id = ours, ours.makefile("rb"), 1
        gateway.sendall(
            b'{"jsonrpc":"2.0","method":"notifications/message"}\n'
            b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"too large"}}\n'
        )
        with client, pytest.raises(CallError, match="too large"):
            client.request("tools/call", {})


def test_number_that_python_does_not_take_is_shown_as_it_is() -> None:
    """Else one server's odd schema would keep the tools of all others from `vsm tools`."""
    ours, gateway = socket.socketpair()
    with ours, gateway:
        client = object.__new__(Client)
        client._socket, client._lines, client._next_id = ours, ours.makefile("rb"), 1
        digits = "9" * 5000
        gateway.sendall(f'{{"id":1,"result":{{"ours":3,"its":{digits}}}}}\n'.encode())
        with client:
            assert client.request("tools/list", {}) == {"ours": 3, "its": digits}


@pytest.mark.parametrize(
    "result",
    [
        {"content": ["text"]},
        {"content": 5},
        {"content": [{"type": "text"}]},
        {"content": [{"type": "image", "data": 5}]},
    ],
)
def test_result_that_is_none_is_no_traceback(result: dict[str, Any]) -> None:
    with pytest.raises(VsmError, match="makes no sense"):
        call.print_result(result)


def test_tool_whose_schema_makes_no_sense_is_listed() -> None:
    schema = {"properties": {"a": {}, "b": {}}, "required": [{"a": 1}, "b"]}
    assert tools._arguments(schema) == " [a] b"


def test_call_goes_on_where_nobody_says_in_time_who_is_awaited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def busy(_command: str) -> None:
        raise VsmError("control socket", "no answer to `status` in time", "")

    monkeypatch.setattr(call, "Client", Slow)
    monkeypatch.setattr(call, "tool_prefixes", lambda _name: {"echo": "echo"})
    monkeypatch.setattr(call, "request", busy)
    assert call.call_tool("echo", "say", {}, timeout_s=None) == ANSWER


def test_audit_is_waited_for_longer_than_the_supervisor_waits_for_a_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}
    found = {"failed": {}, "unknown": [], "detail": ""}
    found |= dict.fromkeys(("checked", "attacks", "contract", "processes"), 1)
    monkeypatch.setattr(audit_worker, "request", lambda _, **words: asked.update(words) or found)
    assert main(["audit", "it"]) == 0
    assert asked["timeout_s"] > 2 * CONTRACT_TIMEOUT_S


def test_what_was_stopped_is_told_although_the_next_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def request(_command: str, *, name: str, **_: object) -> dict[str, str]:
        if name == "nosuch":
            raise NotFoundError("stop", "no integration 'nosuch'")
        return {"state": "stopped", "detail": ""}

    monkeypatch.setattr(worker, "request", request)
    assert main(["stop", "it", "nosuch"]) == 5
    assert capsys.readouterr().out == "it: stopped\n"


@pytest.mark.parametrize(("lines", "told"), [("0", ""), ("5", "it has written nothing")])
def test_only_who_wrote_nothing_is_said_to_have(
    lines: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "request", lambda *_, **__: [])
    assert main(["logs", "it", "-n", lines]) == 0
    said = capsys.readouterr().err
    assert told in said
    assert bool(said) == bool(told)


@pytest.mark.parametrize(
    ("known", "state", "asked"),
    [
        (True, "ready", ["status", "restart"]),
        (True, "stopped", ["status"]),  # nobody asked to start it
        (True, None, ["status"]),
        (False, "ready", []),
    ],
)
def test_server_is_started_anew_only_where_a_login_was_forgotten(  # noqa: PLR0917 - fixtures
    known: bool,
    state: str | None,
    asked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands: list[str] = []

    def request(command: str, **_: object) -> dict[str, Any]:
        commands.append(command)
        if state is None:
            raise NotRunningError("", "no vsm is running here")
        rows = [{"name": "it", "state": state}]
        return {"workers": rows} if command == "status" else {"state": "ready", "detail": ""}

    monkeypatch.setattr(login, "request", request)
    monkeypatch.setattr(oauth_store, "forget", lambda *_: known)
    config = tmp_path / "vsm.toml"
    config.write_text('[integrations.it]\nurl = "https://x.example/"\noauth = {}\n')
    assert main(["login", "it", "--forget", "--config", str(config)]) == 0
    assert commands == asked
    assert "tokens are used" not in capsys.readouterr().out
    assert main(["login", "nosuch", "--config", str(config)]) == 5
