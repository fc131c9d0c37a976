"""A real remote server, the SDK's: `remote_sdk.py PORT [oauth [broken]] [cert FILE KEY]`.

On PORT 0 it takes a free one and says which. With `oauth` it is its own authorisation server, which
lets everybody in who registered; access tokens live for two seconds. With `broken`, who has one is
answered HTTP 500. What it hears of requests goes to stdout, one JSON object a line.
"""

import asyncio
import json
import secrets
import socket
import sys
import time
from typing import Any

import uvicorn
from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    OAuthAuthorizationServerProvider,
    RefreshToken,
    construct_redirect_uri,
)
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions
from mcp.server.mcpserver import Context, MCPServer
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyHttpUrl

LIFE_S = 2
LISTENER = socket.create_server(("127.0.0.1", int(sys.argv[1])))
PORT = LISTENER.getsockname()[1]
SCHEME = "https" if "cert" in sys.argv else "http"
URL = f"{SCHEME}://127.0.0.1:{PORT}"


def tell(**said: Any) -> None:
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


class Everybody(OAuthAuthorizationServerProvider[AuthorizationCode, RefreshToken, AccessToken]):
    """Keeps what it gave in memory."""

    def __init__(self) -> None:
        self.clients: dict[str, OAuthClientInformationFull] = {}
        self.codes: dict[str, AuthorizationCode] = {}
        self.access: dict[str, AccessToken] = {}
        self.refresh: dict[str, RefreshToken] = {}

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self.clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        assert client_info.client_id
        self.clients[client_info.client_id] = client_info

    async def authorize(
        self, client: OAuthClientInformationFull, params: AuthorizationParams
    ) -> str:
        code = secrets.token_hex(20)
        self.codes[code] = AuthorizationCode(
            code=code,
            scopes=params.scopes or ["user"],
            expires_at=time.time() + 60,
            client_id=client.client_id or "",
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
        )
        return construct_redirect_uri(str(params.redirect_uri), code=code, state=params.state)

    async def load_authorization_code(
        self,
        client: OAuthClientInformationFull,  # noqa: ARG002 - the protocol's
        authorization_code: str,
    ) -> AuthorizationCode | None:
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: AuthorizationCode
    ) -> OAuthToken:
        del self.codes[authorization_code.code]
        return self._issue(client, authorization_code.scopes)

    def _issue(self, client: OAuthClientInformationFull, scopes: list[str]) -> OAuthToken:
        access, refresh = f"access-{secrets.token_hex(16)}", f"refresh-{secrets.token_hex(16)}"
        name = client.client_id or ""
        expires = int(time.time()) + LIFE_S
        self.access[access] = AccessToken(
            token=access, client_id=name, scopes=scopes, expires_at=expires
        )
        self.refresh[refresh] = RefreshToken(token=refresh, client_id=name, scopes=scopes)
        tell(issued=access, to=name)
        return OAuthToken(
            access_token=access, refresh_token=refresh, expires_in=LIFE_S, scope=" ".join(scopes)
        )

    async def load_refresh_token(
        self,
        client: OAuthClientInformationFull,  # noqa: ARG002 - the protocol's
        refresh_token: str,
    ) -> RefreshToken | None:
        return self.refresh.get(refresh_token)

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: RefreshToken, scopes: list[str]
    ) -> OAuthToken:
        del self.refresh[refresh_token.token]  # good once
        return self._issue(client, scopes)

    async def load_access_token(self, token: str) -> AccessToken | None:
        return self.access.get(token)

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        self.access.pop(token.token, None)


def make() -> MCPServer:
    if "oauth" not in sys.argv:
        return MCPServer(name="far", version="1")
    settings = AuthSettings(
        issuer_url=AnyHttpUrl(URL),
        resource_server_url=AnyHttpUrl(f"{URL}/mcp"),
        client_registration_options=ClientRegistrationOptions(
            enabled=True, valid_scopes=["user"], default_scopes=["user"]
        ),
        required_scopes=["user"],
        validate_token_resource=False,
    )
    return MCPServer(name="far", version="1", auth_server_provider=Everybody(), auth=settings)


server = make()


@server.tool()
async def heard(ctx: Context) -> str:
    """The headers that the call came with."""
    request = ctx.request_context.request
    assert request is not None
    return json.dumps(dict(request.headers.items()))


@server.tool()
async def steps(ctx: Context, count: int = 3) -> str:
    """Reports progress."""
    for step in range(count):
        await ctx.report_progress(step, count)
        await asyncio.sleep(0.01)
    return "done"


@server.tool()
async def sleep(seconds: float) -> str:
    """Takes its time; says when it is cancelled."""
    tell(began=True)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        tell(cancelled=True)
        raise
    return "slept"


@server.tool()
async def grow(ctx: Context) -> str:
    """Adds a tool and says so."""
    server.add_tool(heard, name="grown")
    await ctx.notify_tools_changed()  # to subscriptions
    await ctx.session.send_tool_list_changed()  # to a session
    return "grown"


@server.resource("mem://one")
def one() -> str:
    """A resource."""
    return "one"


@server.prompt()
def greet() -> str:
    """A prompt."""
    return "hello"


class Announcing(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        tell(listening=PORT)


options: dict[str, Any] = {}
if "cert" in sys.argv:
    at = sys.argv.index("cert")
    options = {"ssl_certfile": sys.argv[at + 1], "ssl_keyfile": sys.argv[at + 2]}
app = server.streamable_http_app()


async def broken(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http" or b"authorization" not in dict(scope["headers"]):
        await app(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b""})


asked = broken if "broken" in sys.argv else app
config = uvicorn.Config(asked, log_level="error", timeout_graceful_shutdown=1, **options)
Announcing(config).run([LISTENER])
