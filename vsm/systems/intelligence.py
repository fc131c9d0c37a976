"""S4, intelligence: outside-and-then.

Runs in its own confined process. At this stage it observes no demand and acquires nothing; it
holds its channels and says so. It has no channel to S1.
"""

from vsm.messages import Body
from vsm.systems.base import SystemContext


def _state(context: SystemContext) -> Body:
    return {
        "role": "intelligence",
        "snapshot": None,
        "lacks": ["no demand observed", "no registry configured", "nothing is acquired yet"],
        **context.channel_state(),
    }


async def main(context: SystemContext) -> None:
    """Hold the channels and answer truthfully until told to stop."""
    context.answer("state", lambda: _state(context))
    await context.started()
    context.ready()
    await context.stopping.wait()
