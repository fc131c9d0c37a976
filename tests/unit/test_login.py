"""What a login may be led to by what foreign servers say of themselves."""

import asyncio
import errno
import gzip
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import httpx2
import pytest
from mcp.client.auth import OAuthClientProvider, OAuthFlowError
from mcp.shared.auth import OAuthMetadata, OAuthToken
from pydantic import AnyHttpUrl

from vsm.configuration.config import Integration, load_config
from vsm.errors import VsmError
from vsm.install.login import _Flow, _listen, _Transport, log_in


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


def get(url: str, *allowed: str) -> str:
    """The text of the error, or "" where there was an answer."""

    async def run() -> str:
        async with httpx2.AsyncClient(transport=_Transport(allowed, ""), trust_env=False) as client:
            try:
                await client.get(url)
            except httpx2.HTTPError as error:
                return str(error)
            return ""

    return asyncio.run(run())


def test_an_address_inside_is_not_connected_to(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.setblocking(False)
    assert "loopback" in get(f"https://127.0.0.1:{port}/.well-known/x")
    assert "localhost is this machine" in get(f"https://localhost:{port}/.well-known/x")
    assert "localhost is this machine" in get(f"https://localhost:{port}/.well-known/x", "10.0.0.5")
    assert "metadata" in get("https://169.254.169.254/latest")
    with pytest.raises(BlockingIOError):  # nobody came
        listener.accept()


def test_what_is_not_encrypted_is_not_asked(listener: socket.socket) -> None:
    assert "is not https" in get(f"http://example.com:{listener.getsockname()[1]}/")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_that_the_operator_allowed_is_asked(listener: socket.socket, host: str) -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    assert get(f"http://{host}:{listener.getsockname()[1]}/", "127.0.0.1") == ""
    thread.join()


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"200 OK\r\nServer: caf\xe9\r\nContent-Length: 0", ""),
        (b"101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade", "another protocol"),
    ],
)
def test_an_odd_answer_is_taken_or_refused_in_words(
    listener: socket.socket, head: bytes, said: str
) -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 " + head + b"\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    text = get(f"http://127.0.0.1:{listener.getsockname()[1]}/", "127.0.0.1")
    assert said in text
    assert bool(text) is bool(said)
    thread.join()


def flow(tmp_path: Path, more: str = "") -> tuple[Integration, _Flow]:
    tmp_path.chmod(0o755)
    text = f'[integrations.far]\nurl = "https://x.example/"\noauth = {{}}\n{more}'
    (tmp_path / "vsm.toml").write_text(text)
    integration = load_config(tmp_path / "vsm.toml").integrations["far"]
    return integration, _Flow(integration, "", "", lambda _: None, "")


@pytest.mark.parametrize(
    ("head", "status", "answered"),
    [
        ("GET /callback?code=c&state=s HTTP/1.1\r\n\r\n", "200 OK", True),
        ("GET /callback?error=access_denied&state=s HTTP/1.1\r\n\r\n", "200 OK", True),
        ("GET /callback?code=c&state=t HTTP/1.1\r\n\r\n", "400 Bad Request", False),
        ("GET /callback?code=c&state=%C3%A9 HTTP/1.1\r\n\r\n", "400 Bad Request", False),
        ("GET /callback?error=access_denied HTTP/1.1\r\n\r\n", "400 Bad Request", False),
        ("GET /callback?state=s HTTP/1.1\r\n\r\n", "400 Bad Request", False),
        ("GET /other?code=c HTTP/1.1\r\n\r\n", "404 Not Found", False),
        ("GET //[/callback HTTP/1.1\r\n\r\n", "404 Not Found", False),
        ("POST /callback?code=c HTTP/1.1\r\n\r\n", "404 Not Found", False),
        ("nonsense\r\n\r\n", "404 Not Found", False),
    ],
)
def test_only_the_redirect_of_the_login_is_an_answer(
    tmp_path: Path, head: str, status: str, answered: bool
) -> None:
    async def run() -> None:
        _, one = flow(tmp_path)
        one._answer = asyncio.get_running_loop().create_future()
        await one._show_address("https://y.example/authorize?state=theirs&state=s")
        assert one._judge(head)[0] == status
        assert one._answer.done() is answered
        if answered:
            assert one._judge(head)[0] == "409 Conflict"
            one._answer.exception()

    asyncio.run(run())


def test_nothing_is_an_answer_before_there_is_a_question(tmp_path: Path) -> None:
    async def run() -> None:
        _, one = flow(tmp_path)
        one._answer = asyncio.get_running_loop().create_future()
        assert one._judge("GET /callback?code=c&state= HTTP/1.1\r\n\r\n")[0] == "400 Bad Request"
        with pytest.raises(OAuthFlowError, match="fragment"):
            await one._show_address("https://y.example/#?state=s")
        assert not one._answer.done()

    asyncio.run(run())


def test_a_login_ends_although_a_browser_holds_a_connection_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From Python 3.12 on a server waits for these where it is told to wait."""

    async def wait_closed(_: object) -> None:
        await asyncio.get_running_loop().create_future()

    def ended(*_: object) -> None:
        raise OAuthFlowError("it ended")

    monkeypatch.setattr("asyncio.base_events.Server.wait_closed", wait_closed)
    _, one = flow(tmp_path)
    monkeypatch.setattr(one, "_provider", ended)
    with pytest.raises(OAuthFlowError, match="it ended"):
        asyncio.run(asyncio.wait_for(one.run(), 10))


def test_what_a_server_packed_is_not_unpacked(listener: socket.socket) -> None:
    packed = gzip.compress(b" " * (4 << 20))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(head.encode() + packed)

    async def run() -> bytes:
        transport = _Transport(("127.0.0.1",), "")
        async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
            return (await client.get(f"http://127.0.0.1:{listener.getsockname()[1]}/")).content

    thread = threading.Thread(target=answer)
    thread.start()
    assert asyncio.run(run()) == packed
    thread.join()


def test_a_login_that_nobody_configured_is_refused(tmp_path: Path) -> None:
    integration, _ = flow(tmp_path)
    with pytest.raises(VsmError, match=r"clients\.bob"):
        log_in(integration, "bob", lambda _: None)


@pytest.mark.parametrize(
    ("answers", "said", "followed"),
    [
        (
            ("307 Temporary Redirect\r\nLocation: /mcp/", "204 No Content"),
            "it asked for no login, and answered HTTP 204",
            [b"/mcp", b"/mcp/"],
        ),
        (
            ("302 Found\r\nLocation: /login",),
            "it redirects to http://127.0.0.1:.*/login",
            [b"/mcp"],
        ),
        (
            ("308 Permanent Redirect\r\nLocation: https://y.example/mcp",),
            "it redirects to https://y.example/mcp: write that URL",
            [b"/mcp"],
        ),
        (
            ("307 Temporary Redirect\r\nLocation: /mcp",) * 3,
            "it redirects more than 3 times",
            [b"/mcp"] * 3,
        ),
    ],
)
def test_a_redirect_within_the_origin_is_followed_before_the_login(
    tmp_path: Path,
    listener: socket.socket,
    answers: tuple[str, ...],
    said: str,
    followed: list[bytes],
) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    asked = []

    def answer() -> None:
        for answered in answers:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(65536).split()[1])
                head = f"HTTP/1.1 {answered}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode())

    thread = threading.Thread(target=answer)
    thread.start()
    (tmp_path / "vsm.toml").write_text(
        f'[integrations.far]\nurl = "{url}/mcp"\naddresses = ["127.0.0.1"]\noauth = {{}}\n'
    )
    tmp_path.chmod(0o755)
    integration = load_config(tmp_path / "vsm.toml").integrations["far"]
    listener.settimeout(20)
    with pytest.raises(VsmError, match=said):
        log_in(integration, "", lambda _: None)
    thread.join()
    assert asked == followed


def test_a_login_that_fails_shows_no_token_and_no_traceback(tmp_path: Path) -> None:
    """In a process of its own: here the tests' own handler takes what is logged."""
    flow(tmp_path)
    code = (
        "import asyncio, httpx2, sys\n"
        "from pathlib import Path\n"
        "from mcp.client.auth.utils import handle_token_response_scopes\n"
        "from mcp.client.auth import oauth2\n"
        "from vsm.configuration.config import load_config\n"
        "from vsm.errors import VsmError\n"
        "from vsm.install import login\n"
        "async def run(self):\n"
        "    answer = httpx2.Response(200, content=b'access_token=s3cret&token_type=bearer')\n"
        "    try:\n"
        "        await handle_token_response_scopes(answer)\n"
        "    except Exception:\n"
        "        oauth2.logger.exception('OAuth flow error')\n"
        "        raise\n"
        "login._Flow.run = run\n"
        "far = load_config(Path(sys.argv[1])).integrations['far']\n"
        "try:\n"
        "    login.log_in(far, '', print)\n"
        "except VsmError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "vsm.toml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "Invalid JSON: expected value" in done.stdout
    assert "s3cret" not in done.stdout
    assert "pydantic.dev" not in done.stdout


def test_what_is_asked_for_is_json(listener: socket.socket) -> None:
    asked: list[bytes] = []

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            asked.append(connection.recv(65536))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def run() -> None:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/token"
        request = httpx2.Request("POST", url, data={"code": "c"})  # as the SDK makes it
        await _Transport(("127.0.0.1",), "").handle_async_request(request)

    thread = threading.Thread(target=answer)
    thread.start()
    asyncio.run(run())
    thread.join()
    assert b"\r\naccept: application/json\r\n" in asked[0]


def test_tokens_that_are_good_for_ever_and_ever_fail_the_login_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(one: _Flow) -> None:
        provider = one._provider("http://127.0.0.1:1/callback")
        token = OAuthToken(access_token="t", expires_in=10**400)
        provider.context.update_token_expiry(token)  # as the flow does it

    monkeypatch.setattr(_Flow, "run", run)
    with pytest.raises(VsmError, match="the login failed"):
        log_in(flow(tmp_path)[0], "", lambda _: None)


@pytest.mark.parametrize(
    ("content", "why"), [(None, "cannot be read: No such file"), ("no PEM", "holds no cert")]
)
def test_authorities_that_cannot_be_read_are_named(
    tmp_path: Path, content: str | None, why: str
) -> None:
    if content:
        (tmp_path / "ca.pem").write_text(content)
    integration, _ = flow(tmp_path, 'ca_file = "ca.pem"\n')
    with pytest.raises(VsmError, match=why) as caught:
        log_in(integration, "", lambda _: None)
    assert str(tmp_path / "ca.pem") in caught.value.where


def test_a_port_that_cannot_be_had_says_why(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(VsmError, match="is taken"):
        _listen(listener.getsockname()[1])

    def forbidden(_: object) -> None:  # what a port below 1024 is for most users
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(socket, "create_server", forbidden)
    with pytest.raises(VsmError, match="cannot be had: Permission denied"):
        _listen(80)


def provider_of(tmp_path: Path, oauth: str, scope: str = "") -> OAuthClientProvider:
    """The SDK's flow as the configuration and the command line have it."""
    (tmp_path / "secret").write_text("s3cret")
    (tmp_path / "secret").chmod(0o600)
    tmp_path.chmod(0o755)
    text = f'[integrations.far]\nurl = "https://x.example/"\noauth = {{ {oauth} }}\n'
    (tmp_path / "vsm.toml").write_text(text)
    integration = load_config(tmp_path / "vsm.toml").integrations["far"]
    assert integration.remote is not None
    wanted = " ".join(filter(None, (integration.remote.oauth[""].scope, scope)))
    secret = "s3cret" if "client_secret" in oauth else ""
    one = _Flow(integration, "", secret, lambda _: None, wanted)
    return one._provider("http://127.0.0.1:1/callback")


@pytest.mark.parametrize(
    ("oauth", "more", "asked"),
    [
        ("", "", "proposed"),
        ('scope = "read"', "", "read"),
        ("", "write", "write"),
        ('scope = "read"', "write", "read write"),
    ],
)
def test_scope_that_somebody_asked_for_goes_before_what_the_server_proposes(
    tmp_path: Path, oauth: str, more: str, asked: str
) -> None:
    provider = provider_of(tmp_path, oauth, more)
    provider.context.client_metadata.scope = "proposed"  # as the flow does it
    assert provider.context.client_metadata.scope == asked


@pytest.mark.parametrize(
    ("taken", "shown"),
    [
        (None, "client_secret_basic"),  # RFC 8414, section 2
        (["client_secret_basic", "client_secret_post"], "client_secret_basic"),
        (["client_secret_post"], "client_secret_post"),
    ],
)
def test_secret_is_shown_in_the_way_that_the_server_takes(
    tmp_path: Path, taken: list[str] | None, shown: str
) -> None:
    oauth = f'client_id = "me", client_secret = {{ file = "{tmp_path}/secret" }}'
    provider = provider_of(tmp_path, oauth)
    known = asyncio.run(provider.context.storage.get_client_info())
    metadata = OAuthMetadata(
        issuer=AnyHttpUrl("https://y.example"),
        authorization_endpoint=AnyHttpUrl("https://y.example/authorize"),
        token_endpoint=AnyHttpUrl("https://y.example/token"),
        token_endpoint_auth_methods_supported=taken,
    )
    provider.context.client_info, provider.context.oauth_metadata = known, metadata

    async def agreed() -> tuple[str, str]:
        return "code", "verifier"

    provider._perform_authorization_code_grant = agreed
    request = asyncio.run(provider._perform_authorization())
    body = parse_qs(request.content.decode())
    assert ("authorization" in request.headers) is (shown == "client_secret_basic")
    assert ("client_secret" in body) is (shown == "client_secret_post")
