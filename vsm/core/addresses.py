"""Where an egress connection may go: hosts as they are written, addresses as they are judged. Pure.

An allow-list names hosts; what a host resolves to is somebody else's decision, made anew for each
connection. So every address is judged by this table at the moment of connecting, and what is not
plainly a machine of the public internet is refused unless the operator wrote that very address.
"""

import ipaddress
import re
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MOST_NAME: Final = 253

# IANA's special-purpose registries, with what the clouds put on addresses that look public.
_REFUSED_4: Final = (
    ("0.0.0.0/8", "unspecified"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "shared by a carrier, or a cloud's metadata"),
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "a cloud's own services"),
    ("169.254.0.0/16", "link-local, or a cloud's metadata"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved, or a cloud's metadata"),
    ("192.0.2.0/24", "for documentation"),
    ("192.88.99.0/24", "a 6to4 relay"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "for benchmarks"),
    ("198.51.100.0/24", "for documentation"),
    ("203.0.113.0/24", "for documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved or broadcast"),
)
_REFUSED_6: Final = (
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("::ffff:0:0/96", "an IPv4 address in disguise"),
    ("::/96", "an IPv4 address in disguise"),
    ("64:ff9b::/96", "an IPv4 address behind NAT64"),
    ("64:ff9b:1::/48", "an IPv4 address behind NAT64"),
    ("2001::/23", "a tunnel or reserved"),
    ("2001:db8::/32", "for documentation"),
    ("2002::/16", "an IPv4 address behind 6to4"),
    ("3fff::/20", "for documentation"),
    ("fc00::/7", "private, or a cloud's metadata"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
)
_TABLE: Final = tuple(
    (ipaddress.ip_network(network), reason) for network, reason in (*_REFUSED_4, *_REFUSED_6)
)
_GLOBAL_6: Final = ipaddress.IPv6Network("2000::/3")
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")


def judge(address: str) -> str:
    """Why nobody may connect to this address, or "" if it is one of the public internet."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "no address"
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.scope_id:
        return "link-local"
    for network, reason in _TABLE:
        if parsed.version == network.version and parsed in network:
            return reason
    if parsed.version == 6 and parsed not in _GLOBAL_6:  # noqa: PLR2004 - IPv6
        return "outside the public internet"
    return ""


def parse_host(text: str) -> str:
    """The canonical form of a name or an address literal.

    Raises:
        ValueError: it is neither, or an address in another spelling than the usual one; says why.
    """
    literal = parse_literal(text)
    if literal:
        return literal
    name = text.lower().removesuffix(".")
    if not name or len(name) > MOST_NAME:
        raise ValueError(f"expected the name of a host, found {text[:60]!r}")
    if not name.isascii():
        raise ValueError(f"{text[:60]!r} is not ASCII: write it as xn--…")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        # inet_aton takes 2130706433, 0177.0.0.1, 0x7f.1 and 127.1 for addresses.
        raise ValueError(f"{text[:60]!r} is an address in a spelling that hides it")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{text[:60]!r} is no name of a host")
    if labels[-1] == "localhost":
        raise ValueError("localhost is this machine: write the address, such as 127.0.0.1")
    return name


def parse_literal(text: str) -> str:
    """An address in its one canonical spelling, brackets of IPv6 taken off; "" if it is none."""
    bracketed = text.startswith("[") and text.endswith("]")
    plain = text[1:-1] if bracketed else text
    try:
        address = ipaddress.ip_address(plain)
    except ValueError:
        return ""
    if bracketed and address.version == 4:  # noqa: PLR2004 - IPv4
        return ""
    return "" if "%" in plain else str(address)
