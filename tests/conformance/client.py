"""The client side of a scenario of the official suite, through a real vsm: `client.py [login] URL`.

The suite's server stands at URL. A vsm of its own has it as remote server, and the SDK's client, in
the legacy era over `vsm connect`, uses what the scenario's server offers. So what the suite judges
is the side of vsm that speaks to servers; what a modern server asks crosses the eras on its way.
With "login" somebody runs `vsm login` first, and again when an error says so, and opens in a
browser what it prints.
"""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client, MCPError, StdioServerParameters
from mcp.types import ElicitResult

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from running import VSM, Running, running  # noqa: E402 - a neighbour, not a package

NAME = "suite"
LOGINS = 3
PATIENCE_S = 20.0
SETTLE_S = 60.0
EXAMPLES = {"number": 5, "integer": 5, "boolean": True, "array": [], "object": {}}


async def accept(_context: object, params: Any) -> ElicitResult:
    """Accept, with the schema's defaults."""
    properties = getattr(params, "requested_schema", {}).get("properties", {})
    return ElicitResult(action="accept", content={n: filled(p) for n, p in properties.items()})


def filled(schema: dict[str, Any]) -> Any:
    """A value that a schema takes."""
    return schema.get("default", EXAMPLES.get(schema.get("type", ""), "text"))


def calls(tools: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    """What the scenario asks to call, else each tool with what it requires."""
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
    if "toolCalls" in context:
        return [(call["name"], call["arguments"]) for call in context["toolCalls"]]
    found = []
    for tool in tools:
        schema = tool.input_schema
        properties = schema.get("properties", {})
        found.append((tool.name, {n: filled(properties[n]) for n in schema.get("required", [])}))
    return found


async def play(vsm: Running) -> list[str]:
    """Everything that the server offers, once; the errors of calls."""
    bridge = StdioServerParameters(command=VSM, args=["connect"], env=vsm.environment)
    errors: list[str] = []
    async with Client(bridge, mode="legacy", elicitation_callback=accept) as client:
        offered = client.server_capabilities
        if offered.tools:
            tools = (await client.list_tools()).tools
            own = [tool for tool in tools if not tool.name.startswith("vsm__")]
            for name, arguments in calls(own):
                try:
                    await client.call_tool(name, arguments)
                except MCPError as error:  # some servers only list theirs
                    errors.append(str(error))
        if offered.resources:
            for resource in (await client.list_resources()).resources:
                await client.read_resource(str(resource.uri))
        if offered.prompts:
            for prompt in (await client.list_prompts()).prompts:
                needed = [a.name for a in prompt.arguments or [] if a.required]
                await client.get_prompt(prompt.name, dict.fromkeys(needed, "text"))
    return errors


def log_in(vsm: Running, words: list[str]) -> bool:
    """Run a command of vsm and open what it prints, as a person does; whether it came to a login.

    It waits for the server to serve, and a person does not wait for ever.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [VSM, *words[1:]],
        env=vsm.environment | {"PYTHONUNBUFFERED": "1"},
        stderr=subprocess.STDOUT,
        stdout=pipe,
        text=True,
    ) as login:
        patience = threading.Timer(PATIENCE_S, login.terminate)
        patience.start()
        assert login.stdout is not None
        said = ""
        for line in login.stdout:
            said += line
            sys.stderr.write(line)
            if line.strip().startswith("http"):
                page = httpx2.get(line.strip(), follow_redirects=True)
                if page.url.path != "/callback":  # it lets nobody log in
                    login.terminate()
        patience.cancel()
    return f"{NAME}: logged in" in said


def settled(vsm: Running) -> dict[str, Any]:
    """What vsm says of the server, once it serves, or has failed to."""
    end = time.monotonic() + SETTLE_S
    while True:
        row: dict[str, Any] = next(r for r in vsm.status()["workers"] if r["name"] == NAME)
        if row["state"] in {"ready", "backing_off", "quarantined", "stopped"}:
            return row
        assert time.monotonic() < end, row
        time.sleep(0.05)


def play_logged_in(vsm: Running) -> None:
    """Log in, play, and do what vsm says; not for ever."""
    command = f"vsm login {NAME}"
    for _ in range(LOGINS):
        if not log_in(vsm, shlex.split(command)):
            return
        row = settled(vsm)
        sys.stderr.write(f"{row['state']}: {row['detail']}\n")
        told = asyncio.run(play(vsm)) if row["state"] == "ready" else [str(row["detail"])]
        said = re.search(r"[Rr]un `(vsm login [^`]+)`", " ".join(told))
        if said is None:
            return
        command = said[1]


def entry(url: str, folder: Path, *, login: bool) -> str:
    """Of vsm.toml; a client that is registered is in the scenario's context."""
    if not login:
        here = url.replace("//localhost:", "//127.0.0.1:")
        return f'url = "{here}"\naddresses = ["127.0.0.1"]\n'
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
    oauth = {key: json.dumps(context[key]) for key in ("client_id",) if key in context}
    if "client_secret" in context:
        secret = folder / "secret"
        secret.touch(mode=0o600)
        secret.write_text(context["client_secret"], encoding="utf-8")
        oauth["client_secret"] = f'{{ file = "{secret}" }}'
    table = ", ".join(f"{key} = {value}" for key, value in oauth.items())
    # The metadata name the server as localhost, and have to name what was asked.
    return f'url = "{url}"\naddresses = ["127.0.0.1"]\noauth = {{ {table} }}\n'


def main(url: str, *, login: bool) -> None:
    """Start vsm before the server, play, stop."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "vsm.toml"
        config.write_text(
            f'[gateway]\nauth = "none"\nintrospection = false\n[integrations.{NAME}]\nprefix = ""\n'
            + entry(url, folder, login=login),
            encoding="utf-8",
        )
        with running(config) as vsm:
            try:
                if login:
                    vsm.environment["VSM_CONFIG"] = str(config)
                    play_logged_in(vsm)
                else:
                    vsm.wait_serving()
                    asyncio.run(play(vsm))
            finally:
                vsm.stop()


if __name__ == "__main__":
    main(sys.argv[-1], login=sys.argv[1] == "login")
