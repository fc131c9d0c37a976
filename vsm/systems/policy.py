"""S5, policy: identity, rules, the final say; every algedonic signal ends here.

Runs in its own confined process. At this stage no rules are configured: its snapshot allows what
is not marked "ask", and it says so. Signals are kept, bounded, and shown; none is acted on yet.
"""

from collections import deque
from typing import Final

from vsm.core import channels
from vsm.messages import Algedonic, Body, SnapshotOut
from vsm.systems.base import SystemContext

KEPT_SIGNALS: Final = 64
SNAPSHOT: Body = {"rules": [], "default": "allow", "ask": [], "configured": False}


class Policy:
    """What S5 knows."""

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.signals: deque[tuple[str, Algedonic]] = deque(maxlen=KEPT_SIGNALS)
        self.signals_total = 0

    def listen(self) -> None:
        """Receive the algedonic signals of every system."""
        for channel in channels.receives("system5"):
            if channel.carries == "algedonic":
                self._listen_to(channel)

    def _listen_to(self, channel: channels.Channel) -> None:
        def receive(message: Algedonic, fds: list[int]) -> None:
            del fds
            self.signals.append((channel.sender, message))
            self.signals_total += 1

        self.context.handle(channel.name, receive)

    def state(self) -> Body:
        """What it has and what it lacks."""
        return {
            "role": "policy",
            "snapshot": SNAPSHOT,
            "signals_total": self.signals_total,
            "signals": [
                {
                    "sender": sender,
                    "severity": signal.severity,
                    "subject": signal.subject,
                    "detail": signal.detail[:256],
                }
                for sender, signal in list(self.signals)[-8:]
            ],
            "lacks": ["no rules configured", "no signal is acted on yet"],
            **self.context.channel_state(),
        }


async def main(context: SystemContext) -> None:
    """Publish the default rules, then listen until told to stop."""
    policy = Policy(context)
    policy.listen()
    context.answer("state", policy.state)
    await context.started()
    context.report(SnapshotOut(body=SNAPSHOT))
    context.ready()
    await context.stopping.wait()
