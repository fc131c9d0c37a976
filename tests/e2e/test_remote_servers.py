"""A real `vsm up` before real remote servers on loopback: the SDK's, in both eras."""

import asyncio
import contextlib
import json
import queue
import re
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import http_transport
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from remote_rig import Request, legacy, scripted
from running import VSM, Running, running

SERVER = str(Path(__file__).resolve().parents[1] / "servers/remote_sdk.py")
BOUND_S = 30.0
ECHO = str(Path(__file__).resolve().parents[1] / "servers/echo_legacy.py")
SECRET = "a-secret-header-of-the-operator"
ERAS = ("legacy", "modern")

pytestmark = pytest.mark.isolation


class Remote:
    """The server's process; what it says of requests is read line by line."""

    def __init__(self, port: int, *words: str) -> None:
        self.kept = socket.socket()  # bound, so that nobody else gets the port while it is away
        self.kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.kept.bind(("127.0.0.1", port))
        self.process = subprocess.Popen(
            [sys.executable, SERVER, str(self.kept.getsockname()[1]), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.told: queue.Queue[dict[str, Any]] = queue.Queue()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        self.port = int(self.wait_for("listening"))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                self.told.put(json.loads(line))

    def wait_for(self, key: str) -> Any:
        while key not in (said := self.told.get(timeout=BOUND_S)):
            pass
        return said[key]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(test_leaves_nothing: None) -> Iterator[Any]:
    """Starts servers that end with the test."""
    del test_leaves_nothing
    started: list[Remote] = []

    def begin(*words: str, port: int = 0) -> Remote:
        started.append(Remote(port, *words))
        return started[-1]

    yield begin
    for one in started:
        if one.process.poll() is None:
            one.end()
        one._thread.join()
        one.kept.close()


def write(folder: Path, port: int, more: str = "", tail: str = "", scheme: str = "http") -> Path:
    (folder / "secret").write_text(SECRET)
    path = folder / "vsm.toml"
    path.write_text(
        f'[integrations.far]\nurl = "{scheme}://127.0.0.1:{port}/mcp"\n'
        f'addresses = ["127.0.0.1"]\n{more}\n{tail}\n'
    )
    folder.chmod(0o755)
    return path


def state_of(vsm: Running) -> dict[str, Any]:
    return next(row for row in vsm.status()["workers"] if row["name"] == "far")


def wait_state(vsm: Running, *wanted: str) -> None:
    end = time.monotonic() + BOUND_S
    while (row := state_of(vsm))["state"] not in wanted:
        assert time.monotonic() < end, f"{row}\n{vsm.log()}"
        select.select([], [], [], 0.1)


def call(vsm: Running, tool: str, *words: str, **arguments: object) -> str:
    done = vsm.vsm("call", *words, "far", tool, json.dumps(arguments))
    return done.stdout.removeprefix("> ") + done.stderr


@pytest.mark.parametrize("era", ERAS)
def test_a_remote_server_behaves_as_a_local_one(start: Any, tmp_path: Path, era: str) -> None:
    far = start()
    headers = 'headers = { X-Team = "acme", X-Api-Key = { file = "secret" } }'
    config = write(tmp_path, far.port, f'era = "{era}"\ncall_timeout_s = 3\n{headers}')

    async def use(vsm: Running) -> None:
        progress: list[float] = []
        changed = asyncio.Event()

        async def told(message: Any) -> None:
            if "list_changed" in str(getattr(message, "method", "")):
                changed.set()

        async def step(done: float, _total: float | None, _message: str | None) -> None:
            progress.append(done)

        client = Client(http_transport(vsm.url, vsm.token), mode="legacy", message_handler=told)
        async with client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert {"far__heard", "far__steps", "far__sleep", "far__grow"} <= names
            said = await client.call_tool("far__heard", {})
            heard = json.loads(said.content[0].text)
            assert heard["x-team"] == "acme"
            assert heard["x-api-key"] == SECRET
            assert "authorization" not in heard  # the client showed a token; it is vsm's
            assert ("mcp-session-id" in heard) is (era == "legacy")
            assert ("mcp-method" in heard) is (era == "modern")
            await client.call_tool("far__steps", {"count": 3}, progress_callback=step)
            assert progress == [0, 1, 2]
            assert (await client.read_resource("mem://one")).contents[0].text == "one"
            prompt = await client.get_prompt("far__greet", {})
            assert prompt.messages[0].content.text == "hello"
            await client.call_tool("far__grow", {})
            async with asyncio.timeout(BOUND_S):
                await changed.wait()
            assert "far__grown" in {tool.name for tool in (await client.list_tools()).tools}

    with running(config) as vsm:
        wait_state(vsm, "ready")
        asyncio.run(use(vsm))
        late = call(vsm, "sleep", seconds=60)
        assert "did not answer within 3 s" in late
        far.wait_for("cancelled")
        row = state_of(vsm)
        layers = {layer["name"]: layer for layer in row["layers"]}
        assert row["tier"] == "namespaced"
        assert f"egress to 127.0.0.1:{far.port};" in layers["network"]["detail"]
        assert row["egress"][f"127.0.0.1:{far.port}"]["allowed"] > 0
        status = vsm.vsm("status", "--json").stdout + vsm.vsm("logs", "far").stdout
        assert vsm.stop() == 0
        kept = [path.read_bytes() for path in (vsm.folder / "state").rglob("*") if path.is_file()]
        assert SECRET not in vsm.log() + status
        assert not any(SECRET.encode() in content for content in kept)
        assert "in clear" in vsm.log()


def test_a_server_that_was_away_is_found_again_and_calls_say_whether_they_ran(
    start: Any, tmp_path: Path
) -> None:
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    words += ["-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=far"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(words, check=True, capture_output=True)
    far = start("cert", certificate, key)
    back_off = "restart.backoff_initial_s = 0.1\nrestart.backoff_max_s = 0.5"
    breaker = "resilience.failures = 2\nresilience.open_s = 30"
    more = f'ca_file = "cert.pem"\n{back_off}\n{breaker}\nresilience.health_interval_s = 0'
    more += '\nreplace = "stop-first"'  # else the one that was there stays
    with running(write(tmp_path, far.port, more, scheme="https")) as vsm:
        wait_state(vsm, "ready")
        assert json.loads(call(vsm, "heard"))["host"].startswith("127.0.0.1")
        far.end()
        assert "it did not run" in call(vsm, "heard")
        assert "it did not run" in call(vsm, "heard")
        assert "failed too often, so calls are refused" in call(vsm, "heard")
        quiet = subprocess.DEVNULL
        restart = subprocess.Popen(
            [VSM, "restart", "far"], env=vsm.environment, stdout=quiet, stderr=quiet
        )
        end = time.monotonic() + BOUND_S
        while state_of(vsm)["restarts"] < 8:  # far more crashes than make a quarantine
            assert time.monotonic() < end, vsm.log()
            select.select([], [], [], 0.1)
        assert state_of(vsm)["state"] in {"backing_off", "starting", "stopping"}
        far = start("cert", certificate, key, port=far.port)
        wait_state(vsm, "ready")
        restart.wait(BOUND_S)
        assert vsm.stop() == 0


def test_an_idle_server_that_went_away_is_noticed(start: Any, tmp_path: Path) -> None:
    far = start()
    with running(write(tmp_path, far.port, "resilience.health_interval_s = 1")) as vsm:
        wait_state(vsm, "ready")
        far.end()
        wait_state(vsm, "backing_off", "starting")
        assert "a health check failed" in vsm.log()
        assert vsm.stop() == 0


def test_a_certificate_that_nobody_vouches_for_is_not_taken(start: Any, tmp_path: Path) -> None:
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key]
    words += ["-out", certificate, "-days", "2", "-subj", "/CN=far"]
    subprocess.run(words, check=True, capture_output=True)
    far = start("cert", certificate, key)
    with running(write(tmp_path, far.port, scheme="https")) as vsm:
        wait_state(vsm, "backing_off")
        assert "its certificate does not hold" in state_of(vsm)["detail"]
        assert vsm.stop() == 0


def log_in(vsm: Running, config: Path, *words: str) -> tuple[str, str]:
    """Agree as a person with a browser would; returns what the command printed."""
    login = subprocess.Popen(
        [VSM, "login", "far", *words, "--config", str(config)],
        env=vsm.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with login:
        assert login.stderr is not None
        address = ""
        while not (found := re.search(r"http://\S+/authorize\S+", address)):
            line = login.stderr.readline()
            assert line, "it ended without an address"
            address += line
        with urllib.request.urlopen(found[0], timeout=BOUND_S) as page:
            assert "Done." in page.read().decode()
        out, error = login.communicate(timeout=BOUND_S)
    assert login.returncode == 0, error
    return out, error


def test_a_login_gives_tokens_that_are_renewed_and_seen_by_nobody(
    start: Any, tmp_path: Path
) -> None:
    far = start("oauth")
    config = write(tmp_path, far.port, "oauth = {}")
    with running(config) as vsm:
        wait_state(vsm, "quarantined")
        assert "vsm login far" in vsm.vsm("logs", "far").stdout
        out, error = log_in(vsm, config)
        wait_state(vsm, "ready")
        first = json.loads(call(vsm, "heard"))["authorization"]
        assert re.fullmatch(r"Bearer access-[0-9a-f]{32}", first)
        select.select([], [], [], 2.5)  # longer than a token lives
        second = json.loads(call(vsm, "heard"))["authorization"]
        assert first != second
        files = list((vsm.folder / "state").rglob("oauth*.json"))
        assert [oct(path.stat().st_mode & 0o777) for path in files] == ["0o600"]
        assert vsm.vsm("restart", "far").returncode == 0
        assert "access-" in call(vsm, "heard")  # the renewed ones were kept
        said = vsm.vsm("status", "--json").stdout + vsm.vsm("logs", "far").stdout
        assert vsm.stop() == 0
        tokens = re.compile(r"(access|refresh)-[0-9a-f]{32}")
        assert not tokens.search(vsm.log() + said + out + error)
        for path in (vsm.folder / "state").rglob("*"):
            if path.is_file() and path.name != "oauth.json":
                assert not tokens.search(path.read_bytes().decode("latin-1")), path


def test_a_login_says_at_once_why_the_server_does_not_serve_with_it(
    start: Any, tmp_path: Path
) -> None:
    far = start("oauth", "broken")
    config = write(tmp_path, far.port, "oauth = {}")
    with running(config) as vsm:
        wait_state(vsm, "quarantined")
        _, error = log_in(vsm, config)
        assert "far: does not serve: backing_off: " in error
        assert "it answered HTTP 500" in error
        assert "`vsm start far` tries at once" in error
        again = vsm.vsm("start", "far")
        assert "far: backing_off: " in again.stdout
        assert "it answered HTTP 500" in again.stdout
        assert vsm.stop() == 0


@pytest.mark.parametrize("status", [401, 403])
def test_a_login_that_allows_too_little_says_what_to_log_in_for(
    test_leaves_nothing: None, tmp_path: Path, status: int
) -> None:
    del test_leaves_nothing

    def play(request: Request) -> None:
        challenge = 'Bearer error="insufficient_scope", scope="notes:read notes:write"'
        request.reply(status, WWW_Authenticate=challenge)

    with (
        scripted(play) as server,
        running(write(tmp_path, server.port, "oauth = {}")) as vsm,
    ):
        wait_state(vsm, "quarantined")
        command = "vsm login far --scope 'notes:read notes:write'"
        assert command in state_of(vsm)["detail"]
        assert command in vsm.vsm("status").stdout
        refused = call(vsm, "heard")
        assert command in refused
        assert vsm.stop() == 0


def test_each_client_is_known_by_its_own_login(start: Any, tmp_path: Path) -> None:
    far = start("oauth")
    more = "oauth = {}\nclients.alice.oauth = {}\nclients.bob.oauth = {}"
    config = write(tmp_path, far.port, more, "[clients.alice]\n[clients.bob]\n[clients.carol]\n")
    issued: dict[str, str] = {}

    def whose(authorization: str) -> str:
        """The client that the server registered for the login that a token came from."""
        token = authorization.removeprefix("Bearer ")
        while token not in issued:
            said = far.told.get(timeout=BOUND_S)
            if "issued" in said:
                issued[said["issued"]] = said["to"]
        return issued[token]

    async def heard(vsm: Running, name: str) -> str:
        parameters = StdioServerParameters(
            command=VSM, args=["connect", "--client", name], env=dict(vsm.environment)
        )
        async with Client(stdio_client(parameters, errlog=sys.stderr)) as client:
            try:
                said = await client.call_tool("far__heard", {})
            except MCPError as error:
                return str(error)
            return str(json.loads(said.content[0].text)["authorization"])

    def ask(vsm: Running, name: str) -> str:
        return asyncio.run(heard(vsm, name))

    with running(config) as vsm:
        wait_state(vsm, "quarantined")
        log_in(vsm, config)
        wait_state(vsm, "ready")
        log_in(vsm, config, "--client", "alice")
        wait_state(vsm, "ready")
        users = {name: whose(ask(vsm, name)) for name in ("alice", "carol")}
        assert users["alice"] != users["carol"]
        assert "vsm login far --client bob" in ask(vsm, "bob")  # never by another's
        log_in(vsm, config, "--client", "bob")
        wait_state(vsm, "ready")
        users["bob"] = whose(ask(vsm, "bob"))
        assert len(set(users.values())) == 3
        select.select([], [], [], 2.5)  # longer than a token lives
        assert {name: whose(ask(vsm, name)) for name in users} == users
        assert (
            vsm.vsm(
                "login", "far", "--client", "alice", "--forget", "--config", str(config)
            ).returncode
            == 0
        )
        assert vsm.vsm("restart", "far").returncode == 0
        wait_state(vsm, "ready")
        assert "replacement begun" not in vsm.log()  # two would take each other's tokens
        assert "vsm login far --client alice" in ask(vsm, "alice")
        assert whose(ask(vsm, "bob")) == users["bob"]
        assert vsm.stop() == 0
        assert not re.search(r"(access|refresh)-[0-9a-f]{32}", vsm.log())


@pytest.mark.parametrize("era", ERAS)
def test_a_client_with_credentials_of_its_own_is_known_by_them(
    start: Any, tmp_path: Path, era: str
) -> None:
    far = start()
    (tmp_path / "hers").write_text("token-of-alice")
    more = f'era = "{era}"\nbearer = {{ file = "secret" }}\nclients.alice.bearer.file = "hers"'
    config = write(tmp_path, far.port, more, "[clients.alice]\n[clients.bob]\n")

    async def authorization(vsm: Running, *words: str) -> str:
        parameters = StdioServerParameters(
            command=VSM, args=["connect", *words], env=dict(vsm.environment)
        )
        async with Client(stdio_client(parameters, errlog=sys.stderr)) as client:
            said = await client.call_tool("far__heard", {})
            found: str = json.loads(said.content[0].text)["authorization"]
            return found

    with running(config) as vsm:
        wait_state(vsm, "ready")
        for _ in range(2):
            hers = asyncio.run(authorization(vsm, "--client", "alice"))
            assert hers == "Bearer token-of-alice"
            assert asyncio.run(authorization(vsm, "--client", "bob")) == f"Bearer {SECRET}"
        assert vsm.stop() == 0
        assert "token-of-alice" not in vsm.log()


def test_a_reload_adds_moves_and_removes_a_remote_server(start: Any, tmp_path: Path) -> None:
    one, other = start(), start()
    config = write(tmp_path, one.port)
    with running(config) as vsm:
        wait_state(vsm, "ready")
        unchanged = vsm.vsm("reload", "--json")
        assert json.loads(unchanged.stdout)["changes"] == []
        write(tmp_path, other.port)
        moved = json.loads(vsm.vsm("reload", "--json").stdout)["changes"]
        assert [change["name"] for change in moved] == ["far"]
        wait_state(vsm, "ready")
        assert json.loads(call(vsm, "heard"))["host"] == f"127.0.0.1:{other.port}"
        config.write_text("")
        assert json.loads(vsm.vsm("reload", "--json").stdout)["changes"][0]["name"] == "far"
        assert "no such integration" in call(vsm, "heard")
        assert vsm.stop() == 0


def misbehave(request: Request) -> None:
    """A tool for each way; whatever else it is asked, before the handshake too, is cut short."""
    mode = request.message.get("params", {}).get("name")
    if legacy(request):
        return
    if request.what == "tools/list":
        names = ("endless", "huge", "html", "cut", "away", "broken")
        request.result(tools=[{"name": n, "inputSchema": {"type": "object"}} for n in names])
    elif mode == "huge":
        request.reply(body=b'{"result":"' + b"x" * (12 << 20) + b'"}')
    elif mode == "html":
        request.reply(body=b"<p>sorry</p>", kind="text/html")
    elif mode == "away":
        request.reply(302, Location="https://evil.example/mcp")
    else:
        request.stream()
        if mode == "broken":
            request.event("{no json")
            request.end_stream()
        for _ in range(512 if mode == "endless" else 0):
            request.chunk(b"x" * 65536)
        request.cut()


def test_a_hostile_server_fails_its_own_calls_and_nobody_elses(
    test_leaves_nothing: None, tmp_path: Path
) -> None:
    del test_leaves_nothing

    said = {
        "endless": "a line of more than 8388608 bytes",
        "huge": "larger than 8388608 bytes",
        "html": "answered with text/html where JSON or events belong",
        "cut": "ended within an answer; it may have run",
        "away": "redirects to https://evil.example, which is not followed",
        "broken": "ended before the answer; it may have run",
    }
    local = f'[integrations.near]\ncommand = ["/usr/bin/python3", "{ECHO}"]\n'
    local += f'read = ["{Path(ECHO).parent}"]\nprofile = "python-server"\n'
    with scripted(misbehave) as server:
        more = "resilience.failures = 0\ntrust = 'off'"
        with running(write(tmp_path, server.port, more, local)) as vsm:
            wait_state(vsm, "ready")
            pid = state_of(vsm)["pid"]
            for tool, text in said.items():
                assert text in call(vsm, tool)
                near = vsm.vsm("call", "near", "echo", '{"text": "still here"}')
                assert "still here" in near.stdout
            assert state_of(vsm)["pid"] == pid  # it took no restart
            assert vsm.stop() == 0
