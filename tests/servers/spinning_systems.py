"""Systems for the real template, of which the first system4 stops serving in a busy loop.

The entry of a template: "spinning_systems:enter". All but that loop is `vsm.systems.entry`:
descriptors, confinement and heartbeat are what they always are.
"""

import asyncio
import sys
from types import SimpleNamespace
from typing import Any

from vsm.systems import entry, intelligence

SPINS_AFTER_S = 0.5
FIRST_EPOCHS = 5  # what replaces it serves


def enter(system: str, epoch: int, *more: Any) -> None:
    """Become a system."""
    if system == "system4" and epoch <= FIRST_EPOCHS:
        sys.modules["spinning"] = SimpleNamespace(main=main)  # type: ignore[assignment]
        entry.MODULES["system4"] = "spinning"
    entry.enter(system, epoch, *more)


async def main(context: Any) -> None:
    """Serve for a while, then never again."""
    asyncio.get_running_loop().call_later(SPINS_AFTER_S, spin)
    await intelligence.main(context)


def spin() -> None:
    """The event loop gets nothing back from here."""
    while True:
        pass
