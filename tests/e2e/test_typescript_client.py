"""The TypeScript client, in both eras, on real servers: the same through vsm as directly."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import DEMO, VSM, Running, missing_servers, running

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / ".venv-conformance"
SCRIPT = ROOT / "tests/conformance/typescript.mjs"
MODERN = ROOT / "tests/servers/echo_modern.py"
CLIENT = SUITE / "node_modules/@modelcontextprotocol/client"
CONFIG = """
[gateway]
introspection = false
[clients.{name}]
integrations = ["{name}"]
[integrations.{name}]
command = {command}
profile = "{profile}"
read = {read}
"""
Calls = list[tuple[str, dict[str, Any]]]
SERVERS: dict[str, tuple[list[str], str, Calls]] = {
    "time": (
        [str(DEMO / "servers/time/bin/mcp-server-time"), "--local-timezone", "UTC"],
        "python-server",
        [
            ("convert_time", {"source_timezone": "UTC", "time": "12:00", "target_timezone": "UTC"}),
            ("get_current_time", {"timezone": "Nowhere/Nothing"}),
            ("nothing", {}),
        ],
    ),
    "everything": (
        [str(DEMO / "servers/everything/node_modules/.bin/mcp-server-everything")],
        "node-server",
        [("echo", {"message": "héllo"}), ("echo", {}), ("get-tiny-image", {})],
    ),
    "modern": (
        ["/usr/bin/python3", "-SI", str(MODERN), "modern"],
        "python-server",
        [("echo", {"text": "x"})],
    ),
}
PID = re.compile(r'"pid": \d+')
# What a gateway may say for itself: how long an answer may be kept, and who gave it.
OWN = {"_meta", "ttlMs", "cacheScope", "resultType"}
# The client itself drops this one in the modern era, which does not have it.
OF_THE_LEGACY_ERA = {"execution"}
DROPPED = OWN | OF_THE_LEGACY_ERA

pytestmark = pytest.mark.skipif(
    not CLIENT.exists(), reason="no TypeScript client: scripts/conformance brings it"
)


@pytest.fixture(scope="module")
def vsm(
    session_leaves_nothing: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """One vsm with every server, each seen by a client of its own."""
    del session_leaves_nothing
    folder = tmp_path_factory.mktemp("typescript")
    tables = [
        CONFIG.format(
            name=name,
            command=json.dumps(command),
            profile=profile,
            read=json.dumps([str(MODERN.parent)] if name == "modern" else []),
        ).replace("[gateway]\nintrospection = false\n", "")
        for name, (command, profile, _) in _servers().items()
    ]
    path = folder / "vsm.toml"
    path.write_text("[gateway]\nintrospection = false\n" + "\n".join(tables), encoding="utf-8")
    with running(path) as started:
        yield started
        assert started.stop() == 0


def _servers() -> dict[str, tuple[list[str], str, Calls]]:
    return {name: row for name, row in SERVERS.items() if name not in missing_servers()}


def seen(words: list[str], calls: Calls, mode: str, env: dict[str, str]) -> dict[str, Any]:
    plan = {"mode": mode, "command": words[0], "args": words[1:], "env": env, "calls": calls}
    done = subprocess.run(
        ["node", str(SCRIPT), json.dumps(plan)],
        env={**os.environ, "SUITE": str(SUITE)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def plain(value: Any, prefix: str) -> Any:
    """Without what a gateway adds, with the names as the server has them, without its pid."""
    if isinstance(value, dict):
        return {key: plain(one, prefix) for key, one in value.items() if key not in DROPPED}
    if isinstance(value, str):
        return PID.sub("", value.replace(prefix, ""))
    return [plain(one, prefix) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize("name", SERVERS)
def test_the_typescript_client_sees_the_same(vsm: Running, name: str, mode: str) -> None:
    if name not in _servers():
        pytest.skip(f"no {name} server: scripts/prepare --demo brings it")
    command, _, calls = SERVERS[name]
    env = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    if name == "modern" and mode == "legacy":
        pytest.skip("a modern server cannot be asked by a legacy client directly")
    direct = seen(command, calls, mode, env)
    words = [VSM, "connect", "--client", name]
    prefixed: Calls = [(f"{name}__{tool}", arguments) for tool, arguments in calls]
    through = seen(words, prefixed, mode, env | vsm.environment)
    one, other = plain(direct, f"{name}__"), plain(through, f"{name}__")
    # Some servers offer more to a client that can be asked, and vsm's clients may be asked.
    names = {tool["name"] for tool in one["tools"]["tools"]}
    other["tools"]["tools"] = [t for t in other["tools"]["tools"] if t["name"] in names]
    for key in one:
        assert other[key] == one[key], key
    assert one["calls"]
