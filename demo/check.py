"""Start the demo, use every server through every transport, stop it, and look for remains.

`scripts/run --check` runs this. The clients are the MCP SDK's, over HTTP, over `vsm connect` and
over the unix socket, and `vsm call`. Everything lives in a temporary runtime and state directory.
Exit code 0 means that every call answered, every worker was confined, and nothing was left.
"""

import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import anyio
import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.server.stdio import stdio_server

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import leaks  # noqa: E402 - the tests have the same needs
from running import VSM, Running, missing_servers, running  # noqa: E402 - the same

CALL_TIMEOUT_S = 60.0
IN_FLIGHT = 50

# The call that is made many times at once, where the first one writes.
READS = {"memory": 1}
# integration -> (tool, arguments, what the answer must hold)
CALLS: dict[str, list[tuple[str, dict[str, Any], str]]] = {
    "time": [
        ("get_current_time", {"timezone": "UTC"}, "timezone"),
        (
            "convert_time",
            {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"},
            "21:00",
        ),
    ],
    "git": [
        ("git_log", {"repo_path": ".", "max_count": 1}, "The first commit"),
        ("git_status", {"repo_path": "."}, "main"),
    ],
    "filesystem": [
        ("read_text_file", {"path": "hello.txt"}, "A file that the filesystem server"),
        ("write_file", {"path": "written.txt", "content": "by the demo"}, "written.txt"),
        ("read_text_file", {"path": "written.txt"}, "by the demo"),
    ],
    "everything": [
        ("echo", {"message": "hello"}, "hello"),
        ("get-sum", {"a": 20, "b": 22}, "42"),
    ],
    "memory": [
        (
            "create_entities",
            {"entities": [{"name": "vsm", "entityType": "demo", "observations": ["confined"]}]},
            "confined",
        ),
        ("read_graph", {}, "confined"),
        ("delete_entities", {"entityNames": ["vsm"]}, "deleted"),
    ],
}


class Report:
    """Prints each result and remembers whether all were good."""

    def __init__(self) -> None:
        self.failures = 0

    def line(self, good: bool, text: str) -> None:  # noqa: FBT001 - reads as a sentence
        self.failures += not good
        print(f"{'ok  ' if good else 'FAIL'}  {text}", flush=True)


def text_of(result: Any) -> str:  # noqa: ANN401 - the SDK's or plain JSON
    """Join the text of a result; a tool error says so."""
    parts = [getattr(item, "text", "") for item in result.content]
    return ("tool error: " if result.is_error else "") + "\n".join(parts)


async def use(client: Client, label: str, integrations: list[str], report: Report) -> None:
    """List and call every server, then all of them at once."""
    listed = {tool.name for tool in (await client.list_tools()).tools}
    for name in integrations:
        count = sum(tool.startswith(f"{name}__") for tool in listed)
        report.line(count > 0, f"{label}: {name} lists {count} tools")
        for tool, arguments, wanted in CALLS[name]:
            text = text_of(await client.call_tool(f"{name}__{tool}", arguments))
            shown = " ".join(text.split())[:60]
            report.line(wanted in text, f"{label}: {name} {tool}: {shown!r}")
    started = time.perf_counter()
    repeated = [
        client.call_tool(f"{name}__{tool}", arguments)
        for name in integrations
        for tool, arguments, _ in [CALLS[name][READS.get(name, 0)]]
        for _ in range(IN_FLIGHT)
    ]
    results = await asyncio.gather(*repeated)
    bad = sum(result.is_error or False for result in results)
    took_s = time.perf_counter() - started
    text = (
        f"{len(results)} calls, {IN_FLIGHT} in flight on each server: {took_s:.2f} s, {bad} errors"
    )
    report.line(bad == 0, f"{label}: {text}")


async def over_http(url: str, token: str, integrations: list[str], report: Report) -> None:
    """Use the SDK's client over streamable HTTP."""
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(headers=headers, timeout=CALL_TIMEOUT_S) as http:
        async with Client(streamable_http_client(url, http_client=http)) as client:
            await use(client, "http", integrations, report)
        refused = await httpx2.AsyncClient().post(url, json={})
        report.line(refused.status_code == 401, f"http without a token: {refused.status_code}")  # noqa: PLR2004
        foreign = await http.post(url, json={}, headers={"Origin": "http://example.com"})
        report.line(foreign.status_code == 403, f"http, foreign Origin: {foreign.status_code}")  # noqa: PLR2004


async def over_stdio(vsm: Running, integrations: list[str], report: Report) -> None:
    """Use the SDK's client over `vsm connect`, as a desktop client does; both eras."""
    bridge = StdioServerParameters(command=VSM, args=["connect"], env=vsm.environment)
    for mode in ("auto", "legacy"):
        async with Client(bridge, mode=mode) as client:
            await use(client, f"vsm connect ({mode})", integrations, report)


async def over_socket(vsm: Running, integrations: list[str], report: Report) -> None:
    """Use the SDK's client over the unix socket; both eras."""
    for mode in ("auto", "legacy"):
        with socket.socket(socket.AF_UNIX) as it:
            it.connect(str(vsm.folder / "run/mcp.sock"))
            with (
                it.makefile("r", encoding="utf-8") as read,
                it.makefile("w", encoding="utf-8") as write,
            ):
                # The SDK has no transport for sockets; its servers' stdio takes any two files.
                transport = stdio_server(anyio.wrap_file(read), anyio.wrap_file(write))
                async with Client(transport, mode=mode) as client:
                    await use(client, f"unix socket ({mode})", integrations, report)
                    it.shutdown(socket.SHUT_RDWR)


def over_shell(vsm: Running, integrations: list[str], report: Report) -> None:
    """Use `vsm call`."""
    for name in integrations:
        tool, arguments, wanted = CALLS[name][-1]
        done = vsm.vsm("call", name, tool, json.dumps(arguments))
        shown = " ".join((done.stdout + done.stderr).split())[:60]
        good = done.returncode == 0 and wanted in done.stdout
        report.line(good, f"vsm call {name} {tool}: {shown!r}")


def show_layers(vsm: Running, integrations: list[str], report: Report) -> None:
    """Print the layers in force per worker; an unready or unconfined one is a failure."""
    workers = {worker["name"]: worker for worker in vsm.status()["workers"]}
    for worker in workers.values():
        states: dict[str, list[str]] = {}
        for layer in worker["layers"] or []:
            states.setdefault(layer["state"], []).append(layer["name"])
        told = "; ".join(f"{state}: {', '.join(names)}" for state, names in states.items())
        good = worker["state"] == "ready"
        if worker["kind"] in {"integration", "system"}:
            good = good and {"privileges", "seccomp"} <= set(states.get("in force", ()))
        report.line(good, f"{worker['name']} ({worker['tier'] or 'vsm itself'}) {told}")
    missing = set(integrations) - {worker["integration"] for worker in workers.values()}
    report.line(not missing, f"every integration has a worker {missing or ''}".rstrip())


def use_everything(vsm: Running, integrations: list[str], report: Report) -> None:
    """Go through all transports, then stop it in order."""
    try:
        asyncio.run(over_http(vsm.url, vsm.token, integrations, report))
        asyncio.run(over_stdio(vsm, integrations, report))
        asyncio.run(over_socket(vsm, integrations, report))
        over_shell(vsm, integrations, report)
        show_layers(vsm, integrations, report)
        code = vsm.stop()
        report.line(code == 0, f"vsm up ended with exit code {code}")
        left = [path.name for path in (vsm.folder / "run").rglob("*") if path.name != "lock"]
        report.line(not left, f"the runtime directory is empty {left or ''}".rstrip())
    finally:
        if report.failures:
            print(vsm.log(), file=sys.stderr)


def main() -> int:
    """Check what is installed; 0 if all is well."""
    skipped = missing_servers()
    integrations = [name for name in CALLS if name not in skipped]
    if skipped:
        print(f"skip  {', '.join(skipped)}: node is not installed")
    report = Report()
    leaks.become_subreaper()
    arguments = [word for name in skipped for word in ("--without", name)]
    scratch = leaks.make_scratch()
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    before = leaks.snapshot(scratch)
    try:
        with running(ROOT / "demo/vsm.toml", *arguments) as vsm:
            vsm.wait_serving()
            use_everything(vsm, integrations, report)
    except Exception as error:  # noqa: BLE001 - the boundary: whatever failed, look for remains
        traceback.print_exc()
        report.line(good=False, text=f"{type(error).__name__}: {error}")
    left = leaks.leaks_since(before, scratch)
    report.line(not left, f"nothing is left behind {left or ''}".rstrip())
    shutil.rmtree(scratch)
    print("all is well" if not report.failures else f"{report.failures} failures")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
