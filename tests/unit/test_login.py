"""What a login may be led to by what foreign servers say of themselves."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from vsm.configuration.config import Integration, load_config
from vsm.errors import VsmError
from vsm.install.login import _Flow, _Transport, log_in


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
    for host in ("127.0.0.1", "localhost"):
        assert "loopback" in get(f"https://{host}:{port}/.well-known/x")
    assert "metadata" in get("https://169.254.169.254/latest")
    with pytest.raises(BlockingIOError):  # nobody came
        listener.accept()


def test_what_is_not_encrypted_is_not_asked(listener: socket.socket) -> None:
    assert "is not https" in get(f"http://example.com:{listener.getsockname()[1]}/")


def test_an_address_that_the_operator_allowed_is_asked(listener: socket.socket) -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    assert get(f"http://127.0.0.1:{listener.getsockname()[1]}/", "127.0.0.1") == ""
    thread.join()


def flow(tmp_path: Path) -> tuple[Integration, _Flow]:
    tmp_path.chmod(0o755)
    text = '[integrations.far]\nurl = "https://x.example/"\noauth = {}\n'
    (tmp_path / "vsm.toml").write_text(text)
    integration = load_config(tmp_path / "vsm.toml").integrations["far"]
    return integration, _Flow(integration, "", "", lambda _: None)


@pytest.mark.parametrize(
    ("head", "status", "answered"),
    [
        ("GET /callback?code=c&state=s HTTP/1.1\r\n\r\n", "200 OK", True),
        ("GET /callback?error=access_denied HTTP/1.1\r\n\r\n", "200 OK", True),
        ("GET /callback?state=s HTTP/1.1\r\n\r\n", "400 Bad Request", False),
        ("GET /other?code=c HTTP/1.1\r\n\r\n", "404 Not Found", False),
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
        assert one._judge(head)[0] == status
        assert one._answer.done() is answered
        if answered:
            assert one._judge(head)[0] == "409 Conflict"
            one._answer.exception()

    asyncio.run(run())


def test_a_login_that_nobody_configured_is_refused(tmp_path: Path) -> None:
    integration, _ = flow(tmp_path)
    with pytest.raises(VsmError, match=r"clients\.bob"):
        log_in(integration, "bob", lambda _: None)
