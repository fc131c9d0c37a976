"""Servers that know nothing of vsm, unconfined here, fifty calls in flight on each at once."""

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import gateway_harness as harness
import pytest
import uvloop

SERVERS = Path(__file__).resolve().parents[2] / "demo/servers"
# name: command within demo/servers, tool, arguments, what its answer holds
REAL: dict[str, tuple[list[str], str, dict[str, Any], str]] = {
    "time": (["time/bin/mcp-server-time"], "get_current_time", {"timezone": "UTC"}, "datetime"),
    "git": (["git/bin/mcp-server-git"], "git_status", {"repo_path": "{tmp}/repository"}, "branch"),
    "everything": (
        ["everything/node_modules/.bin/mcp-server-everything"],
        "echo",
        {"message": "héllo"},
        "héllo",
    ),
    "filesystem": (
        ["filesystem/node_modules/.bin/mcp-server-filesystem", "{tmp}"],
        "list_directory",
        {"path": "{tmp}"},
        "repository",
    ),
    "memory": (["memory/node_modules/.bin/mcp-server-memory"], "read_graph", {}, "entities"),
}
INSTALLED = [name for name, (argv, *_) in REAL.items() if (SERVERS / argv[0]).exists()]


def filled(value: str, folder: Path) -> str:
    return value.replace("{tmp}", str(folder))


@pytest.mark.skipif(not INSTALLED, reason="no demo servers: scripts/prepare --demo brings them")
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
@pytest.mark.parametrize("transport", ["unix", "http", "stdio"])
def test_real_servers_answer_fifty_calls_each_at_once(
    transport: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = str(tmp_path / "repository")
    subprocess.run(["/usr/bin/env", "git", "init", "-q", repository], check=True)
    monkeypatch.setenv("MEMORY_FILE_PATH", str(tmp_path / "memory.jsonl"))
    monkeypatch.setenv("HOME", os.environ.get("HOME", str(tmp_path)))
    commands = {
        name: [str(SERVERS / REAL[name][0][0]), *(filled(a, tmp_path) for a in REAL[name][0][1:])]
        for name in INSTALLED
    }

    async def main() -> None:
        async with (
            harness.running(commands) as gateway,
            gateway.client(transport, mode=mode) as client,
        ):
            names = {tool.name for tool in (await client.list_tools()).tools}

            async def call(name: str) -> None:
                _, tool, arguments, expected = REAL[name]
                given = {key: filled(value, tmp_path) for key, value in arguments.items()}
                answer = await client.call_tool(f"{name}__{tool}", given)
                text = "".join(getattr(block, "text", "") for block in answer.content)
                assert not answer.is_error
                assert expected in text

            for name in INSTALLED:
                assert f"{name}__{REAL[name][1]}" in names
            async with asyncio.TaskGroup() as tasks:
                for name in INSTALLED:
                    for _ in range(50):
                        tasks.create_task(call(name))

    uvloop.run(main())
