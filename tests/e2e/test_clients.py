"""`[clients.NAME]` on a real vsm: by name through `vsm connect`, by token over HTTP."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import http_transport
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from running import VSM, Running, running

SERVER = Path(__file__).resolve().parents[1] / "servers/echo_legacy.py"
CONFIG = """
[integrations.a]
command = ["/usr/bin/python3", {server}]
read = [{folder}]
profile = "python-server"
[clients.narrow]
integrations = ["a"]
tools = ["a__echo"]
token_file = "token"
[clients.finder]
search = true
"""
TOKEN = "a-token-of-its-own-with-no-meaning"


@pytest.fixture
def config(test_leaves_nothing: None, tmp_path: Path) -> Path:
    del test_leaves_nothing
    server, folder = json.dumps(str(SERVER)), json.dumps(str(SERVER.parent))
    (tmp_path / "vsm.toml").write_text(CONFIG.format(server=server, folder=folder))
    (tmp_path / "token").write_text(TOKEN + "\n")
    return tmp_path / "vsm.toml"


async def _tools(transport: Any) -> set[str]:
    async with Client(transport) as client:
        return {tool.name for tool in (await client.list_tools()).tools}


def _connect(vsm: Running, *words: str) -> Any:
    parameters = StdioServerParameters(
        command=VSM, args=["connect", *words], env=dict(vsm.environment)
    )
    return stdio_client(parameters, errlog=sys.stderr)


def test_clients_see_what_is_configured_for_them(config: Path) -> None:
    async def look(vsm: Running) -> None:
        whole = await _tools(_connect(vsm))
        assert {"a__echo", "a__die", "vsm__status"} <= whole
        assert await _tools(_connect(vsm, "--client", "narrow")) == {"a__echo"}
        assert await _tools(http_transport(vsm.url, TOKEN)) == {"a__echo"}
        assert await _tools(http_transport(vsm.url, vsm.token)) == whole
        found = await _tools(_connect(vsm, "--client", "finder"))
        assert found == {"vsm__search", "vsm__describe", "vsm__call"}

    with running(config) as vsm:
        asyncio.run(look(vsm))
        unknown = vsm.vsm("connect", "--client", "nobody")
        assert unknown.returncode == 1
        assert "no client 'nobody'" in unknown.stderr
        assert vsm.stop() == 0
        assert TOKEN not in vsm.log()


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('[clients.x]\nintegrations = ["b"]', "no integration 'b'. Known: a."),
        ('[clients.x]\ntools = [""]', "clients.x.tools"),
        ('[clients.default]\ntoken_file = "token"', "without a token of its own"),
        ('[clients.x]\ntoken_file = "absent"', "No such file"),
        ('[clients.x]\ntoken_file = "token"', "narrow has the same token"),
        ('[clients.x]\ntoken_file = "vsm.toml"', "expected at least 16 ASCII characters"),
    ],
)
def test_a_client_that_cannot_be_meant_is_refused(
    config: Path, toml: str, says: str, tmp_path: Path
) -> None:
    config.write_text(config.read_text() + toml + "\n")
    environment = dict(os.environ) | {
        "VSM_RUNTIME_DIR": str(tmp_path / "run"),
        "VSM_STATE_DIR": str(tmp_path / "state"),
    }
    done = subprocess.run(
        [VSM, "up", "--config", str(config), "--http", ""],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert TOKEN not in done.stderr
