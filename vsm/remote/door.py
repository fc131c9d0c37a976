"""The way to one server for one identity: credentials on every request, few redirects, few tries.

Runs in a remote server's worker. Owns where the server is, the room for exchanges at a time, and
what is done about 401; what is said is the peer's affair.
"""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urljoin, urlsplit

from vsm.core.login_words import login_command, missing_scope
from vsm.remote.http_client import Exchange, HttpClient, HttpError, Origin

MOST_CALLS: Final = 44
MOST_ASIDE: Final = 16  # notifications, answers and streams; the egress process allows 64 in all
MOST_REDIRECTS: Final = 3
KEEPS_METHOD: Final = frozenset({307, 308})
TRIES: Final = 3
FIRST_PAUSE_S: Final = 0.1
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_USUAL: Final = {"http": 80, "https": 443}


class RefusedError(Exception):
    """The server refused a request, which did not run; says why."""


class HandshakeRefusedError(RefusedError):
    """It wants other credentials."""


class Bearer(Protocol):
    """Where the token of a request comes from."""

    async def token(self) -> str:
        """One that should be good; "" for none."""

    async def renewed(self, refused: str) -> str:
        """Another one in the place of `refused`; "" where there is none to be had."""

    async def close(self) -> None:
        """Finish what must not be broken off."""


@dataclass
class Room:
    """How many exchanges there may be at a time, of all identities together."""

    calls: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_CALLS))
    aside: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_ASIDE))


class Door:
    """Makes exchanges as one identity.

    Args:
        name: the integration's. client: makes them. target: path and query.
        headers: credentials and whatever else goes with every request.
        bearer: of OAuth, or None.
        client_name: whose credentials they are; "" are the integration's own.
    """

    def __init__(
        self,
        name: str,
        client: HttpClient,
        target: str,
        headers: Mapping[str, str],
        room: Room,
        *,
        agent: str,
        client_name: str = "",
        bearer: Bearer | None = None,
    ) -> None:
        self.name = name
        self.calls, self.aside = room.calls, room.aside
        self._client = client
        self._target = target
        self._fixed = {**headers, "user-agent": agent, "accept-encoding": "identity"}
        self._bearer = bearer
        self._client_name = client_name

    @property
    def origin(self) -> Origin:
        """Where it leads."""
        return self._client.origin

    async def close(self) -> None:
        """Close what is idle."""
        if self._bearer is not None:
            await self._bearer.close()
        self._client.close()

    async def open(self, method: str, headers: Mapping[str, str], body: bytes = b"") -> Exchange:
        """One exchange; its status is not 401, 403 or a redirect.

        Raises:
            HttpError: it did not come about.
            RefusedError: the server leads elsewhere, or wants other credentials.
        """
        token = await self._bearer.token() if self._bearer else ""
        exchange = await self._with(token, method, headers, body)
        if exchange.status == _UNAUTHORIZED and self._bearer is not None:
            exchange.leave()
            token = await self._bearer.renewed(token)
            if token:
                exchange = await self._with(token, method, headers, body)
        if exchange.status in {_UNAUTHORIZED, _FORBIDDEN}:
            exchange.leave()
            raise HandshakeRefusedError(self._why_refused(exchange))
        return exchange

    def _why_refused(self, exchange: Exchange) -> str:
        """And what somebody can do about it; a login may allow too little (RFC 6750, 3.1)."""
        what = f"it refuses the credentials (HTTP {exchange.status})"
        if self._bearer is None:
            return f"{what}. Correct them in vsm.toml, or where they are kept"
        scope = missing_scope(exchange.headers.get("www-authenticate", ""))
        if scope:
            what = f"its login allows too little for this (HTTP {exchange.status})"
        return f"{what}. Run `{login_command(self.name, self._client_name, scope)}`"

    async def _with(
        self, token: str, method: str, headers: Mapping[str, str], body: bytes
    ) -> Exchange:
        own = {**self._fixed, **({"authorization": f"Bearer {token}"} if token else {})}
        all_headers = [*headers.items(), *own.items()]
        for _ in range(MOST_REDIRECTS):
            exchange = await self._try(method, all_headers, body)
            if exchange.status not in _REDIRECTS:
                return exchange
            exchange.leave()
            self._target = self._redirected(exchange)
        raise RefusedError(f"it redirects more than {MOST_REDIRECTS} times")

    async def _try(self, method: str, headers: list[tuple[str, str]], body: bytes) -> Exchange:
        """What never reached the server is tried again, twice."""
        for attempt in range(TRIES):
            try:
                return await self._client.exchange(method, self._target, headers, body)
            except HttpError as error:
                if error.sent or attempt == TRIES - 1:
                    raise
            pause_s = FIRST_PAUSE_S * 4**attempt
            await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))  # noqa: S311 - jitter
        raise AssertionError

    def _redirected(self, exchange: Exchange) -> str:
        """Where a redirect leads, within the same origin.

        Raises:
            RefusedError: elsewhere, or with another method.
        """
        base = f"{self.origin}{self._target}"
        try:
            found = urlsplit(urljoin(base, exchange.headers.get("location", "")))
            port = found.port or _USUAL.get(found.scheme, 0)
        except ValueError:
            raise RefusedError("it redirects to something that is no URL") from None
        there = Origin(found.scheme, found.hostname or "", port)
        target = found.path + (f"?{found.query}" if found.query else "")
        if there != self.origin or not _is_plain(target):
            where = "".join(c for c in str(there)[:200] if "!" <= c <= "~")
            raise RefusedError(f"it redirects to {where}, which is not followed")
        if exchange.status not in KEEPS_METHOD:
            text = f"it redirects with HTTP {exchange.status} to {target[:200]}: write that URL"
            raise RefusedError(text)
        return target


def _is_plain(target: str) -> bool:
    return target.startswith("/") and all("!" <= char <= "~" for char in target)
