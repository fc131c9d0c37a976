"""Which era a server speaks: the order of questions, and what each answer proves.

Sans-io. Rules, in order:

1. `server/discover` goes first. A DiscoverResult that names a modern version, or an error
   that only a modern server gives, means modern.
2. Any other error, or silence for PROBE_TIMEOUT_S, means legacy: `initialize` follows.
3. A DiscoverResult that arrives after the time-out still means modern, unless `initialize` is
   taken in as long again.
4. `initialize` refused with "unsupported version" is a modern server that was slow: ask again.

A working tools/list proves nothing. What was found is kept in a PeerSession.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from vsm.protocol import jsonrpc
from vsm.protocol.jsonrpc import Message
from vsm.protocol.tables import (
    LEGACY_VERSION,
    LEGACY_VERSIONS,
    META_CAPABILITIES,
    META_CLIENT,
    META_SERVER,
    META_VERSION,
    MODERN_VERSION,
    TASK_EXTENSION,
    Era,
)

PROBE_TIMEOUT_S: Final = 5.0
MAX_INSTRUCTIONS_CHARS: Final = 8192
MAX_CAPABILITIES_BYTES: Final = 16384

# Asked of the client that has a call in flight; see `vsm.gateway.relay` for who asks outside one.
LEGACY_CAPABILITIES: Final[dict[str, Any]] = {
    "roots": {"listChanged": True},
    "sampling": {"context": {}, "tools": {}},
    "elicitation": {"form": {}, "url": {}},
}


class PeerSession(msgspec.Struct, frozen=True):
    """What a handshake or a discovery found: all that resuming the server needs."""

    era: str
    version: str
    capabilities: dict[str, Any] = msgspec.field(default_factory=dict)
    server: dict[str, Any] = msgspec.field(default_factory=dict)
    instructions: str = ""

    @property
    def is_modern(self) -> bool:
        """Whether requests carry an envelope."""
        return self.era == Era.MODERN.value

    @property
    def makes_tasks(self) -> bool:
        """Whether it offers to make tasks unasked: the extension of the modern era."""
        extensions = self.capabilities.get("extensions")
        return self.is_modern and isinstance(extensions, dict) and TASK_EXTENSION in extensions

    def offers(self, capability: str, feature: str | None = None) -> bool:
        """Whether the server declared `capability` (and `feature` within it)."""
        declared = self.capabilities.get(capability)
        if feature is None:
            return isinstance(declared, dict)
        return isinstance(declared, dict) and declared.get(feature) is True


@dataclass(frozen=True)
class Ask:
    """Send this request next."""

    method: str
    params: dict[str, Any]


@dataclass(frozen=True)
class Established:
    """The session stands. `announce` is a notification to send first, if any."""

    session: PeerSession
    announce: str | None = None


@dataclass(frozen=True)
class Refused:
    """No session can be had; `reason` says why."""

    reason: str


@dataclass(frozen=True)
class Nothing:
    """Keep waiting."""


Step = Ask | Established | Refused | Nothing


def envelope(gateway: dict[str, Any]) -> dict[str, Any]:
    """The `_meta` of a modern request that the gateway itself makes."""
    return {META_VERSION: MODERN_VERSION, META_CLIENT: gateway, META_CAPABILITIES: {}}


class _Discovery(msgspec.Struct):
    supportedVersions: list[str]  # noqa: N815 - the wire's name
    capabilities: dict[str, Any]
    instructions: str | None = None
    meta: dict[str, Any] = msgspec.field(name="_meta", default_factory=dict)


class _Initialized(msgspec.Struct):
    protocolVersion: str  # noqa: N815 - the wire's name
    capabilities: dict[str, Any] = msgspec.field(default_factory=dict)
    serverInfo: dict[str, Any] = msgspec.field(default_factory=dict)  # noqa: N815 - likewise
    instructions: str | None = None


class _Unsupported(msgspec.Struct):
    supported: list[str] = msgspec.field(default_factory=list)


@dataclass
class Handshake:
    """One server's way from started to established. Feed it answers; do what it returns.

    Args:
        gateway: the gateway's name and version, as servers see it.
        wanted: "legacy" or "modern" to speak nothing else, or "auto".
    """

    gateway: dict[str, Any]
    wanted: str = "auto"
    _initializing: bool = field(default=False, init=False)
    _refused: bool = field(default=False, init=False)
    _late: Established | None = field(default=None, init=False)
    _probes: int = field(default=0, init=False)

    def begin(self) -> Ask:
        """The first question."""
        if self.wanted == Era.LEGACY.value:
            return self._initialize()
        self._probes += 1
        return Ask("server/discover", {"_meta": envelope(self.gateway)})

    def probe_timed_out(self) -> Step:
        """Nothing came in PROBE_TIMEOUT_S."""
        if self._late is not None:
            return self._late
        stay = self._initializing or self.wanted == Era.MODERN.value
        return Nothing() if stay else self._initialize()

    def answered(self, method: str, message: Message) -> Step:
        """The answer to the question `method`."""
        if method == "server/discover":
            return self._discovered(message)
        return self._handshaken(message)

    def _initialize(self) -> Ask:
        self._initializing = True
        params = {
            "protocolVersion": LEGACY_VERSION,
            "capabilities": LEGACY_CAPABILITIES,
            "clientInfo": self.gateway,
        }
        return Ask("initialize", params)

    def _discovered(self, message: Message) -> Step:
        found = _decoded(message, _Discovery)
        if found is not None and MODERN_VERSION in found.supportedVersions:
            server = found.meta.get(META_SERVER)
            discovered = Established(
                PeerSession(
                    era=Era.MODERN.value,
                    version=MODERN_VERSION,
                    capabilities=_bounded(found.capabilities),
                    server=_named(server),
                    instructions=(found.instructions or "")[:MAX_INSTRUCTIONS_CHARS],
                )
            )
            if not self._initializing or self._refused:
                return discovered
            # It has `initialize` as well. If it takes that, its connection is a legacy one.
            self._late = discovered
            return Nothing()
        only = _unsupported(message)
        if self.wanted == Era.MODERN.value:
            return Refused("the server does not speak the modern era, as its `era` says")
        if only and not set(only) & set(LEGACY_VERSIONS):
            return Refused(f"the server speaks only {', '.join(only[:4])[:80]}")
        return Nothing() if self._initializing else self._initialize()

    def _handshaken(self, message: Message) -> Step:
        done = _decoded(message, _Initialized)
        if done is None:
            return self._refused_handshake(message)
        if done.protocolVersion not in LEGACY_VERSIONS:
            return Refused(f"the server chose the unknown version {done.protocolVersion[:40]!r}")
        session = PeerSession(
            era=Era.LEGACY.value,
            version=done.protocolVersion,
            capabilities=_bounded(done.capabilities),
            server=_named(done.serverInfo),
            instructions=(done.instructions or "")[:MAX_INSTRUCTIONS_CHARS],
        )
        return Established(session, announce="notifications/initialized")

    def _refused_handshake(self, message: Message) -> Step:
        self._refused = True
        if self._late is not None:
            return self._late
        if MODERN_VERSION in _unsupported(message) and self._probes == 1:
            return self.begin()
        error = None if message.error is msgspec.UNSET else jsonrpc.error_of(message.error)
        said = "an invalid result" if error is None else f"{error.code}: {error.message[:200]!r}"
        return Refused(f"initialize was answered with {said}")


def _decoded(message: Message, kind: type[Any]) -> Any:  # noqa: ANN401 - kind's instance
    if message.result is msgspec.UNSET:
        return None
    try:
        return msgspec.json.decode(message.result, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _unsupported(message: Message) -> list[str]:
    error = None if message.error is msgspec.UNSET else jsonrpc.error_of(message.error)
    if error is None or error.code != jsonrpc.UNSUPPORTED_VERSION or error.data is msgspec.UNSET:
        return []
    try:
        return msgspec.json.decode(error.data, type=_Unsupported).supported
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def _bounded(capabilities: dict[str, Any]) -> dict[str, Any]:
    if len(jsonrpc.encode(capabilities)) <= MAX_CAPABILITIES_BYTES:
        return capabilities
    known = ("tools", "prompts", "resources", "logging", "completions")
    flags = ("listChanged", "subscribe")
    return {
        key: {flag: capabilities[key].get(flag) is True for flag in flags}
        for key in known
        if isinstance(capabilities.get(key), dict)
    }


def _named(server: object) -> dict[str, Any]:
    if not isinstance(server, dict):
        return {}
    wanted = ("name", "version", "title")
    return {key: str(server[key])[:200] for key in wanted if key in server}
