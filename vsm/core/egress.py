"""An egress allow-list, compiled: which names a worker resolves to what, and what it may reach.

Pure. The plan's operations and the generated /etc/hosts are made from it in the parent, and the
egress process decides by it. A name stands for one loopback address inside the worker's network
namespace; which name a connection means is therefore known from the address that it came in on.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from vsm.core.addresses import judge, parse_host, parse_literal

MOST_TARGETS: Final = 256
MOST_LISTENERS: Final = 12  # they travel in one message with the worker's pidfd
ANY_4: Final = "0.0.0.0"  # noqa: S104 - of a namespace without any other interface
ANY_6: Final = "::"
PROXY_ADDRESS: Final = "127.0.0.1"
_FIRST_PROXY_PORT: Final = 3128
_HOSTS_PREFIX: Final = "127.77"
_MOST_PORT: Final = 65535
_LEAST_LABELS: Final = 2


class Target(NamedTuple):
    """One entry of `network.allow`.

    Args:
        host: a name in lower case or an address; for a wildcard what follows "*.".
        port: 1 to 65535.
        wildcard: every name below `host`, not `host` itself.
    """

    host: str
    port: int
    wildcard: bool = False

    @property
    def literal(self) -> bool:
        """Whether it is an address."""
        return bool(parse_literal(self.host))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'*.' if self.wildcard else ''}{host}:{self.port}"


def parse_target(text: str) -> Target:
    """HOST:PORT, *.DOMAIN:PORT, ADDRESS:PORT or [IPV6]:PORT.

    Raises:
        ValueError: what is wrong with it, and how to write it.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon or not port_text.isascii() or not port_text.isdigit() or len(port_text) > 5:  # noqa: PLR2004 - 65535
        raise ValueError(f"{text[:80]!r} has no port: write HOST:443")
    port = int(port_text)
    if not 1 <= port <= _MOST_PORT:
        raise ValueError(f"{text[:80]!r}: a port is 1 to {_MOST_PORT}")
    wildcard = host.startswith("*.")
    name = parse_host(host[2:] if wildcard else host)
    target = Target(name, port, wildcard)
    if ":" in name and not host.startswith("["):
        raise ValueError(f"{text[:80]!r}: write an IPv6 address in brackets")
    if wildcard and (target.literal or name.count(".") < _LEAST_LABELS - 1):
        raise ValueError(f"{text[:80]!r}: a wildcard needs a domain of at least two labels")
    return target


class Rules(NamedTuple):
    """What one worker may reach, and how its connections are told apart.

    Args:
        targets: the allow-list.
        names: address inside the namespace → name, for the exact names.
        listeners: (address to bind, port) inside the namespace, in the order of their fds.
        proxy_port: of the HTTP proxy inside, for wildcards; 0 for none.
    """

    targets: tuple[Target, ...]
    names: dict[str, str]
    listeners: tuple[tuple[str, int], ...]
    proxy_port: int = 0

    @property
    def literals(self) -> tuple[str, ...]:
        """The addresses that the worker may connect to as they are; loopback ones exist anyway."""
        found = dict.fromkeys(target.host for target in self.targets if target.literal)
        return tuple(host for host in found if judge(host) != "loopback")

    def target(self, address: str, port: int) -> tuple[str, int] | None:
        """Whom a connection to this address and port inside means; None: nobody allowed."""
        host = self.names.get(address, address)
        return (host, port) if Target(host, port) in self.targets else None

    def allows(self, host: str, port: int) -> bool:
        """Whether a name or address (canonical) is on the list."""
        if Target(host, port) in self.targets:
            return True
        return any(
            target.wildcard and target.port == port and host.endswith(f".{target.host}")
            for target in self.targets
        )

    def refuses_address(self, address: str, port: int) -> str:
        """Why a resolved address may not be connected to; "" if it may."""
        if Target(address, port) in self.targets:
            return ""  # the operator wrote this very address
        return judge(address)

    def hosts_lines(self) -> str:
        """What /etc/hosts has beside localhost."""
        return "".join(f"{address} {name}\n" for address, name in self.names.items())

    def environment(self) -> dict[str, str]:
        """The proxy variables, where wildcards need them."""
        if not self.proxy_port:
            return {}
        url = f"http://{PROXY_ADDRESS}:{self.proxy_port}"
        names = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy")
        # node 24 and later reads them only when it is told to.
        own = {"NODE_USE_ENV_PROXY": "1", "NO_PROXY": "localhost,127.0.0.1,::1"}
        return {**dict.fromkeys(names, url), **own, "no_proxy": own["NO_PROXY"]}

    def to_json(self) -> dict[str, Any]:
        """A JSON-able object; `from_json` reverses it. The longest fits a link's message."""
        return {"allow": [str(target) for target in self.targets]}

    @staticmethod
    def from_json(table: dict[str, Any]) -> "Rules":
        """The rules that `to_json` wrote."""
        return compile_rules(table["allow"])


def compile_rules(allow: Iterable[str]) -> Rules:
    """Give every name an address and every port a listener.

    Raises:
        ValueError: an entry is wrong, or there are too many of them.
    """
    targets = tuple(dict.fromkeys(parse_target(text) for text in allow))
    if len(targets) > MOST_TARGETS:
        raise ValueError(f"{len(targets)} entries, at most {MOST_TARGETS} are possible")
    exact = dict.fromkeys(t.host for t in targets if not t.literal and not t.wildcard)
    names = {_address(index): name for index, name in enumerate(exact)}
    wanted = {
        (ANY_6 if ":" in target.host else ANY_4, target.port): None
        for target in targets
        if not target.wildcard
    }
    proxy_port = 0
    if any(target.wildcard for target in targets):
        taken = {port for _, port in wanted}
        proxy_port = next(p for p in range(_FIRST_PROXY_PORT, _MOST_PORT) if p not in taken)
        wanted[ANY_4, proxy_port] = None
    if len(wanted) > MOST_LISTENERS:
        raise ValueError(f"{len(wanted)} different ports, at most {MOST_LISTENERS} are possible")
    return Rules(targets, names, tuple(wanted), proxy_port)


def _address(index: int) -> str:
    return f"{_HOSTS_PREFIX}.{index // 250}.{index % 250 + 1}"
