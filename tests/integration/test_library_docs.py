"""What docs/library.md shows is run, and prints what the page says."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from running import running

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/library.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```\n```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FILES = dict(re.findall(r"^```\w+ ([\w.]+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


def test_every_example_says_what_it_prints() -> None:
    assert len(EXAMPLES) == len(re.findall(r"^```python\n", PAGE, re.MULTILINE)) >= 6


@pytest.mark.parametrize(("code", "printed"), EXAMPLES)
def test_example_prints_what_the_page_says(code: str, printed: str, tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == (printed, "")


def test_own_server_of_ten_lines_is_served_confined(tmp_path: Path) -> None:
    assert len([line for line in FILES["server.py"].splitlines() if line]) <= 10
    tmp_path.chmod(0o755)
    for name, text in FILES.items():
        own = text.replace('"python3"', f'"{sys.executable}"')
        own = own.replace('"server.py"', f'"{tmp_path}/server.py"')
        (tmp_path / name).write_text(own, encoding="utf-8")
    with running(tmp_path / "vsm.toml") as vsm:
        text = asyncio.run(asyncio.wait_for(_count(vsm.url, vsm.token), 60))
        assert "3" in text
        (worker,) = [w for w in vsm.status()["workers"] if w["kind"] == "integration"]
        states = {layer["name"]: layer["state"] for layer in worker["layers"]}
        assert (states["seccomp"], states["landlock"]) == ("in force", "in force")
        assert vsm.stop() == 0


async def _count(url: str, token: str) -> str:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        answer = await client.call_tool("words__count", {"text": "one two three"})
        return str(answer.content)
