"""Renewing the tokens of a login, at an endpoint that answers as it likes."""

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from vsm.remote import tokens
from vsm.remote.door import Door, Room
from vsm.remote.http_client import HttpClient, HttpError, Origin
from vsm.remote.tokens import StoredTokens, Tokens

ANSWER = b'{"access_token":"new","refresh_token":"next","token_type":"Bearer"}'
GENEROUS_S = 60.0


def keep_expired(path: Path, endpoint: str, expires_at: float = 0.0) -> None:
    expired = Tokens(
        access_token="old",
        token_endpoint=endpoint,
        client_id="me",
        refresh_token="first",
        expires_at=expires_at,
    )
    path.write_bytes(msgspec.json.encode(expired))


async def renew(
    path: Path, answer: bytes | None, status: bytes = b"200 OK", expires_at: float = 0.0
) -> str:
    """The new token of an expired login, from an endpoint that answers so, or never (None)."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is not None:
            head = b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, len(answer))
            writer.write(head + answer)
        await reader.read()
        writer.close()
        gone.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        keep_expired(path, f"http://127.0.0.1:{port}/token", expires_at)
        stored = StoredTokens(str(path), lambda origin: HttpClient(origin, None))
        async with asyncio.timeout(GENEROUS_S):
            try:
                return await stored.token()
            finally:
                await gone.wait()


def test_an_expired_token_is_renewed_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "oauth.json"
    assert asyncio.run(renew(path, ANSWER)) == "new"
    kept = msgspec.json.decode(path.read_bytes(), type=Tokens)
    assert (kept.access_token, kept.refresh_token) == ("new", "next")


@pytest.mark.parametrize("more", [b'"expires_in":"3599"', b'"refresh_token":null', b'"scope":null'])
def test_a_renewal_is_taken_however_a_server_writes_it(tmp_path: Path, more: bytes) -> None:
    path = tmp_path / "oauth.json"
    assert asyncio.run(renew(path, b'{"access_token":"new",%b}' % more)) == "new"
    kept = msgspec.json.decode(path.read_bytes(), type=Tokens)
    assert kept.refresh_token == "first"
    assert (kept.expires_at is not None) is (b"expires_in" in more)


@pytest.mark.parametrize("status", [b"503 Service Unavailable", b"429 Too Many Requests"])
def test_an_endpoint_that_is_overloaded_refuses_no_login(tmp_path: Path, status: bytes) -> None:
    path = tmp_path / "oauth.json"
    with pytest.raises(HttpError, match="cannot be renewed: HTTP") as caught:
        asyncio.run(renew(path, b"", status))
    assert not caught.value.sent
    good_s = time.time() + tokens.EARLY_S / 2
    assert asyncio.run(renew(path, b"", status, good_s)) == "old"


def test_an_endpoint_that_never_answers_holds_calls_up_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "RENEWAL_TIMEOUT_S", 0.2)
    with pytest.raises(HttpError, match="no answer within") as caught:
        asyncio.run(renew(tmp_path / "oauth.json", None))
    assert not caught.value.sent


def test_a_token_that_cannot_be_kept_is_used_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "oauth.json"
    path.with_suffix(".new").mkdir()  # where it is written first
    assert asyncio.run(renew(path, ANSWER)) == "new"
    told = capsys.readouterr().err
    assert "cannot be kept" in told
    assert "next" not in told


@pytest.mark.parametrize("ends", [False, True])
def test_a_call_that_is_cancelled_while_it_renews_loses_no_login(
    tmp_path: Path, *, ends: bool
) -> None:
    path = tmp_path / "oauth.json"

    async def scenario() -> list[str]:
        asked, may_answer = asyncio.Event(), asyncio.Event()
        forms: list[str] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split()[0])
            forms.append((await reader.readexactly(length)).decode())
            asked.set()
            await may_answer.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER))
            await reader.read()
            writer.close()

        async with (
            asyncio.timeout(GENEROUS_S),
            await asyncio.start_server(serve, "127.0.0.1", 0) as server,
        ):
            port = server.sockets[0].getsockname()[1]
            keep_expired(path, f"http://127.0.0.1:{port}/token")
            stored = StoredTokens(str(path), lambda origin: HttpClient(origin, None))
            cancelled = asyncio.create_task(stored.token())
            await asked.wait()
            cancelled.cancel()
            await asyncio.wait([cancelled])
            may_answer.set()
            if ends:
                client = HttpClient(Origin("http", "127.0.0.1", port), None)
                await Door("far", client, "/", {}, Room(), agent="test", bearer=stored).close()
            else:
                assert await stored.token() == "new"
        return forms

    (form,) = asyncio.run(scenario())
    assert "refresh_token=first" in form
    kept = msgspec.json.decode(path.read_bytes(), type=Tokens)
    assert kept.refresh_token == "next"
