"""S3, control: the resource bargain of inside-and-now.

Runs in its own confined process. At this stage it publishes the limits that the configuration
gives each integration; it moves no limit and audits nothing yet, and says so.
"""

from vsm.messages import Body, Configure, Outlook, SnapshotOut, Start, Summary
from vsm.systems.base import SystemContext


class Control:
    """What S3 knows."""

    def __init__(self, context: SystemContext) -> None:
        self.context = context
        self.snapshot: Body = {}
        self.last_summary: Summary | None = None
        self.outlook: Body | None = None

    def on_summary(self, message: Summary, fds: list[int]) -> None:
        """Keep the newest load summary of S1."""
        del fds
        self.last_summary = message

    def reconfigure(self, message: Configure, fds: list[int]) -> None:
        """Take them again: vsm.toml was reloaded."""
        del fds
        self.configure(message)
        self.context.report(SnapshotOut(body=self.snapshot))

    def on_outlook(self, message: Outlook, fds: list[int]) -> None:
        """Keep the newest outlook of S4."""
        del fds
        self.outlook = message.body

    def configure(self, start: Start | Configure) -> None:
        """Take the configured limits: of calls for S1, of resources for the record."""
        calls: Body = {
            row.name: {"concurrency": row.concurrency, "call_timeout_s": row.call_timeout_s}
            for row in start.integrations
        }
        resources = start.limits if isinstance(start, Start) else self.snapshot["resources"]
        self.snapshot = {"limits": calls, "resources": resources}

    def state(self) -> Body:
        """What it has and what it lacks."""
        lacks = ["limits are as configured: none is moved yet", "no audit yet"]
        if self.last_summary is None:
            lacks.append("no load observed")
        if self.outlook is None:
            lacks.append("no outlook of system 4 yet")
        summary = self.last_summary
        return {
            "role": "control",
            "snapshot": self.snapshot,
            "outlook": self.outlook,
            "last_summary": None if summary is None else summary.model_dump(mode="json"),
            "lacks": list(lacks),
            **self.context.channel_state(),
        }


async def main(context: SystemContext) -> None:
    """Publish the configured limits, then observe until told to stop."""
    control = Control(context)
    context.handle("system1>system3:summary", control.on_summary)
    context.handle("configure", control.reconfigure)
    context.handle("system4>system3:outlook", control.on_outlook)
    context.answer("state", control.state)
    start, _ = await context.started()
    control.configure(start)
    context.report(SnapshotOut(body=control.snapshot))
    context.ready()
    await context.stopping.wait()
