"""An integration's secret is where its server needs it, and nowhere else that can be read."""

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import leaks
import psutil
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from running import Running, running

SECRET = f"s3cr3t-{os.urandom(12).hex()}"
SERVER = """
import hashlib, os, sys
print("the key is", os.environ.get("API_KEY"), file=sys.stderr, flush=True)
from mcp.server.mcpserver import MCPServer
server = MCPServer("keeper")
@server.tool()
def digest(word: str) -> str:
    return hashlib.sha256(os.environ[word].encode()).hexdigest()
@server.tool()
def fail(word: str) -> str:
    raise ValueError("no such " + word)
server.run()
"""
CONFIG = """
[integrations.keeper]
command = [{python}, {server}]
profile = "python-server"
secrets = {{ API_KEY = {{ file = {secret} }} }}
[integrations.other]
command = [{python}, {server}]
profile = "python-server"
[integrations.broken]
command = ["/bin/false"]
secrets = {{ API_KEY = {{ file = {secret} }} }}
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("secrets")
    folder.chmod(0o755)
    for name, text, mode in (("server.py", SERVER, 0o644), ("secret", SECRET, 0o600)):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(mode)
    words = {"python": sys.executable, "server": folder / "server.py", "secret": folder / "secret"}
    quoted = {name: json.dumps(str(word)) for name, word in words.items()}
    (folder / "vsm.toml").write_text(CONFIG.format(**quoted), encoding="utf-8")
    with running(folder / "vsm.toml") as vsm:
        assert asyncio.run(asyncio.wait_for(_use(vsm), 60)) == _digest()
        yield vsm


def _digest() -> str:
    return hashlib.sha256(SECRET.encode()).hexdigest()


async def _use(vsm: Running) -> str:
    """The server has its secret (by its hash), and has made an error as well."""
    headers = {"Authorization": f"Bearer {vsm.token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(vsm.url, http_client=http)) as client,
    ):
        failed = await client.call_tool("keeper__fail", {"word": "API_KEY"})
        other = await client.call_tool("other__digest", {"word": "API_KEY"})
        assert failed.is_error
        assert other.is_error, "another integration has the secret"
        answer = await client.call_tool("keeper__digest", {"word": "API_KEY"})
        return str(answer.content[0].text)


def _tree(vsm: Running) -> list[psutil.Process]:
    supervisor = psutil.Process(vsm.process.pid)
    return [supervisor, *supervisor.children(recursive=True)]


def _holders(vsm: Running, file: str) -> set[int]:
    holders = set()
    for process in _tree(vsm):
        try:
            if SECRET.encode() in Path(f"/proc/{process.pid}/{file}").read_bytes():
                holders.add(process.pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            assert os.geteuid() != 0
            continue  # no program of this user can read it either
    return holders


def test_secret_is_in_no_argv(served: Running) -> None:
    assert _holders(served, "cmdline") == set()


def test_secret_is_in_the_environment_of_its_server_only(served: Running) -> None:
    (worker,) = [w for w in served.status()["workers"] if w["integration"] == "keeper"]
    own = {p.pid for p in psutil.Process(worker["pid"]).children(recursive=True)}
    assert _holders(served, "environ") == own
    assert len(own) == 1


def test_no_process_leaves_a_core(served: Running) -> None:
    """Servers have secrets, and those who start them pass them on."""
    tree = _tree(served)
    assert len(tree) > 8
    for process in tree:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            limits = Path(f"/proc/{process.pid}/limits").read_text()
            lines = [ln for ln in limits.splitlines() if ln.startswith("Max core file size")]
            assert len(lines) == 1 or leaks.is_gone(process.pid), process
            # One byte and not none: it stops a core that goes to a program, too (core(5)).
            assert all(set(line.split()[4:6]) <= {"0", "1"} for line in lines), process


@pytest.mark.parametrize(
    "words", [["status", "--json"], ["events"], ["decisions"], ["tools"], ["logs", "keeper"]]
)
def test_no_command_prints_it(served: Running, words: list[str]) -> None:
    done = served.vsm(*words)
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_what_a_server_prints_of_it_is_taken_out(served: Running) -> None:
    assert "the key is [API_KEY]" in served.vsm("logs", "keeper").stdout
    assert "the key is None" in served.vsm("logs", "other").stdout


def test_it_is_in_no_file_and_no_log(served: Running) -> None:
    """State (the journal), runtime directory and log; the control is a word that they do hold."""
    text = b"".join(
        path.read_bytes() for path in sorted(served.folder.rglob("*")) if path.is_file()
    )
    assert b"keeper" in text
    assert SECRET.encode() not in text


def test_errors_about_a_secret_do_not_hold_it(served: Running, tmp_path: Path) -> None:
    """Neither that of the server that will not start nor those of a wrong configuration."""
    (broken,) = [w for w in served.status()["workers"] if w["integration"] == "broken"]
    assert broken["state"] != "ready"
    assert SECRET not in json.dumps(broken)
    config = tmp_path / "vsm.toml"
    config.write_text(f'[integrations.a]\ncommand = ["x"]\nsecrets = {{ K = "{SECRET}" }}\n')
    done = served.vsm("up", "--config", str(config))
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr
