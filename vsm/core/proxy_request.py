"""The first request of a connection to the HTTP proxy inside a worker. Pure, sans-io.

CONNECT opens a tunnel; an absolute `http:` URL is rewritten as the origin server expects it, with
`Connection: close`, so that the client opens a connection of its own for the next host. Bytes
after the head are not looked at: whatever they say, they go to the one address that was checked.
"""

import re
from typing import Final, NamedTuple

from vsm.core.addresses import parse_host

MOST_HEAD_BYTES: Final = 65536
TUNNEL_OPEN: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_HTTP_PORT: Final = 80
_LINE: Final = re.compile(rb"([A-Z]{1,32}) ([\x21-\x7e]+) HTTP/1\.[01]")
_FIELD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*")
_AUTHORITY: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:/?#@\s]+)(?::(\d{1,5}))?")
_HOP: Final = {b"host", b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive"}
_REASONS: Final = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway"}


class ProxyRequest(NamedTuple):
    """Whom the client wants.

    Args:
        host: canonical.
        port: 1 to 65535.
        head: what to send first; b"" for a tunnel.
    """

    host: str
    port: int
    head: bytes

    @property
    def tunnel(self) -> bool:
        """Whether it was CONNECT."""
        return not self.head


def parse_proxy_request(head: bytes) -> ProxyRequest:
    """Read a request's head, up to and with its empty line.

    Raises:
        ValueError: it is no request that a proxy could serve; says why.
    """
    first, *fields = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    line = _LINE.fullmatch(first)
    if line is None or not all(_FIELD.fullmatch(field) for field in fields):
        raise ValueError("not an HTTP/1.1 request")
    method, target = line.group(1), line.group(2).decode()
    if method == b"CONNECT":
        return ProxyRequest(*_authority(target, None), b"")
    scheme, separator, rest = target.partition("://")
    if scheme.lower() != "http" or not separator:
        raise ValueError("expected CONNECT, or an absolute http: URL")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    host, port = _authority(authority, _HTTP_PORT)
    path = rest[len(authority) :].partition("#")[0]
    path = path if path.startswith("/") else f"/{path}"
    kept = [field for field in fields if field.partition(b":")[0].lower() not in _HOP]
    lines = [method + b" " + path.encode() + b" HTTP/1.1", b"Host: " + authority.encode(), *kept]
    return ProxyRequest(host, port, b"\r\n".join([*lines, b"Connection: close", b"", b""]))


def error_response(status: int, text: str) -> bytes:
    """An answer that ends the connection; `text` is for a person."""
    body = f"vsm egress: {text}\n".encode()
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _authority(text: str, default_port: int | None) -> tuple[str, int]:
    found = _AUTHORITY.fullmatch(text)
    if "@" in text:  # what is refused is logged
        raise ValueError("expected HOST:PORT, found a user or password before it")
    if found is None:
        raise ValueError(f"expected HOST:PORT, found {text[:80]!r}")
    port = int(found.group(2)) if found.group(2) else default_port
    if port is None or not 0 < port < 2**16:
        raise ValueError(f"expected a port, found {text[:80]!r}")
    return parse_host(found.group(1)), port
