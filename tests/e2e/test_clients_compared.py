"""Both SDKs' clients, in both eras, on real servers: the same through vsm as directly.

Servers from npm (legacy), from PyPI (both eras), of the TypeScript SDK and of our own (modern
alone), each asked for all that it offers; what comes is compared member by member.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from gateway_harness import http_transport
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client
from running import DEMO, VSM, Running, missing_servers, running

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / ".venv-conformance"
SCRIPT = ROOT / "tests/conformance/typescript.mjs"
SERVERS_OF_OURS = ROOT / "tests/servers"
CLIENT = SUITE / "node_modules/@modelcontextprotocol/client"
CONFIG = """
[clients.{name}]
integrations = ["{name}"]
token_file = "{token_file}"
[integrations.{name}]
command = {command}
profile = "{profile}"
read = {read}
env = {{ GIT_CONFIG_COUNT = "1", GIT_CONFIG_KEY_0 = "safe.directory", GIT_CONFIG_VALUE_0 = "*" }}
"""
Calls = list[tuple[str, dict[str, Any]]]


def npm(name: str, *words: str) -> list[str]:
    return [str(DEMO / f"servers/{name}/node_modules/.bin/mcp-server-{name}"), *words]


def pypi(name: str, *words: str) -> list[str]:
    return [str(DEMO / f"servers/{name}/bin/mcp-server-{name}"), *words]


# name: command ("{work}" is a folder), profile, calls, prompts, completions, resources
SERVERS: dict[str, tuple[list[str], str, Calls, Calls, list[Any], list[str]]] = {
    "time": (
        pypi("time", "--local-timezone", "UTC"),
        "python-server",
        [
            ("convert_time", {"source_timezone": "UTC", "time": "12:00", "target_timezone": "UTC"}),
            ("get_current_time", {"timezone": "Nowhere/Nothing"}),
            ("nothing", {}),
        ],
        [],
        [],
        [],
    ),
    "git": (
        pypi("git", "--repository", "{work}"),
        str(DEMO / "git-server.toml"),
        [("git_log", {"repo_path": "{work}"}), ("git_status", {"repo_path": "/nowhere"})],
        [],
        [],
        [],
    ),
    "everything": (
        npm("everything"),
        "node-server",
        [
            ("echo", {"message": "héllo"}),
            ("echo", {}),
            ("get-sum", {"a": 1, "b": 2.5}),
            ("get-tiny-image", {}),
            ("get-annotated-message", {"messageType": "error", "includeImage": True}),
            ("get-structured-content", {"location": "Chicago"}),
            ("get-resource-links", {"count": 2}),
            ("trigger-long-running-operation", {"duration": 0.3, "steps": 3}),
        ],
        [("simple-prompt", {}), ("args-prompt", {"city": "Rome"}), ("args-prompt", {})],
        [
            (
                {"type": "ref/prompt", "name": "completable-prompt"},
                {"name": "department", "value": "S"},
            )
        ],
        ["demo://resource/dynamic/text/nonsense", "demo://nothing"],
    ),
    "filesystem": (
        npm("filesystem", "{work}"),
        "node-server",
        [
            ("list_directory", {"path": "{work}"}),
            ("read_text_file", {"path": "{work}/file"}),
            ("read_text_file", {"path": "/etc/hostname"}),
            ("read_text_file", {"path": 7}),
        ],
        [],
        [],
        [],
    ),
    "memory": (
        npm("memory"),
        "node-server",
        [
            ("read_graph", {}),
            ("open_nodes", {"names": ["nobody"]}),
            ("create_entities", {"entities": [{"name": 1}]}),
        ],
        [],
        [],
        [],
    ),
    "typescript": (
        ["node", str(SERVERS_OF_OURS / "typescript_modern.mjs"), str(SUITE)],
        "node-server",
        [
            ("sum", {"a": 1, "b": 2}),
            ("sum", {"a": "one"}),
            ("fail", {}),
            ("throw", {}),
            ("count", {}),
            ("ask", {}),
            ("link", {}),
        ],
        [("greet", {"who": "x"}), ("greet", {})],
        [({"type": "ref/prompt", "name": "greet"}, {"name": "who", "value": "x"})],
        ["note://by/me", "note://nothing"],
    ),
    "modern": (
        ["/usr/bin/python3", "-SI", str(SERVERS_OF_OURS / "echo_modern.py"), "modern"],
        "python-server",
        [("echo", {"text": "x"})],
        [],
        [],
        [],
    ),
}
NO_LIST = {"error": {"code": -32601, "message": "Method not found"}}
ALONE_MODERN = {"modern"}  # no legacy client can ask it directly
VARIES = re.compile(r'"pid": \d+|"progressToken": \d+')
MARK = re.compile(r"^\[\w+, in its own words\] ")  # whose instructions they are
# What a gateway says for itself: how long an answer may be kept, and who gave it.
OWN = {"ttlMs", "cacheScope", "resultType", "io.modelcontextprotocol/serverInfo"}
# Members of one era alone, which its clients drop or fill in where a server speaks the other.
OF_ONE_ERA = {"execution", "progressToken", "mode"}


class Sides:
    """One vsm with every server, each seen by a client of its own; the servers' own folder."""

    def __init__(self, vsm: Running, work: Path) -> None:
        self.vsm = vsm
        self.work = work

    def filled(self, value: Any) -> Any:
        """With the folder's name in it."""
        return json.loads(json.dumps(value).replace("{work}", str(self.work)))


@pytest.fixture(scope="module")
def sides(
    session_leaves_nothing: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sides]:
    del session_leaves_nothing
    folder = tmp_path_factory.mktemp("compared")
    work = folder / "work"
    work.mkdir()
    (work / "file").write_text("what is in it\n", encoding="utf-8")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run(["/usr/bin/git", "-C", str(work), *author, *words], check=True)
    for path in (folder, work, *work.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    one = Sides(None, work)  # type: ignore[arg-type] - known below
    tables = ["[gateway]\nintrospection = false\n"]
    for name, row in SERVERS.items():
        if name in missing():
            continue
        (folder / name).write_text(token_of(name), encoding="ascii")
        (folder / name).chmod(0o600)
        read = {"modern": [SERVERS_OF_OURS], "typescript": [SERVERS_OF_OURS, SUITE]}
        tables.append(
            CONFIG.format(
                name=name,
                command=json.dumps(one.filled(row[0])),
                profile=row[1],
                token_file=folder / name,
                read=json.dumps(list(map(str, read.get(name, [work])))),
            )
        )
    path = folder / "vsm.toml"
    path.write_text("".join(tables), encoding="utf-8")
    with running(path) as one.vsm:
        one.vsm.wait_serving()
        yield one
        assert one.vsm.stop() == 0


def token_of(name: str) -> str:
    return f"a-token-for-the-client-{name}"


def missing() -> set[str]:
    gone = set(missing_servers())
    gone |= {name for name in ("time", "git") if not (DEMO / "servers" / name).is_dir()}
    sdk = SUITE / "node_modules/@modelcontextprotocol/server"
    return gone if sdk.exists() else gone | {"typescript"}


def by_typescript(plan: dict[str, Any]) -> dict[str, Any]:
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


def by_python(plan: dict[str, Any]) -> dict[str, Any]:
    return asyncio.run(_by_python(plan))


async def _by_python(plan: dict[str, Any]) -> dict[str, Any]:
    """The same as typescript.mjs, with the client of the Python SDK."""
    asked: list[Any] = []

    async def sample(_context: object, params: types.CreateMessageRequestParams) -> Any:
        asked.append(["sampling/createMessage", plainly(params)])
        content = types.TextContent(type="text", text="sampled")
        return types.CreateMessageResult(model="none", role="assistant", content=content)

    async def elicit(_context: object, params: Any) -> types.ElicitResult:
        asked.append(["elicitation/create", plainly(params)])
        return types.ElicitResult(action="accept", content={"name": "somebody"})

    async def roots(_context: object) -> types.ListRootsResult:
        asked.append(["roots/list", None])
        root = types.Root(uri="file:///somewhere", name="somewhere")  # type: ignore[arg-type]
        return types.ListRootsResult(roots=[root])

    if "url" in plan:
        transport: Any = http_transport(plan["url"], plan["token"])
    else:
        words = {"command": plan["command"], "args": plan["args"], "env": plan["env"]}
        transport = stdio_client(StdioServerParameters(**words), errlog=sys.stderr)
    mode = {"auto": "auto", "legacy": "legacy"}[plan["mode"]]
    async with Client(
        transport,
        mode=mode,
        sampling_callback=sample,
        elicitation_callback=elicit,
        list_roots_callback=roots,
        client_info=types.Implementation(name="comparison", version="1"),
    ) as client:
        seen: dict[str, Any] = {
            "version": client.protocol_version,
            "instructions": client.instructions,
            "tools": await attempt(client.list_tools),
            "prompts": await attempt(client.list_prompts),
            "resources": await attempt(client.list_resources),
            "templates": await attempt(client.list_resource_templates),
            "calls": [],
            "completions": [],
            "progress": [],
            "asked": asked,
        }
        for name, arguments in plan["calls"]:
            steps: list[Any] = []

            async def stepped(*step: Any, steps: list[Any] = steps) -> None:
                steps.append(step)

            seen["calls"].append(
                await attempt(
                    lambda name=name, arguments=arguments, stepped=stepped: client.call_tool(
                        name, arguments, progress_callback=stepped
                    )
                )
            )
            seen["progress"].append(steps)
        listed = [row["uri"] for row in seen["resources"].get("resources", [])[:3]]
        for uri in (*listed, *plan["reads"]):
            seen["calls"].append(await attempt(lambda uri=uri: client.read_resource(uri)))
        for name, arguments in plan["prompts"]:
            seen["calls"].append(await attempt(lambda n=name, a=arguments: client.get_prompt(n, a)))
        for ref, argument in plan["completions"]:
            reference = types.PromptReference(**ref)
            seen["completions"].append(
                await attempt(lambda r=reference, a=argument: client.complete(r, a))
            )
    return seen


def plainly(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


async def attempt(ask: Callable[[], Any]) -> dict[str, Any]:
    """An error is a result too: the same one has to come either way."""
    try:
        found: dict[str, Any] = plainly(await ask())
    except MCPError as error:
        return {"error": {"code": error.code, "message": error.message}}
    return found


def plain(value: Any, prefix: str) -> Any:
    """Without what a gateway adds, with the names as the server has them."""
    if isinstance(value, dict):
        rest = {
            key: plain(one, prefix) for key, one in value.items() if key not in OWN | OF_ONE_ERA
        }
        return {key: one for key, one in rest.items() if key != "_meta" or one}
    if isinstance(value, str):
        return VARIES.sub("", MARK.sub("", value.replace(prefix, "")))
    return [plain(one, prefix) for one in value] if isinstance(value, list | tuple) else value


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Member by member; a list that there is not is an empty one."""
    if one == other or (one == NO_LIST and not any(other.values())):
        return
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from differences(one.get(key), other.get(key), f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{where}[{number}]")
    else:
        yield f"{where}: {one!r} directly, {other!r} through vsm"


def is_last(step: Any) -> bool:
    """Whether a step of progress comes with the answer: the TypeScript client may drop that one."""
    done, total, *_ = step.values() if isinstance(step, dict) else step
    return bool(done == total)


CLIENTS = {"typescript": by_typescript, "python": by_python}


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize(
    ("client", "mode", "transport"),
    [
        ("typescript", "legacy", "stdio"),
        ("typescript", "auto", "stdio"),
        ("typescript", "auto", "http"),
        ("python", "legacy", "http"),
        ("python", "auto", "stdio"),
    ],
)
def test_a_client_sees_the_same_as_directly(
    sides: Sides, client: str, name: str, mode: str, transport: str
) -> None:
    if name in missing():
        pytest.skip(f"no {name} server: scripts/prepare --demo or scripts/conformance brings it")
    if client == "typescript" and not CLIENT.exists():
        pytest.skip("no TypeScript client: scripts/conformance brings it")
    if name in ALONE_MODERN and mode == "legacy":
        pytest.skip("a modern server cannot be asked by a legacy client directly")
    command, _, calls, prompts, completions, reads = sides.filled(SERVERS[name])
    prefix, see = f"{name}__", CLIENTS[client]
    env = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    plan = {"mode": mode, "command": command[0], "args": command[1:], "env": env}
    plan |= {"calls": calls, "prompts": prompts, "completions": completions, "reads": reads}
    through = plan | {
        "command": VSM,
        "args": ["connect", "--client", name],
        "env": env | sides.vsm.environment,
        "calls": [(prefix + tool, arguments) for tool, arguments in calls],
        "prompts": [(prefix + prompt, arguments) for prompt, arguments in prompts],
        "completions": [({**r, "name": prefix + r["name"]}, a) for r, a in completions],
    }
    if transport == "http":
        through |= {"url": sides.vsm.url, "token": token_of(name)}
    one, other = plain(see(plan), prefix), plain(see(through), prefix)
    for seen in (one, other):  # asked for at the start, when no client's call is in flight
        seen["asked"] = [row for row in seen["asked"] if row[0] != "roots/list"]
        seen["progress"] = [
            [one for one in steps if not is_last(one)] for steps in seen["progress"]
        ]
    if mode == "auto":  # through vsm a modern client stays one before any server
        del one["version"]
        assert other.pop("version") == "2026-07-28"
    assert list(differences(one, other)) == []
    assert one["calls"]
