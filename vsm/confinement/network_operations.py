"""The step that gives a worker its way out: listeners in its network namespace, handed outside.

Runs in the mini-init, in the worker's network namespace, while it still has capabilities over
it (ports below 1024, addresses of the loopback). The sockets go to the parent and are closed
here, so the worker never holds one. Standard library only.
"""

import os
import socket
from typing import NamedTuple

from vsm.confinement.operations import Site
from vsm.linux import namespaces

HANDED_OUT = b"listeners"
_BACKLOG = 128


class OpenListeners(NamedTuple):
    """Listen where the worker believes the allowed hosts to be.

    Args:
        listeners: (address to bind, port), in the order in which their fds are handed out.
        literals: addresses that the loopback answers for beside its own.
    """

    listeners: tuple[tuple[str, int], ...]
    literals: tuple[str, ...] = ()
    layer: str = "network"

    def execute(self, site: Site) -> str:
        """Open them, send them by the control socket, close them."""
        for index, address in enumerate(self.literals):
            namespaces.add_loopback_address(address, index + 1)
        opened = [_listen(address, port) for address, port in self.listeners]
        try:
            with socket.socket(fileno=os.dup(site.control_fd)) as control:
                socket.send_fds(control, [HANDED_OUT], [one.fileno() for one in opened])
        finally:
            for one in opened:
                one.close()
        return self.describe()

    def describe(self) -> str:
        """The ports."""
        ports = ", ".join(dict.fromkeys(str(port) for _, port in self.listeners))
        return f"the egress proxy listens inside on port {ports}"


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"listen on {address}:{port}: {error.strerror}") from error
    return listener
