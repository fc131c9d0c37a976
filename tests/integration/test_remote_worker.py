"""The worker of a remote server against servers that misbehave, on loopback, unconfined."""

import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from remote_rig import BOUND_S, ENVELOPE, LEGACY, MODERN, Request, legacy, scripted, worker

from vsm.protocol.frames import BROKEN, NOT_REACHED
from vsm.protocol.jsonrpc import UNAVAILABLE
from vsm.remote.tokens import Tokens

CREDENTIALS = 78


def error_of(answer: dict[str, Any]) -> tuple[int, str]:
    return answer["error"]["code"], answer["error"]["message"]


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["result"]["content"][0]["text"])


def answering(said: str) -> dict[str, Any]:
    return {"result": {"content": [{"type": "text", "text": said}]}}


# ---- what servers do wrong -----------------------------------------------------------------


def test_a_line_without_end_fails_its_call_alone_and_fills_no_memory() -> None:
    def play(request: Request) -> None:
        if legacy(request):
            return
        if request.message["params"]["arguments"].get("quick"):
            request.text("here")
            return
        request.stream()
        request.chunk(b"data: ")
        for _ in range(512):  # 32 MiB, where 1 MiB is the most
            request.chunk(b"x" * 65536)

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        endless = far.send("tools/call", name="tool", arguments={})
        code, text = error_of(far.answer(endless))
        assert (code, "a line of more than 1048576 bytes" in text) == (BROKEN, True)
        assert "it may have run" in text
        assert text_of(far.call(quick=1)) == "here"
        status = Path(f"/proc/{far.process.pid}/status").read_text(encoding="ascii")
        assert int(status.partition("VmHWM:")[2].split()[0]) < 64 * 1024
        assert far.end() == 0


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b'{"x":"' + b"x" * (2 << 20) + b'"}', "application/json", "larger than 1048576 bytes"),
        (b"<html>hello</html>", "text/html", "answered with text/html where JSON"),
        (b"{no json", "application/json", "its answer is invalid"),
        (b'{"jsonrpc":"2.0","id":1,"result":"\xff"}', "application/json", "its answer is invalid"),
        (b"[" * 100_000, "application/json", "its answer is invalid"),
        (b'{"jsonrpc":"2.0","id":77,"result":{}}', "application/json", "to something else"),
    ],
)
def test_an_unusable_answer_fails_the_call_that_it_belongs_to(
    body: bytes, kind: str, said: str
) -> None:
    def play(request: Request) -> None:
        if not legacy(request):
            request.reply(body=body, kind=kind)

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        code, text = error_of(far.call())
        assert code == BROKEN
        assert said in text
        assert far.end() == 0


@pytest.mark.parametrize("streamed", [False, True])
def test_an_error_that_does_not_say_to_what_is_to_what_was_asked(streamed: bool) -> None:
    error = {"code": -32602, "message": "no such place"}
    told = {"jsonrpc": "2.0", "id": None, "error": error}

    def play(request: Request) -> None:
        if legacy(request):
            return
        if streamed:
            request.stream()
            request.event(told)
        else:
            request.reply(body=json.dumps(told).encode())

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        assert error_of(far.call()) == (-32602, "no such place")
        assert far.end() == 0


def test_another_protocol_fails_the_call_that_meets_it_alone() -> None:
    def play(request: Request) -> None:
        if legacy(request):
            return
        if request.message["params"]["arguments"].get("odd"):
            request.reply(101, Upgrade="other", Connection="Upgrade")
            request.cut()
            return
        request.text("here")

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        code, text = error_of(far.call(odd=1))
        assert (code, "answers in another protocol" in text) == (BROKEN, True)
        assert text_of(far.call()) == "here"
        assert far.end() == 0


def test_authorities_that_cannot_be_read_end_the_worker_with_a_line(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no PEM")
    with (
        scripted(lambda _: None) as server,
        worker(server, scheme="https", ca_file=str(tmp_path / "ca.pem")) as far,
    ):
        assert far.wait() == 1
        assert "holds no certificates" in far.said
        assert far.said.count("\n") == 1


def test_a_redirect_to_another_host_is_not_followed_and_gets_no_credentials() -> None:
    def innocent(request: Request) -> None:
        request.reply(200)

    with scripted(innocent) as other:

        def play(request: Request) -> None:
            if not legacy(request):
                request.reply(307, Location=f"http://127.0.0.1:{other.port}/mcp")

        own = {"secret_headers": {"authorization": ["HEADER_AUTHORIZATION", "Bearer "]}}
        env = {"HEADER_AUTHORIZATION": "hunter2-hunter2"}
        with scripted(play) as server, worker(server, env, own=own) as far:
            far.handshake()
            code, text = error_of(far.call())
            assert code == UNAVAILABLE
            assert f"redirects to http://127.0.0.1:{other.port}, which is not followed" in text
            assert server.of("tools/call")[0]["authorization"] == "Bearer hunter2-hunter2"
            far.end()
            assert "hunter2" not in text + far.said
        assert other.seen == []


def test_a_redirect_within_the_origin_is_followed_and_remembered() -> None:
    paths = []

    def play(request: Request) -> None:
        paths.append(request.path)
        if request.path == "/mcp":
            request.reply(307, Location="/mcp/")
        elif not legacy(request):
            request.text("moved")

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        assert text_of(far.call()) == "moved"
        far.end()
    assert paths.count("/mcp") == 1


def test_a_server_that_redirects_in_a_circle_is_given_up() -> None:
    def play(request: Request) -> None:
        request.reply(307, Location="/mcp")

    with scripted(play) as server, worker(server) as far:
        code, text = error_of(far.ask("server/discover", **ENVELOPE))
        assert (code, "redirects more than 3 times" in text) == (UNAVAILABLE, True)


def test_refused_credentials_at_the_handshake_end_the_worker_and_a_person_is_told() -> None:
    with scripted(lambda request: request.reply(401)) as server, worker(server) as far:
        far.send("server/discover", **ENVELOPE)
        assert far.wait() == CREDENTIALS
        assert "refuses the credentials (HTTP 401)" in far.said


def test_refused_credentials_of_one_call_fail_that_call() -> None:
    def play(request: Request) -> None:
        if not legacy(request):
            request.reply(403)

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        assert error_of(far.call())[0] == UNAVAILABLE
        assert far.end() == 0


@pytest.mark.parametrize(
    ("challenge", "remedy"),
    [
        (
            'Bearer error="insufficient_scope", scope="files:read files:write", realm="x"',
            "Run `vsm login far --scope 'files:read files:write'`.",
        ),
        ('Bearer scope="files:read"', "Run `vsm login far`."),
        ('Bearer error="insufficient_scope", scope="a\'; reboot; \'"', "Run `vsm login far`."),
        ('Bearer error="insufficient_scope", scope="$(reboot)"', "Run `vsm login far`."),
        (f'Bearer error="insufficient_scope", scope="{"a" * 129}"', "Run `vsm login far`."),
    ],
)
def test_call_that_its_login_does_not_allow_says_what_to_log_in_for(
    tmp_path: Path, challenge: str, remedy: str
) -> None:
    def play(request: Request) -> None:
        if not legacy(request):
            request.reply(403, WWW_Authenticate=challenge)

    tokens = Tokens(access_token="t", token_endpoint="https://x.example/", client_id="me")
    (tmp_path / "oauth.json").write_bytes(msgspec.json.encode(tokens))
    own = {"tokens": str(tmp_path / "oauth.json")}
    with scripted(play) as server, worker(server, own=own) as far:
        far.handshake()
        assert error_of(far.call())[1].endswith(remedy)
        assert far.end() == 0


def test_a_stream_cut_before_its_answer_fails_the_call_which_may_have_run() -> None:
    def play(request: Request) -> None:
        if not legacy(request):
            request.stream()
            request.event({"jsonrpc": "2.0", "method": "notifications/message", "params": {}})
            request.cut()

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        code, text = error_of(far.call())
        assert (code, "ended within an answer; it may have run" in text) == (BROKEN, True)


def test_a_stream_cut_before_its_answer_is_resumed_where_it_has_ids() -> None:
    asked: list[dict[str, Any]] = []

    def play(request: Request) -> None:
        if request.command == "GET" and request.headers.get("last-event-id") == "e1":
            request.stream()
            request.event({"jsonrpc": "2.0", "id": asked[0]["id"], **answering("late")}, "e2")
            request.end_stream()
        elif not legacy(request):
            asked.append(request.message)
            request.stream()
            request.event("", "e1", retry_ms=10)
            request.cut()

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        assert text_of(far.call()) == "late"
        assert len(asked) == 1


def test_a_stream_that_can_never_be_resumed_is_given_up() -> None:
    def play(request: Request) -> None:
        if request.headers.get("last-event-id"):
            request.stream()
            request.end_stream()
        elif not legacy(request):
            request.stream()
            request.event("", "e1", retry_ms=1)
            request.end_stream()

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        code, text = error_of(far.call())
        assert (code, "ended before the answer" in text) == (BROKEN, True)


def test_a_call_whose_stream_broke_may_have_run_whatever_becomes_of_resuming_it() -> None:
    def play(request: Request) -> None:
        if request.headers.get("last-event-id"):
            request.reply(403)
        elif not legacy(request):
            request.stream()
            request.event("", "e1", retry_ms=1)
            request.cut()

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        code, text = error_of(far.call())
        assert (code, "refuses the credentials" in text) == (BROKEN, True)
        assert "it may have run" in text


def test_an_invalid_event_is_passed_on_for_the_gateway_to_judge_and_the_answer_follows() -> None:
    def play(request: Request) -> None:
        if not legacy(request):
            request.stream()
            request.event("{no json")
            request.event({"jsonrpc": "2.0", "id": 999, **answering("for another")})
            request.event({"jsonrpc": "2.0", "id": request.message["id"], **answering("mine")})
            request.end_stream()

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        request_id = far.send("tools/call", name="tool", arguments={})
        assert far.line() == b"{no json\n"
        assert text_of(far.message()) == "mine"  # and nothing for request 999
        assert request_id == 2
        far.end()
        assert "no request for" in far.said


@pytest.mark.parametrize("params", [[], ["q"], 5, {"requestId": {}}, {}])
def test_a_withdrawal_of_nothing_ends_nothing(params: Any) -> None:
    def play(request: Request) -> None:
        if legacy(request):
            return
        request.stream()
        request.event({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
        request.event({"jsonrpc": "2.0", "id": request.message["id"], **answering("here")})
        request.end_stream()

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        assert text_of(far.call()) == "here"
        assert far.end() == 0


def test_a_server_that_is_not_there_is_said_not_to_be_reached() -> None:
    with scripted(lambda request: request.reply()) as server:
        pass
    with worker(server) as far:
        code, text = error_of(far.ask("server/discover", **ENVELOPE))
        assert code == NOT_REACHED
        assert "cannot be reached" in text
        assert "it did not run" in text


def test_a_fault_of_the_server_is_no_answer() -> None:
    def play(request: Request) -> None:
        if not legacy(request):
            request.reply(502, b"bad gateway", "text/plain")

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        code, text = error_of(far.call())
        assert (code, "HTTP 502" in text) == (BROKEN, True)


# ---- sessions ------------------------------------------------------------------------------


def test_a_lost_session_is_opened_again_with_what_it_was_asked_for() -> None:
    opened: list[str] = []

    def play(request: Request) -> None:
        if request.what == "initialize":
            opened.append(f"s{len(opened) + 1}")
            legacy(request, opened[-1])
        elif request.headers.get("mcp-session-id") != opened[-1]:
            request.reply(404)
        elif not legacy(request):
            if request.what == "tools/call" and len(opened) == 1:
                opened.append("restarted")  # nobody has that one
                request.reply(404)
            else:
                request.text(request.what)

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        far.ask("logging/setLevel", level="warning")
        far.ask("resources/subscribe", uri="mem://x")
        request_id = far.send("tools/call", name="tool", arguments={})
        told = [far.message() for _ in range(3)]
        assert [one.get("method") for one in told] == [
            "notifications/tools/list_changed",
            "notifications/resources/list_changed",
            None,
        ]
        assert told[2]["id"] == request_id
        assert text_of(told[2]) == "tools/call"
        assert far.end() == 0
        methods = [what for _, what, _, _ in server.seen]
    assert methods.count("initialize") == 2
    assert methods.count("notifications/initialized") == 2
    assert methods.count("logging/setLevel") == methods.count("resources/subscribe") == 2
    assert server.of("tools/call")[-1]["mcp-session-id"] == "s3"
    assert server.of("DELETE")[-1]["mcp-session-id"] == "s3"  # and it took leave


@pytest.mark.parametrize(
    ("said", "kind", "lost"),
    [
        (b"Bad Request: No valid session ID provided", "text/plain", True),
        (
            b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Session not found"}}',
            "application/json",
            True,
        ),
        (
            b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"no such session key"}}',
            "application/json",
            False,
        ),
    ],
)
def test_a_session_that_is_lost_by_the_word_of_a_bad_request_is_opened_again(
    said: bytes, kind: str, lost: bool
) -> None:
    opened: list[str] = []

    def play(request: Request) -> None:
        if request.what == "initialize":
            opened.append(f"s{len(opened) + 1}")
            legacy(request, opened[-1])
        elif request.what == "tools/call" and request.headers["mcp-session-id"] == "s1":
            request.reply(400, said, kind)
        elif request.what == "tools/call":
            request.text("in s2")
        else:
            legacy(request)

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        answer = far.call()
        if lost:
            assert text_of(answer) == "in s2"
        else:
            assert error_of(answer) == (-32000, "no such session key")
        assert far.end() == 0


def test_calls_that_meet_a_lost_session_all_wait_for_the_next_one() -> None:
    both, lost, opening = threading.Barrier(2), threading.Event(), threading.Event()
    opened: list[str] = []

    def play(request: Request) -> None:
        session = request.headers.get("mcp-session-id")
        if request.what == "initialize":
            opened.append(f"s{len(opened) + 1}")
            if len(opened) > 1:
                lost.set()
                assert opening.wait(BOUND_S)
            legacy(request, opened[-1])
        elif request.what == "tools/call" and session == "s1":
            if both.wait(BOUND_S):  # the other one hears of it while a new session is opened
                assert lost.wait(BOUND_S)
            request.reply(404)
        elif request.what == "tools/call":
            request.text(str(session))
        else:
            legacy(request)

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        calls = [far.send("tools/call", name="tool", arguments={}) for _ in range(2)]
        assert lost.wait(BOUND_S)
        calls.append(far.send("tools/call", name="tool", arguments={}))
        far.tell("notifications/roots/list_changed")
        server.wait_for("notifications/roots/list_changed")
        opening.set()
        answers: dict[Any, dict[str, Any]] = {}
        while len(answers) < len(calls):
            message = far.message()
            if "method" not in message:
                answers[message["id"]] = message
        assert [text_of(answers[one]) for one in calls] == ["s2"] * len(calls)
        assert opened == ["s1", "s2"]
        assert far.end() == 0


def test_a_lost_session_that_could_not_be_opened_again_is_by_the_next_call() -> None:
    opened: list[str] = []

    def play(request: Request) -> None:
        session = request.headers.get("mcp-session-id")
        if request.what == "initialize":
            opened.append(f"s{len(opened) + 1}")
            if opened[-1] == "s2":
                request.reply(502)
            else:
                legacy(request, opened[-1])
        elif request.what == "tools/call":
            known = session == "s3"
            request.text("in s3") if known else request.reply(404 if session else 400)
        else:
            legacy(request)

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        code, text = error_of(far.call())
        assert (code, "HTTP 502; it did not run" in text) == (NOT_REACHED, True)
        assert text_of(far.call()) == "in s3"
        assert far.end() == 0


@pytest.mark.parametrize("vain", [0, 1])
def test_a_session_that_comes_back_as_another_server_ends_the_worker(vain: int) -> None:
    opened: list[str] = []

    def play(request: Request) -> None:
        if request.what == "initialize" and opened:
            capabilities = {"prompts": {}}
            opened.append("another")
            request.result(protocolVersion=LEGACY, capabilities=capabilities, serverInfo={})
        elif request.what == "notifications/initialized" and 1 < len(opened) <= 1 + vain:
            request.reply(502)
        elif request.what == "initialize":
            opened.append("s1")
            legacy(request)
        elif request.what == "tools/call":
            request.reply(404)
        else:
            legacy(request)

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        for _ in range(1 + vain):
            assert error_of(far.call())[0] == UNAVAILABLE
        assert far.wait() == 75


def test_what_the_server_announces_is_heard_again_after_its_stream_broke() -> None:
    streams: list[int] = []

    def play(request: Request) -> None:
        if request.command != "GET":
            legacy(request)
            return
        streams.append(1)
        request.stream()
        params = {"n": len(streams)}
        request.event({"jsonrpc": "2.0", "method": "notifications/x", "params": params}, "e", 1)
        request.end_stream()

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        assert [far.message()["params"]["n"] for _ in range(2)] == [1, 2]
    assert server.of("GET")[1]["last-event-id"] == "e"


def test_a_subscription_that_broke_is_opened_again_before_changes_are_told() -> None:
    listened: list[int] = []

    def play(request: Request) -> None:
        if request.what != "subscriptions/listen":
            request.result(resultType="complete")
            return
        listened.append(1)
        if len(listened) == 2:  # away for a while: nobody is to ask it for lists
            request.reply(503)
            return
        request.stream()
        note = {"jsonrpc": "2.0", "method": "notifications/x", "params": {"n": len(listened)}}
        request.event(note)
        if len(listened) == 1:
            request.cut()
        else:
            request.server.closed.put(request.wait_closed())
            request.cut()

    with scripted(play) as server, worker(server) as far:
        wanted = {"toolsListChanged": True}
        request_id = far.send("subscriptions/listen", notifications=wanted, **ENVELOPE)
        told = [far.message() for _ in range(3)]
        assert [one["method"] for one in told] == [
            "notifications/x",
            "notifications/tools/list_changed",
            "notifications/x",
        ]
        assert told[2]["params"]["n"] == 3
        far.tell("notifications/cancelled", requestId=request_id)
        assert server.closed.get(timeout=20)


# ---- cancelling ----------------------------------------------------------------------------


def test_a_cancelled_legacy_call_is_told_and_its_connection_closed() -> None:
    def play(request: Request) -> None:
        if request.what == "ping":
            request.result()
        elif not legacy(request):
            request.server.closed.put(request.wait_closed())
            request.cut()

    with scripted(play) as server, worker(server) as far:
        far.handshake()
        request_id = far.send("tools/call", name="tool", arguments={})
        server.wait_for("tools/call")
        far.tell("notifications/cancelled", requestId=request_id)
        server.wait_for("notifications/cancelled")
        assert server.closed.get(timeout=20)
        assert far.ask("ping")  # it is alive; nothing came for the cancelled one


def test_a_cancelled_modern_call_is_its_closed_connection_alone() -> None:
    def play(request: Request) -> None:
        if request.what == "tools/call":
            request.server.closed.put(request.wait_closed())
            request.cut()
        else:
            request.result(resultType="complete")

    with scripted(play) as server, worker(server) as far:
        request_id = far.send("tools/call", name="tool", arguments={}, **ENVELOPE)
        server.wait_for("tools/call")
        far.tell("notifications/cancelled", requestId=request_id)
        assert server.closed.get(timeout=20)
        assert far.ask("tools/list", **ENVELOPE)["result"] == {"resultType": "complete"}
        assert server.of("notifications/cancelled") == []


# ---- what goes along -----------------------------------------------------------------------


def test_modern_requests_repeat_themselves_in_headers_and_have_no_session() -> None:
    schema = {
        "type": "object",
        "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
    }

    def play(request: Request) -> None:
        if request.what == "tools/list":
            request.result(tools=[{"name": "tool", "inputSchema": schema}])
        else:
            request.text("done")

    with scripted(play) as server, worker(server) as far:
        far.ask("tools/list", **ENVELOPE)
        far.ask("tools/call", name="tool", arguments={"region": "Zürich"}, **ENVELOPE)
        headers = server.of("tools/call")[0]
    assert headers["mcp-protocol-version"] == MODERN
    assert headers["mcp-method"] == "tools/call"
    assert headers["mcp-name"] == "tool"
    assert headers["mcp-param-region"] == "=?base64?WsO8cmljaA==?="
    assert "mcp-session-id" not in headers


def test_a_client_with_credentials_of_its_own_has_a_session_of_its_own() -> None:
    opened: list[str] = []

    def play(request: Request) -> None:
        if request.what == "initialize":
            opened.append(f"s{len(opened) + 1}")
            legacy(request, opened[-1])
        elif not legacy(request):
            headers = request.headers
            request.text(f"{headers['authorization']} in {headers['mcp-session-id']}")

    def secret(variable: str) -> dict[str, Any]:
        return {"secret_headers": {"authorization": [variable, "Bearer "]}}

    env = {"OWN": "everybody", "HERS": "alice"}
    settings = {"own": secret("OWN"), "clients": {"alice": secret("HERS")}}
    with scripted(play) as server, worker(server, env, **settings) as far:
        far.handshake()
        assert text_of(far.call()) == "Bearer everybody in s1"
        assert text_of(far.call("alice")) == "Bearer alice in s2"
        assert text_of(far.call()) == "Bearer everybody in s1"
        assert far.end() == 0
        bodies = json.dumps([message for *_, message in server.seen])
        assert '"client":' not in bodies.replace(" ", "")  # the tag stays between the two of us
        assert {h["mcp-session-id"] for h in server.of("DELETE")} == {"s1", "s2"}


def test_questions_with_the_same_id_in_two_sessions_are_answered_each_to_its_own() -> None:
    answered: list[tuple[str, Any]] = []

    def play(request: Request) -> None:
        session = request.headers.get("mcp-session-id", "")
        if request.what == "initialize":
            legacy(request, request.headers["authorization"].removeprefix("Bearer "))
        elif "result" in request.message:
            answered.append((session, request.message))
            request.reply(202)
        elif not legacy(request):
            request.stream()
            ask = {"jsonrpc": "2.0", "id": 0, "method": "roots/list"}
            request.event(ask)
            while not any(who == session for who, _ in answered):
                if request.wfile.closed:
                    return
                request.chunk(b": waiting\n\n")
            request.event({"jsonrpc": "2.0", "id": request.message["id"], **answering(session)})
            request.end_stream()

    def secret(variable: str) -> dict[str, Any]:
        return {"secret_headers": {"authorization": [variable, "Bearer "]}}

    env = {"OWN": "ours", "HERS": "hers"}
    settings = {"own": secret("OWN"), "clients": {"alice": secret("HERS")}}
    with scripted(play) as server, worker(server, env, **settings) as far:
        far.handshake()
        far.send("tools/call", name="tool", arguments={})
        first = far.message()
        far.send("tools/call", "alice", name="tool", arguments={})
        second = far.message()
        assert first["method"] == second["method"] == "roots/list"
        assert first["id"] != second["id"]
        for question, roots in ((second, "b"), (first, "a")):
            answer = {"jsonrpc": "2.0", "id": question["id"], "result": {"roots": roots}}
            far.write(json.dumps(answer).encode())
        assert {text_of(far.message()) for _ in range(2)} == {"ours", "hers"}
    found = {session: (one["id"], one["result"]["roots"]) for session, one in answered}
    assert found == {"ours": (0, "a"), "hers": (0, "b")}
