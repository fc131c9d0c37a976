"""What the template imports before it forks, and where a fork of it begins.

Names only: the template is executed by who has imported nothing yet.
"""

from typing import Final

MODULES: Final = {
    "system1": "vsm.systems.operations",
    "system2": "vsm.systems.coordination",
    "system3": "vsm.systems.control",
    "system4": "vsm.systems.intelligence",
    "system5": "vsm.systems.policy",
}
ENTRY: Final = "vsm.systems.entry:enter"
# Imported once by the template. A child may be unable to read any file, so nothing is left to
# be imported later: encodings and event loops included.
PRELOAD: Final = (
    "numpy",
    "pydantic",
    "msgspec",
    "structlog",
    "uvloop",
    "httptools",
    "encodings.idna",
    "asyncio.unix_events",
    "concurrent.futures.thread",
    "traceback",
    *MODULES.values(),
)
