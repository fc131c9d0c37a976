"""What docs/library.md shows is run, and prints what the page says."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from running import Running, running

import vsm

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/library.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```\n```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FILES = dict(re.findall(r"^```\w+ ([\w.]+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


def test_every_example_says_what_it_prints() -> None:
    assert len(EXAMPLES) == len(re.findall(r"^```python\n", PAGE, re.MULTILINE)) >= 6


def test_every_public_name_is_there_and_on_the_page() -> None:
    for name in vsm.__all__:
        assert getattr(vsm, name).__doc__, name
        assert re.search(rf"`vsm\.{name}`", PAGE), name
    assert set(vsm.__all__) <= set(dir(vsm))


@pytest.mark.parametrize(("code", "printed"), EXAMPLES)
def test_example_prints_what_the_page_says(
    code: str, printed: str, tmp_path: Path, require: Callable[[str, bool, str], None]
) -> None:
    file = tmp_path / "example.py"
    file.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    said = (done.stderr.splitlines() or [""])[-1]
    require("profile", "vsm.errors.ConfinementError" not in said, said)
    assert (done.stdout, done.stderr) == (printed, "")


def test_own_server_of_ten_lines_is_served_confined(tmp_path: Path) -> None:
    assert len([line for line in FILES["server.py"].splitlines() if line]) <= 10
    tmp_path.chmod(0o755)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with running(tmp_path / "vsm.toml", settings={"PATH": path}) as system:
        text = asyncio.run(asyncio.wait_for(_count(system.url, system.token), 60))
        assert "3" in text
        _check_board(system)
        (worker,) = [w for w in system.status()["workers"] if w["kind"] == "integration"]
        states = {layer["name"]: layer["state"] for layer in worker["layers"]}
        assert (states["seccomp"], states["landlock"]) == ("in force", "in force")
        assert system.stop() == 0


def _check_board(running: Running) -> None:
    """`vsm.Board` reads from shared memory what `vsm board dump` is told, and goes on reading."""
    directory = running.folder / "run"
    with vsm.Board(directory) as board:
        demand = board.read()["words"]
        ok = board.outcomes.index("ok")
        assert (demand.events, demand.classes["count"][ok]) == (1, 1)
        told = json.loads(running.vsm("board", "dump", "--json").stdout)["demand"]
        assert (told["pid"], told["epoch"]) == (board.pid, board.epoch)
        assert told["integrations"]["words"]["classes"] == demand.classes
        (array,) = board.arrays()
        assert b"words" in array["name"]
        assert not array.flags.writeable
        assert set(board.resources()) <= {"words"}  # sampled, where ten seconds have passed
        before = board.changes()
        asyncio.run(asyncio.wait_for(_count(running.url, running.token), 60))
        assert board.changes() > before
        assert board.read()["words"].classes["count"][ok] == 2
        board.refresh()
        assert board.read()["words"].events == 2
    shown = subprocess.run(
        [sys.executable, "-c", FILES["board.py"]],
        env={**os.environ, **running.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "words count {'ok': 2, 'tool_error': 0" in shown.stdout, shown.stderr
    with pytest.raises(vsm.VsmError, match="no vsm is running"):
        vsm.Board(running.folder)


async def _count(url: str, token: str) -> str:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        answer = await client.call_tool("words__count", {"text": "one two three"})
        return str(answer.content)
