"""A vsm whose entries are edited while it runs, and a server that waits at its gate, a file."""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from running import Running
from sessions import Sessions
from supervised import Row

SERVER = Path(__file__).resolve().parent / "servers/replaced.py"


class Rig:
    """A folder with the server, its gate and the vsm.toml of `vsm`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = shutil.copy(SERVER, folder)
        self.config = folder / "vsm.toml"
        self.vsm: Running

    def entry(self, name: str, more: str, env: dict[str, str]) -> str:
        """One integration: `more` are lines of it, `env` is its environment."""
        table = ", ".join(f"{key} = {json.dumps(value)}" for key, value in env.items())
        return (
            f"[integrations.{name}]\ncommand = ['/usr/bin/python3', {json.dumps(self.server)}]\n"
            f"read = [{json.dumps(str(self.folder))}]\nstop_timeout_s = 0.5\n"
            f"env = {{ {table} }}\n{more}\n"
        )

    @property
    def gate(self) -> str:
        return str(self.folder / "gate")

    def open(self, name: str = "gate") -> None:
        (self.folder / name).touch()

    def close(self) -> None:
        (self.folder / "gate").unlink()


def command(rig: Rig, *words: str) -> "asyncio.Task[Any]":
    """A command of vsm, while the test goes on."""
    return asyncio.create_task(asyncio.to_thread(rig.vsm.vsm, *words))


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """What the server says of itself in answer to a call."""
    assert "result" in answer, answer
    found: dict[str, Any] = json.loads(answer["result"]["content"][0]["text"])
    return found


async def wait_starting(it: Sessions, found: Callable[[], Iterable[Row]]) -> None:
    """Until the process of a new server is there."""

    def starts() -> bool:
        return any(row["state"] == "starting" and row["pid"] for row in found())

    await it.wait(starts)
