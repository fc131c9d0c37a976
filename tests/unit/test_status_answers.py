"""A system that was taken over may answer anything: the operator sees the rest all the same."""

import asyncio
import io
import json
import socket
import struct
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsm import cli
from vsm.commands import regulation_text, variety
from vsm.commands.control_client import request
from vsm.commands.status import _print_breaker, _print_identity, _print_worker
from vsm.commands.variety import _print_report, _print_what_if
from vsm.core import channels
from vsm.core.demand import NOBODY
from vsm.core.variety_report import report
from vsm.errors import VsmError
from vsm.gateway import unix
from vsm.introspection import control, measures, own_answers, status
from vsm.introspection.control import MAX_LINE_BYTES, ControlServer
from vsm.introspection.lessons import of_instances, of_retries
from vsm.messages import Query

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.sampled_from([
    "integrations", "instances", "breaker", "retry_in_s", "goals", "state", "words", "channels",
    "damped", "oscillations", "budget", "audits", "warnings", "git", "name", "lists_behind",
    channels.CHANNELS[0].name,
])  # fmt: skip
ANSWERS = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=9
    ),
)
ESCAPE = "\x1b[2J"


def systems(answer: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(channels.SYSTEMS, answer)


def printed(show: Any, *words: Any, **more: Any) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        show(*words, **more)
    return out.getvalue()


@settings(max_examples=40)
@given(ANSWERS)
def test_whatever_a_system_answers_its_part_alone_is_left_out(answer: dict[str, Any]) -> None:
    row = {"name": "git", "kind": "integration", "integration": "git", "state": "ready"}
    told = status._with_words_of_s1(row, systems(answer))
    goals = status._goals(answer)
    shown = printed(_print_breaker, told)
    shown += printed(_print_identity, {"purpose": "", "goals": goals})
    shown += printed(_print_worker, told | {"layers": [], "restarts": 0})
    shown += "\n".join(regulation_text.lines(systems(answer)))
    assert all(char.isprintable() or char == "\n" for char in shown)
    supervisor: Any = SimpleNamespace(
        systems=SimpleNamespace(capacity_bytes=lambda _c: 1, queued_bytes=lambda _c: 0)
    )
    for channel in channels.CHANNELS:
        status._channel(supervisor, channel, systems(answer))


def test_what_makes_sense_is_shown() -> None:
    answer: dict[str, Any] = {
        "integrations": {"git": {
            "breaker": "open", "retry_in_s": 5.0, "retries": "many", "lists_behind": ["tools", 5],
            "instances": [{"name": "git", "state": "spare", "in_flight": 2}, 7],
        }},
        "goals": [{"state": "missed", "words": "too little"}, {"state": "missed"}, "all"],
    }  # fmt: skip
    row = {"name": "git", "kind": "integration", "integration": "git"}
    told = status._with_words_of_s1(row, systems(answer))
    assert told["resilience"] == {"breaker": "open", "retry_in_s": 5.0}
    assert told["lists_behind"] == ["tools"]
    assert (told["serves"], told["in_flight"]) == ("spare", 2)
    assert status._goals(answer) == [{"state": "missed", "words": "too little"}]


def test_words_of_system_4_reach_no_terminal_raw() -> None:
    missing = {"reason": ESCAPE, "events": ESCAPE, "events_needed": ESCAPE}
    report = {"events": ESCAPE, "classes": ESCAPE, "figures": None, "not_enough_evidence": missing}
    shown = printed(_print_report, "Lately", report)
    found = {"demand": ESCAPE, "asked": ESCAPE, "answered_well": ESCAPE}
    figures = {"requisite_ratio": 1, "requisite_ratio_if_served": 1, "gain_bits": 1, "gap_bits": 1}
    shown += printed(_print_what_if, {**found, **figures})
    shown += printed(_print_what_if, {**found, "not_enough_evidence": ESCAPE})
    assert "\x1b" not in shown


def test_figures_that_are_shown_as_measured_are_the_measured_ones() -> None:
    """No response tells more of the demand than there is to tell: I(D;R) is at most H(D)."""
    served, lost = [20, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 20]
    table = {(f"server {n}", "tool"): served for n in range(8)} | {(NOBODY, "other"): lost}
    found = report(table)
    shown = printed(_print_report, "Lately", found).splitlines()
    bits = {line.split()[0]: line for line in shown if " bits" in line}
    measured = f"{found['figures']['environmental_bits']['measured']:.3f} bits"
    assert measured in bits["environmental"]
    assert measured in bits["transinformation"], "each demand has a responder of its own"


@pytest.mark.parametrize("failure", [KeyError("events"), TypeError("x"), VsmError("a", "b")])
def test_command_that_meets_nonsense_is_answered_with_an_error(failure: Exception) -> None:
    logged: list[str] = []

    class Writer:
        def __init__(self) -> None:
            self.lines: list[bytes] = []

        def write(self, line: bytes) -> None:
            self.lines.append(line)

        async def drain(self) -> None:
            """Nothing waits."""

    async def main() -> list[bytes]:
        policing = SimpleNamespace(approvals=None, approve=None, deny=None)
        log = SimpleNamespace(error=lambda what, **_more: logged.append(what))
        supervisor: Any = SimpleNamespace(policing=policing, log=log)
        server = ControlServer(supervisor)

        async def fail(_arguments: Any) -> None:
            raise failure

        server._commands["status"] = fail
        reader, writer = asyncio.StreamReader(), Writer()
        reader.feed_data(b'{"command":"status"}\n{"command":"none"}\n')
        reader.feed_eof()
        await server._answer_lines(reader, writer)  # type: ignore[arg-type]
        return writer.lines

    first, second = map(json.loads, asyncio.run(main()))
    assert (first["ok"], second["ok"]) == (False, False)
    assert "no command" in second["error"]["what"], "the connection goes on"
    assert bool(logged) == (not isinstance(failure, VsmError))


@pytest.mark.parametrize("words", [["variety"], ["variety", "--what-if", "x"]])
@pytest.mark.parametrize("answer", [{}, {"half_life_s": "long"}, {"demand": 5, "asked": 1}])
def test_variety_shows_the_channels_where_system_4_makes_no_sense(
    answer: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"sender": "system1", "receiver": "system2", "carries": "summary", "sufficient": False}
    row |= {"dropped": 3, "fill": 0.5, "bits_s": 1.0, "capacity_bits": 8}
    monkeypatch.setattr(variety, "request", lambda *_, **__: {**answer, "channels": [row]})
    shown = printed(cli.main, words)
    assert "system4 answers what makes no sense" in shown
    assert ("channel system1 to system2 (summary): 3 messages dropped" in shown) == (len(words) < 2)


@settings(max_examples=40)
@given(ANSWERS)
def test_predictions_that_make_no_sense_leave_the_rest_of_what_is_reflected(answer: Any) -> None:
    async def query(*_words: str) -> Any:
        await asyncio.sleep(0)
        return answer | {"forecasts": [*answer, 5]}

    supervisor: Any = SimpleNamespace(systems=SimpleNamespace(query=query))
    found = asyncio.run(own_answers.predictions(supervisor))
    assert found == {"not_enough_evidence": "system 4 answers what makes no sense"}


def test_demand_of_odd_bytes_is_asked_about_like_any_other() -> None:
    async def query(_name: str, what: str, about: str) -> Any:
        await asyncio.sleep(0)
        return {"asked": Query(id=1, what=what, about=about).about}

    supervisor: Any = SimpleNamespace(systems=SimpleNamespace(query=query))
    for demand in ("x\udcff", "\udcff" * 200):
        asked = asyncio.run(measures.what_if(supervisor, demand))["asked"]
        assert asked.startswith(demand[0].encode("utf-8", "backslashreplace").decode())


def test_user_of_a_high_number_is_who_he_is() -> None:
    """As directories of other systems have them: a uid has no sign."""
    told = struct.pack("=iII", 1, 3_000_000_000, 3_000_000_000)
    sock: Any = SimpleNamespace(getsockopt=lambda *_: told)
    assert unix._peer_uid(sock) == 3_000_000_000
    writer: Any = SimpleNamespace(get_extra_info=lambda _: sock)
    assert control._peer_uid(writer) == 3_000_000_000


def refused(folder: Path, ask: Callable[[], object], **supervisor: Any) -> str:
    """What the control socket says to somebody who asks it in vain."""

    async def main() -> None:
        policing = SimpleNamespace(approvals=None, approve=None, deny=None)
        server = ControlServer(cast("Any", SimpleNamespace(policing=policing, **supervisor)))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "control.sock"))
            listener.listen()
            await server.start(listener)
            try:
                await asyncio.to_thread(ask)
            finally:
                await server.close()

    with pytest.raises(VsmError) as caught:
        asyncio.run(main())
    return caught.value.what


@pytest.mark.parametrize("size_bytes", [2 * MAX_LINE_BYTES, 2**20])
def test_request_that_is_too_long_is_told_so(
    size_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not all of it was sent before vsm hung up."""
    monkeypatch.setenv("VSM_RUNTIME_DIR", str(tmp_path))
    what = refused(tmp_path, lambda: request("variety", what_if="x" * size_bytes))
    assert what == f"the request has more than {MAX_LINE_BYTES} bytes"


def test_panic_names_the_worker_that_cannot_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSM_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(control, "PANIC_TIMEOUT_S", 0.1)
    workers = {"good": SimpleNamespace(alive=False), "stuck": SimpleNamespace(alive=True)}
    group = SimpleNamespace(group=SimpleNamespace(workers=workers))
    integrations = SimpleNamespace(workers=group)
    what = refused(
        tmp_path, lambda: request("panic"), panic=asyncio.Event().wait, integrations=integrations
    )
    assert what.endswith("every integration was killed; not ended yet: stuck")


@settings(max_examples=40)
@given(ANSWERS)
def test_model_that_asks_is_told_nothing_where_a_system_answers_nonsense(answer: Any) -> None:
    async def query(*_words: str) -> Any:
        await asyncio.sleep(0)
        return answer

    supervisor: Any = SimpleNamespace(systems=SimpleNamespace(query=query))
    for what in ("variety", "capabilities", "limitations", "predictions"):
        found = asyncio.run(own_answers.answer(supervisor, what))
        assert found is None or isinstance(found, dict)


@pytest.mark.parametrize(
    "detail",
    [
        {},
        {"truncated": "[[1,", "length": 99},
        {"answered": "9", "failed": None, "instances": 7},
        {"answered": [1], "failed": {}, "instances": [[1, 2], [1, "2", 3], 5, [1.5, 2, 3]]},
        "text",
    ],
)
def test_record_that_was_cut_or_makes_no_sense_teaches_nothing_and_breaks_nothing(
    detail: Any,
) -> None:
    good = {"integration": "git", "detail": {"answered": 3, "failed": 1, "instances": [[1, 3, 1]]}}
    rows = [{"integration": "git", "detail": detail}, {**good, "integration": None}, good]
    assert [row["decisions"] for row in of_retries(rows)] == [4]
    assert [row["choice"] for row in of_instances(rows)] == ["git#1"]
