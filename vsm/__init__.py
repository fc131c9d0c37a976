"""vsm runs untrusted MCP servers, each confined by the kernel, behind one endpoint.

Importing this package costs nothing: the launcher and the command line both do it first. What
it offers to programs (docs/library.md) is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsm.errors import ConfigurationError, ConfinementError, VsmError
    from vsm.library.board import Board
    from vsm.library.endpoint import Gateway
    from vsm.library.pool import Pool, Reply
    from vsm.library.profile import Profile
    from vsm.library.result import Result, RunError
    from vsm.library.run import run, run_async, run_code
    from vsm.library.spec import WorkerEvent, WorkerSpec
    from vsm.library.supervisor import Supervisor, Worker

__version__ = "0.1.0"

__all__ = [
    "Board",
    "ConfigurationError",
    "ConfinementError",
    "Gateway",
    "Pool",
    "Profile",
    "Reply",
    "Result",
    "RunError",
    "Supervisor",
    "VsmError",
    "Worker",
    "WorkerEvent",
    "WorkerSpec",
    "run",
    "run_async",
    "run_code",
]

_HOMES = {
    "vsm.errors": ("ConfigurationError", "ConfinementError", "VsmError"),
    "vsm.library.board": ("Board",),
    "vsm.library.endpoint": ("Gateway",),
    "vsm.library.pool": ("Pool", "Reply"),
    "vsm.library.profile": ("Profile",),
    "vsm.library.result": ("Result", "RunError"),
    "vsm.library.run": ("run", "run_async", "run_code"),
    "vsm.library.spec": ("WorkerEvent", "WorkerSpec"),
    "vsm.library.supervisor": ("Supervisor", "Worker"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    import importlib

    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'vsm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
