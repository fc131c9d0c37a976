"""The channels between the five systems, as a table: who may send what to whom.

Pure. A pair that is not in the table has no socket, so the table is enforced by what exists.
S4 never sends to S1. Snapshots for S1 travel over the control links, relayed and kept by the
supervisor; they are rows of SNAPSHOTS, not sockets. What a system may say to the supervisor is
REPORTS: its control link takes nothing else from it.
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


_OPERATIONS: Final = frozenset({"system1"})
# Kind of a message on a control link -> which systems may send it to the supervisor.
REPORTS: Final[dict[str, frozenset[str]]] = {
    **dict.fromkeys(("ready", "answer", "noted", "decided", "settled"), frozenset(SYSTEMS)),
    **dict.fromkeys(
        (
            "session", "unfit", "wanted", "learnt", "idle", "offered", "segments", "ask",
            "asking", "withdrawn", "spent", "contracted",
        ),
        _OPERATIONS,
    ),
    "snapshot": frozenset(SNAPSHOTS),
    "damp": frozenset({"system2"}),
    "move": frozenset({"system3"}),
    "audit": frozenset({"system3"}),
    "felt": frozenset({"system5"}),
}  # fmt: skip

# What the record may hold of each in its own name: how the kinds of its events begin, and the
# rules by which it decides. What vsm is told of its past is true of whom it is about.
NOTES: Final[dict[str, tuple[str, ...]]] = {
    "system1": ("breaker.", "call.failed", "calls."),
    "system2": ("coordination.",),
    "system3": ("audit.", "control."),
    "system4": ("intelligence.",),
    "system5": (),
}
RULES: Final[dict[str, tuple[str, ...]]] = {
    "system1": ("policy.rule", "policy.default", "breaker."),
    "system2": ("coordination.",),
    "system3": ("budget.",),
    "system4": (),
    "system5": ("closure.",),
}


def sends(system: str) -> tuple[Channel, ...]:
    """The channels that `system` holds the sending end of."""
    return tuple(channel for channel in CHANNELS if channel.sender == system)


def receives(system: str) -> tuple[Channel, ...]:
    """The channels that `system` holds the receiving end of."""
    return tuple(channel for channel in CHANNELS if channel.receiver == system)


def most_bits(message_bytes: float) -> float:
    """The most that messages of so many bytes can carry, in bits: 8 for each byte.

    A message of n bytes is one of N = 256^n, so it carries log2 N = 8n bits at most, whatever the
    odds of each (Hartley 1928; Shannon 1948, § 1 and § 6). What the lengths of messages say beside
    their bytes is not counted. JSON says far less in as many bytes: this is a bound.

    Args:
        message_bytes: of one message, of all that wait, or a second; then it is bits a second.
    """
    return 8 * message_bytes
