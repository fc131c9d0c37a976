"""OAuth tokens of one identity: read from the worker's own state directory, renewed in time.

`vsm login` wrote them; a worker renews them, keeps them with mode 0600 and says nothing of them.
Runs in a remote server's worker; the token endpoint is reached as the server is, by the egress
process.
"""

import asyncio
import base64
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from vsm.remote.http_client import HttpClient, HttpError, Origin

EARLY_S: Final = 30.0
RENEWAL_TIMEOUT_S: Final = 30.0
MOST_BYTES: Final = 64 * 1024
_OK: Final = 200
_LATER: Final = frozenset({408, 429, *range(500, 600)})  # says nothing of the tokens
_USUAL: Final = {"http": 80, "https": 443}


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What a login left, and each renewal since.

    Args:
        expires_at: seconds since the epoch; None where the server did not say.
        auth_method: how the client proves itself at the token endpoint.
    """

    access_token: str
    token_endpoint: str
    client_id: str
    refresh_token: str = ""
    expires_at: float | None = None
    client_secret: str = ""
    auth_method: str = "none"
    resource: str = ""
    scope: str = ""


class _Renewal(msgspec.Struct):
    access_token: str
    refresh_token: str | None = None
    expires_in: float | None = None


class StoredTokens:
    """The tokens in one file; a `Bearer`.

    Args:
        reach: makes the client for the token endpoint.
    """

    def __init__(self, path: str, reach: Callable[[Origin], HttpClient]) -> None:
        self._path = Path(path)
        self._reach = reach
        self._renewing: asyncio.Task[Tokens | None] | None = None
        self._tokens: Tokens | None = None
        self._read = False

    async def token(self) -> str:
        """One that should be good; "" where nobody logged in."""
        tokens = self._load()
        if tokens is None:
            return ""
        expires_at = tokens.expires_at
        if expires_at is not None and expires_at - EARLY_S < time.time():
            try:
                tokens = await self._renew_once(tokens) or tokens
            except HttpError:
                if expires_at < time.time():
                    raise
        return tokens.access_token

    async def renewed(self, refused: str) -> str:
        """Another one in the place of `refused`; "" where a person has to log in again."""
        tokens = self._load()
        if tokens is None:
            return ""
        if tokens.access_token != refused:  # somebody was faster
            return tokens.access_token
        tokens = await self._renew_once(tokens)
        return "" if tokens is None else tokens.access_token

    async def close(self) -> None:
        """Wait for a renewal that is under way, for its answer is the next login."""
        if self._renewing is not None:
            await asyncio.wait([self._renewing])

    async def _renew_once(self, tokens: Tokens) -> Tokens | None:
        """What a renewal gives, which is everybody's, and goes on though its call is cancelled.

        What it asks with is good once: if nobody took the answer, the login would be lost.
        """
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew(tokens))
            self._renewing.add_done_callback(self._over)
        return await asyncio.shield(self._renewing)

    def _over(self, renewal: "asyncio.Task[Tokens | None]") -> None:
        self._renewing = None
        if not renewal.cancelled():
            renewal.exception()  # perhaps nobody waits any more

    def _load(self) -> Tokens | None:
        if not self._read:
            self._read = True
            try:
                content = self._path.read_bytes()
                self._tokens = msgspec.json.decode(content, type=Tokens)
            except (OSError, msgspec.DecodeError):
                self._tokens = None
        return self._tokens

    async def _renew(self, tokens: Tokens) -> Tokens | None:
        """Ask for a new one; None where that is refused.

        Raises:
            HttpError: the token endpoint did not answer, or not now.
        """
        if not tokens.refresh_token:
            return None
        form = {"grant_type": "refresh_token", "refresh_token": tokens.refresh_token}
        form |= {"client_id": tokens.client_id}
        form |= {"resource": tokens.resource} if tokens.resource else {}
        headers = {
            "content-type": "application/x-www-form-urlencoded",
            "accept": "application/json",
            "accept-encoding": "identity",
        }
        if tokens.auth_method == "client_secret_basic":
            pair = f"{quote(tokens.client_id, safe='')}:{quote(tokens.client_secret, safe='')}"
            headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        elif tokens.client_secret:
            form["client_secret"] = tokens.client_secret
        answer = await self._ask(tokens.token_endpoint, headers, urlencode(form).encode())
        if answer is None:
            return None
        expires_at = None if answer.expires_in is None else time.time() + answer.expires_in
        renewed = msgspec.structs.replace(
            tokens,
            access_token=answer.access_token,
            refresh_token=answer.refresh_token or tokens.refresh_token,
            expires_at=expires_at,
        )
        self._tokens = renewed
        try:
            self._store(renewed)
        except OSError as error:  # they are good all the same, as long as this process lives
            sys.stderr.write(f"its new tokens cannot be kept: {error.strerror}\n")
            sys.stderr.flush()
        return renewed

    async def _ask(self, endpoint: str, headers: dict[str, str], form: bytes) -> _Renewal | None:
        origin, target = split_url(endpoint)
        client = self._reach(origin)
        what = "its tokens cannot be renewed"
        try:
            async with asyncio.timeout(RENEWAL_TIMEOUT_S):  # every call of this identity waits
                exchange = await client.exchange("POST", target, headers.items(), form)
                async with exchange:
                    body = await exchange.body(MOST_BYTES)
        except HttpError as error:
            raise HttpError(f"{what}: {error}", sent=False) from None
        except TimeoutError:
            text = f"{what}: no answer within {RENEWAL_TIMEOUT_S:g} s"
            raise HttpError(text, sent=False) from None
        finally:
            client.close()
        if exchange.status in _LATER:
            raise HttpError(f"{what}: HTTP {exchange.status}", sent=False)
        if exchange.status != _OK:
            return None
        try:  # not strict: some servers write the seconds as a text
            renewal = msgspec.json.decode(body, type=_Renewal, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return renewal if is_token(renewal.access_token) else None

    def _store(self, tokens: Tokens) -> None:
        fresh = self._path.with_suffix(".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(tokens))
            os.fsync(file.fileno())
        fresh.rename(self._path)


def is_token(text: str) -> bool:
    """Whether a text can be the token of an Authorization header."""
    return bool(text) and all("!" <= char <= "~" for char in text)


def split_url(url: str) -> tuple[Origin, str]:
    """Where a URL is, and its path and query.

    Raises:
        ValueError: it is no URL of http or https, or holds a name and password.
    """
    parts = urlsplit(url)
    if parts.scheme not in _USUAL or not parts.hostname or parts.username or parts.password:
        raise ValueError("expected a URL of https, without a name and password")
    if not all("!" <= char <= "~" for char in url):
        raise ValueError("a URL holds printable ASCII only: write %XX")
    port = parts.port or _USUAL[parts.scheme]
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Origin(parts.scheme, parts.hostname, port), target
