"""The client side of a scenario of the official suite, through a real `vsm up`: `client.py URL`.

The suite's server stands at URL. A vsm of its own has it as remote server, and the SDK's client, in
the legacy era over `vsm connect`, uses what the scenario's server offers. So what the suite judges
is the side of vsm that speaks to servers; what a modern server asks crosses the eras on its way.
"""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from mcp import Client, MCPError, StdioServerParameters
from mcp.types import ElicitResult

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from running import VSM, Running, running  # noqa: E402 - a neighbour, not a package

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


async def play(vsm: Running) -> None:
    """Everything that the server offers, once."""
    bridge = StdioServerParameters(command=VSM, args=["connect"], env=vsm.environment)
    async with Client(bridge, mode="legacy", elicitation_callback=accept) as client:
        offered = client.server_capabilities
        if offered.tools:
            tools = (await client.list_tools()).tools
            own = [tool for tool in tools if not tool.name.startswith("vsm__")]
            for name, arguments in calls(own):
                with contextlib.suppress(MCPError):  # some servers only list theirs
                    await client.call_tool(name, arguments)
        if offered.resources:
            for resource in (await client.list_resources()).resources:
                await client.read_resource(str(resource.uri))
        if offered.prompts:
            for prompt in (await client.list_prompts()).prompts:
                needed = [a.name for a in prompt.arguments or [] if a.required]
                await client.get_prompt(prompt.name, dict.fromkeys(needed, "text"))


def main(url: str) -> None:
    """Start vsm before the server, play, stop."""
    here = url.replace("//localhost:", "//127.0.0.1:")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "vsm.toml"
        config.write_text(
            '[gateway]\nauth = "none"\nintrospection = false\n[integrations.suite]\nprefix = ""\n'
            f'url = "{here}"\naddresses = ["127.0.0.1"]\n',
            encoding="utf-8",
        )
        with running(config) as vsm:
            try:
                vsm.wait_serving()
                asyncio.run(play(vsm))
            finally:
                vsm.stop()


if __name__ == "__main__":
    main(sys.argv[1])
