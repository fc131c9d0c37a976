"""The channels between the five systems, as a table: who may send what to whom.

Pure. A pair that is not in the table has no socket, so the table is enforced by what exists.
S4 never sends to S1. Snapshots for S1 travel over the control links, relayed and kept by the
supervisor; they are rows of SNAPSHOTS, not sockets.
"""

from typing import Final, Literal, NamedTuple

SYSTEMS: Final = ("system1", "system2", "system3", "system4", "system5")

Carries = Literal["summary", "rates", "budgets", "proposal", "policy", "algedonic", "outlook"]


class Channel(NamedTuple):
    """A one-directional channel."""

    sender: str
    receiver: str
    carries: Carries

    @property
    def name(self) -> str:
        """The name that its two descriptors travel under."""
        return f"{self.sender}>{self.receiver}:{self.carries}"


CHANNELS: Final = (
    Channel("system1", "system2", "summary"),
    Channel("system1", "system3", "summary"),
    Channel("system2", "system3", "rates"),
    Channel("system3", "system2", "budgets"),
    Channel("system3", "system4", "budgets"),
    Channel("system4", "system3", "outlook"),
    Channel("system3", "system5", "proposal"),
    Channel("system4", "system5", "proposal"),
    Channel("system5", "system2", "policy"),
    Channel("system5", "system3", "policy"),
    Channel("system5", "system4", "policy"),
    Channel("system1", "system5", "algedonic"),
    Channel("system2", "system5", "algedonic"),
    Channel("system3", "system5", "algedonic"),
    Channel("system4", "system5", "algedonic"),
)

# Who publishes which compiled snapshot to S1.
SNAPSHOTS: Final = {"system2": "rates", "system3": "limits", "system5": "rules"}


def sends(system: str) -> tuple[Channel, ...]:
    """The channels that `system` holds the sending end of."""
    return tuple(channel for channel in CHANNELS if channel.sender == system)


def receives(system: str) -> tuple[Channel, ...]:
    """The channels that `system` holds the receiving end of."""
    return tuple(channel for channel in CHANNELS if channel.receiver == system)
