"""A server as its tasks know it: what they keep of it when it has ended is its integration's name.

Owned by the server's connection, filled by `vsm.gateway.tasks`. Runs in S1's event loop.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vsm.gateway.tasks import Task
    from vsm.gateway.upstream import Upstream


class Maker:
    """One server.

    Attributes:
        integration: whose server it is.
        server: None once it has ended.
        tasks: by the server's own ids.
    """

    __slots__ = ("integration", "server", "tasks")

    def __init__(self, server: "Upstream") -> None:
        self.integration = server.integration
        self.server: Upstream | None = server
        self.tasks: dict[str, Task] = {}

    def end(self) -> None:
        """The server has ended."""
        self.server = None
        for task in self.tasks.values():
            task.own_id = ""
        self.tasks.clear()
