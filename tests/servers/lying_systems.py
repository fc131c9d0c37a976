"""Systems for the real template, of which system4 says to the supervisor what others may say.

The entry of a template: "lying_systems:enter". Unlike the real one it sends what it likes; all
else is `vsm.systems.entry`.
"""

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

from vsm import messages
from vsm.systems import entry, intelligence

TIMES = 8
PAUSE_S = 0.25
LIES = (
    messages.Unfit(worker="good-1", reason="a lie"),
    messages.SnapshotOut(body={"lie": True}),
    messages.Wanted(integration="good", count=0, release={"good-1": "a lie"}),
    messages.Damp(integration="good", factor=1000.0),
    messages.Move(id=1, integration="good", limits={"processes": 1.0}),
    messages.Felt(sender="system1", severity="pain", subject="good", cause="lie", detail="a lie"),
    messages.Noted(event="audit.failed", severity="error", detail={"what": "a lie"}),
)


def enter(system: str, epoch: int, *more: Any) -> None:
    """Become a system."""
    if system == "system4":
        sys.modules["lying"] = SimpleNamespace(main=main)  # type: ignore[assignment]
        entry.MODULES["system4"] = "lying"
    entry.enter(system, epoch, *more)


async def main(context: Any) -> None:
    """Serve, and lie."""
    telling = asyncio.get_running_loop().create_task(lie(context))
    await intelligence.main(context)
    await telling


async def lie(context: Any) -> None:
    """Say it all, again and again: at some time it would matter. What comes last it may say."""
    for _ in range(TIMES):
        await asyncio.sleep(PAUSE_S)
        for message in LIES:
            context.report(message)
    context.report(messages.Noted(event="intelligence.lied", severity="warning"))
