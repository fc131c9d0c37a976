"""Logging in to a remote server by OAuth: the authorisation code grant with PKCE.

Runs in the command line, as the person at the terminal; the flow is the SDK's. What it speaks to
is chosen by what foreign servers say of themselves, so every address is judged at the moment of
connecting, as the egress process does it, and https is insisted on.
"""

import asyncio
import errno
import logging
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from hmac import compare_digest
from html import escape
from typing import Final
from urllib.parse import SplitResult, parse_qs, urljoin, urlsplit

import httpx2
from mcp.client.auth import OAuthClientProvider, OAuthFlowError
from mcp.client.auth.oauth2 import OAuthContext
from mcp.client.auth.utils import union_scopes
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthToken,
)
from pydantic import AnyUrl

from vsm.configuration.config import Integration
from vsm.configuration.remote import destination
from vsm.configuration.secrets import read_secret
from vsm.core.addresses import judge
from vsm.errors import ConfigurationError, VsmError
from vsm.protocol.tables import MODERN_VERSION
from vsm.remote.door import KEEPS_METHOD, MOST_REDIRECTS
from vsm.remote.http_client import HttpClient, HttpError
from vsm.remote.tokens import Tokens, is_token, split_url
from vsm.remote.worker import tls_context
from vsm.supervision import oauth_store

WAIT_S: Final = 600.0
BASIC: Final = "client_secret_basic"
POST: Final = "client_secret_post"
REQUEST_TIMEOUT_S: Final = 30.0
MOST_BODY_BYTES: Final = 1 << 20
MOST_HEAD_BYTES: Final = 16 * 1024
_BODY: Final = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{}}'
# What pydantic says of a value: itself, which may be a token.
_QUOTED: Final = re.compile(r" \[type=[^\n]*|\n *For further information[^\n]*")
Show = Callable[[str], None]

logging.getLogger("mcp").addHandler(logging.NullHandler())  # what it says of errors is said below


def log_in(integration: Integration, client: str, show: Show, scope: str = "") -> Tokens:
    """Have a person agree, and get tokens.

    Args:
        integration: of a remote server, with `oauth` for this client.
        client: whose login; "" is the integration's own.
        show: is given the address at which to agree.
        scope: what to ask for beside what the configuration has.

    Raises:
        VsmError: it came to nothing; says why, and holds no token.
    """
    remote = integration.remote
    oauth = None if remote is None else remote.oauth.get(client)
    table = f"integrations.{integration.name}{f'.clients.{client}' if client else ''}"
    if remote is None or oauth is None:
        raise ConfigurationError(f"{table}.oauth", "is not there", "Write oauth = {} there.")
    secret = ""
    if oauth.client_secret is not None:
        secret = read_secret(oauth.client_secret, where=f"{table}.oauth.client_secret")
    flow = _Flow(integration, client, secret, show, union_scopes(oauth.scope, scope) or "")
    try:
        return asyncio.run(flow.run())
    except (OAuthFlowError, httpx2.HTTPError, ValueError, OverflowError) as error:
        what = f"the login failed: {_QUOTED.sub('', str(error))}"
        remedy = "Try again; if it stays so, ask whoever runs the server."
        raise VsmError(integration.name, what[:1000], remedy) from None


class _Flow:
    """One login."""

    def __init__(
        self, integration: Integration, client: str, secret: str, show: Show, scope: str
    ) -> None:
        if integration.remote is None:
            raise AssertionError
        self._integration = integration
        self._remote = integration.remote
        self._oauth = integration.remote.oauth[client]
        self._secret = secret
        self._scope = scope
        self._show = show
        self._answer: asyncio.Future[AuthorizationCodeResult]
        self._state = ""

    async def run(self) -> Tokens:
        self._answer = asyncio.get_running_loop().create_future()
        listener = _listen(self._oauth.redirect_port)
        port = listener.getsockname()[1]
        server = await asyncio.start_server(self._redirected, sock=listener, limit=MOST_HEAD_BYTES)
        try:
            provider = self._provider(f"http://127.0.0.1:{port}/callback")
            transport = _Transport(self._remote.addresses, self._remote.ca_file)
            timeout = httpx2.Timeout(REQUEST_TIMEOUT_S)
            async with httpx2.AsyncClient(
                transport=transport, auth=provider, timeout=timeout, trust_env=False
            ) as client:
                headers = {
                    "accept": "application/json, text/event-stream",
                    "content-type": "application/json",
                    "mcp-protocol-version": MODERN_VERSION,
                }
                response = await _post(client, self._remote.url, headers, provider.context)
        finally:
            server.close()  # and no wait (as from Python 3.12 on): browsers hold spare connections
        return self._tokens(provider, response.status_code)

    def _provider(self, redirect: str) -> OAuthClientProvider:
        metadata = _Metadata(
            client_name="vsm",
            redirect_uris=[AnyUrl(redirect)],
            grant_types=["authorization_code", "refresh_token"],
            scope=self._scope or None,
        )
        return _Provider(
            self._remote.url,
            metadata,
            _Memory(self._known_client(redirect)),
            redirect_handler=self._show_address,
            callback_handler=self._wait,
        )

    def _known_client(self, redirect: str) -> OAuthClientInformationFull | None:
        if not self._oauth.client_id:
            return None
        method = BASIC if self._secret else "none"
        return OAuthClientInformationFull(
            client_id=self._oauth.client_id,
            client_secret=self._secret or None,
            token_endpoint_auth_method=method,
            redirect_uris=[AnyUrl(redirect)],
        )

    async def _show_address(self, address: str) -> None:
        url = urlsplit(address)
        if url.scheme not in {"https", "http"}:
            raise OAuthFlowError("its authorisation endpoint is no web page")
        states = parse_qs(url.query).get("state", [])
        if not states:
            raise OAuthFlowError("its authorisation endpoint has a fragment")
        self._state = states[-1]  # the flow's own comes after what the endpoint brings
        self._show(address)

    async def _wait(self) -> AuthorizationCodeResult:
        try:
            async with asyncio.timeout(WAIT_S):
                return await self._answer
        except TimeoutError:
            raise OAuthFlowError(f"nobody agreed within {WAIT_S:g} s") from None

    def _tokens(self, provider: OAuthClientProvider, status: int) -> Tokens:
        context = provider.context
        tokens, client = context.current_tokens, context.client_info
        if tokens is None or client is None:
            what = f"it asked for no login, and answered HTTP {status}"
            raise VsmError(self._integration.name, what, "Leave oauth out if it wants none.")
        if not is_token(tokens.access_token):
            raise VsmError(self._integration.name, "its token is no text for a header")
        metadata = context.oauth_metadata
        endpoint = str(metadata.token_endpoint) if metadata else urljoin(self._remote.url, "/token")
        oauth_store.endpoint_host(self._integration, endpoint)
        resource = ""
        if context.should_include_resource_param(MODERN_VERSION):
            resource = context.get_resource_url()
        expires = tokens.expires_in
        return Tokens(
            access_token=tokens.access_token,
            token_endpoint=endpoint,
            client_id=client.client_id or "",
            refresh_token=tokens.refresh_token or "",
            expires_at=None if expires is None else time.time() + expires,
            client_secret=client.client_secret or "",
            auth_method=client.token_endpoint_auth_method or "none",
            resource=resource,
            scope=tokens.scope or "",
        )

    # ---- the redirect --------------------------------------------------------------------------

    async def _redirected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A browser comes back; whoever else does is told that there is nothing."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, said = self._judge(head.decode("latin-1"))
                page = f"<!doctype html><title>vsm</title><p>{escape(said)}</p>".encode()
                fields = f"Content-Type: text/html\r\nContent-Length: {len(page)}\r\n"
                start = f"HTTP/1.1 {status}\r\n{fields}Connection: close\r\n\r\n"
                writer.write(start.encode() + page)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    def _judge(self, head: str) -> tuple[str, str]:
        words = head.split(" ", 2)
        url = _target(words[1] if len(words) > 1 else "")
        if words[0] != "GET" or url.path != "/callback":
            return "404 Not Found", "There is nothing here."
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        # Any page in a browser, and any user of this machine, can ask for this address.
        if not self._state or not compare_digest(
            query.get("state", "").encode(), self._state.encode()
        ):
            return "400 Bad Request", "This belongs to another login."
        if self._answer.done():
            return "409 Conflict", "That was answered before."
        if "error" in query:
            error = OAuthFlowError(f"it was refused: {query['error'][:200]!r}")
            self._answer.set_exception(error)
            return "200 OK", "Refused. You can close this page."
        if not query.get("code"):
            return "400 Bad Request", "The code is missing."
        self._answer.set_result(
            AuthorizationCodeResult(
                code=query["code"], state=query.get("state"), iss=query.get("iss")
            )
        )
        return "200 OK", "Done. You can close this page and go back to the terminal."


class _Metadata(OAuthClientMetadata):
    """Of vsm as a client. A scope that somebody asked for stays, whatever the server proposes."""

    def __setattr__(self, name: str, value: object) -> None:
        """The SDK puts the server's proposal into its place."""
        if name != "scope" or "scope" not in self.model_fields_set or not self.scope:
            super().__setattr__(name, value)


class _Provider(OAuthClientProvider):
    """The SDK's flow, with a client that the operator registered."""

    async def _perform_authorization(self) -> httpx2.Request:
        """Show the secret in the way that the server takes; unless it says so, RFC 8414's."""
        known, metadata = self.context.client_info, self.context.oauth_metadata
        if known is not None and known.client_secret and known.token_endpoint_auth_method == BASIC:
            taken = metadata.token_endpoint_auth_methods_supported if metadata else None
            if taken is not None and BASIC not in taken and POST in taken:
                known.token_endpoint_auth_method = POST
        return await super()._perform_authorization()


class _Memory:
    """The SDK's storage: nothing is kept before it is whole."""

    def __init__(self, client: OAuthClientInformationFull | None) -> None:
        self._client = client

    async def get_tokens(self) -> OAuthToken | None:
        """There are none."""
        return None

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """They are in the SDK's context."""

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """As configured."""
        return self._client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Registered for this login."""
        self._client = client_info


class _Transport(httpx2.AsyncBaseTransport):
    """HTTP with addresses that were judged.

    Args:
        allowed: addresses that may be connected to whatever they are.
    """

    def __init__(self, allowed: tuple[str, ...], ca_file: str) -> None:
        self._allowed = allowed
        self._tls: ssl.SSLContext = tls_context(ca_file)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One exchange, its body whole."""
        origin, target = split_url(str(request.url))
        try:
            there = destination(origin.host, self._allowed)
        except ValueError as error:
            raise httpx2.ConnectError(f"{origin}: {error}", request=request) from None
        if origin.scheme != "https" and there not in self._allowed:
            raise httpx2.ConnectError(f"{origin} is not https", request=request)
        client = HttpClient(origin, self._tls, self._judged)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                return await self._exchange(client, target, request)
        except HttpError as error:
            raise httpx2.ConnectError(f"{origin}: {error}", request=request) from None
        except TimeoutError:
            raise httpx2.ReadTimeout(f"{origin} does not answer", request=request) from None
        finally:
            client.close()

    async def _exchange(
        self, client: HttpClient, target: str, request: httpx2.Request
    ) -> httpx2.Response:
        dropped = {"host", "content-length", "connection", "accept-encoding", "transfer-encoding"}
        headers = [(k, v) for k, v in request.headers.multi_items() if k.lower() not in dropped]
        if "accept" not in request.headers:  # some answer with a form, unless they are told
            headers.append(("accept", "application/json"))
        body = await request.aread()
        exchange = await client.exchange(request.method, target, headers, body)
        try:
            content = b""
            if exchange.media_type != "text/event-stream":
                content = await exchange.body(MOST_BODY_BYTES)
        finally:
            exchange.leave()
        # Nothing was asked to be packed, and what is unpacked has no bound.
        left_out = {"transfer-encoding", "content-encoding", "content-length"}
        # As bytes: httpx takes a text for ASCII.
        kept = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name, value in exchange.headers.items()
            if name not in left_out
        ]
        return httpx2.Response(exchange.status, headers=kept, content=content, request=request)

    async def _judged(self, host: str, port: int) -> str:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise HttpError(f"cannot be resolved: {error.strerror}", sent=False) from None
        reason = "it has no address"
        for *_, address in found:
            text = str(address[0])
            why = "" if text in self._allowed else judge(text)
            if not why:
                return text
            reason = f"its address {text} is {why}"
        raise HttpError(reason, sent=False)


async def _post(
    client: httpx2.AsyncClient, url: str, headers: dict[str, str], context: OAuthContext
) -> httpx2.Response:
    """Ask the server; redirects within its origin are followed, as its worker does it.

    Raises:
        OAuthFlowError: it leads elsewhere before there are tokens.
    """
    for _ in range(MOST_REDIRECTS):
        response = await client.post(url, content=_BODY, headers=headers)
        if context.current_tokens is not None or not response.has_redirect_location:
            return response
        there = urljoin(url, response.headers["location"])
        if response.status_code not in KEEPS_METHOD or split_url(there)[0] != split_url(url)[0]:
            raise OAuthFlowError(f"it redirects to {there[:200]}: write that URL, if it is meant")
        url = there
    raise OAuthFlowError(f"it redirects more than {MOST_REDIRECTS} times")


def _target(text: str) -> SplitResult:
    """Of a request; what is none, such as //[, has no path."""
    try:
        return urlsplit(text)
    except ValueError:
        return urlsplit("")


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        what = "is taken" if taken else f"cannot be had: {os.strerror(error.errno or 0)}"
        remedy = "End what listens there, or choose another." if taken else "Choose another."
        raise VsmError("oauth.redirect_port", f"port {port} of 127.0.0.1 {what}", remedy) from None
