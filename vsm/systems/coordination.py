"""S2, coordination: damps oscillation between the integrations.

Runs in its own confined process. At this stage it publishes that no rates are configured, holds
its channels and counts what arrives; it damps nothing yet and says so.
"""

from vsm.messages import Body, SnapshotOut, Summary
from vsm.systems.base import SystemContext

SNAPSHOT: Body = {"rates": {}, "configured": False}


class Coordination:
    """What S2 knows."""

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.last_summary: Summary | None = None

    def on_summary(self, message: Summary, fds: list[int]) -> None:
        """Keep the newest load summary of S1."""
        del fds
        self.last_summary = message

    def state(self) -> Body:
        """What it has and what it lacks."""
        lacks = ["no rates configured", "no oscillation is damped yet"]
        if self.last_summary is None:
            lacks.append("no load observed")
        summary = self.last_summary
        return {
            "role": "coordination",
            "snapshot": SNAPSHOT,
            "last_summary": None if summary is None else summary.model_dump(mode="json"),
            "lacks": list(lacks),
            **self.context.channel_state(),
        }


async def main(context: SystemContext) -> None:
    """Publish the default snapshot, then observe until told to stop."""
    coordination = Coordination(context)
    context.handle("system1>system2:summary", coordination.on_summary)
    context.answer("state", coordination.state)
    await context.started()
    context.report(SnapshotOut(body=SNAPSHOT))
    context.ready()
    await context.stopping.wait()
