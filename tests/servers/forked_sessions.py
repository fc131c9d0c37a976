"""A Python server for zygotes: `forked_sessions.py MODE`; its stdin is reached in different ways.

plain   reads lines. loop  reads in asyncio's loop, by a thread. thread  has started one before.
open    has opened a file before. done  ends before it reads. liar  says on the channel of a
zygote what is not true. Standard library only.

Tools: note (adds a text, answers all, with who the process is), child (starts a process that
leaves its session and ignores what it can), crash.
"""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import threading
from typing import Any

MODE = sys.argv[1]
NOTES: list[str] = []
SERVED = int.from_bytes(os.urandom(4), "big")  # of the process that it was before any fork
CHILD = "import os,signal,time;os.setsid();signal.signal(15,signal.SIG_IGN);time.sleep(3600)"


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"served": SERVED, "pid": os.getpid(), "parent": os.getppid()}
    if name == "crash":
        os._exit(9)
    if name == "child":
        told["child"] = subprocess.Popen([sys.executable, "-c", CHILD]).pid
    if "text" in arguments:
        NOTES.append(arguments["text"])
    told |= {"notes": NOTES, "random": random.random(), "fds": sorted(os.listdir("/proc/self/fd"))}
    return {"content": [{"type": "text", "text": json.dumps(told)}]}


def answer(line: str) -> None:
    message = json.loads(line) if line.strip() else {}
    if "id" not in message:
        return
    params = message.get("params") or {}
    match message["method"]:
        case "initialize":
            result: Any = {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "forked", "version": "1"},
            }
        case "tools/list":
            names = ("note", "child", "crash")
            result = {"tools": [{"name": n, "inputSchema": {"type": "object"}} for n in names]}
        case "tools/call":
            result = call(params["name"], params.get("arguments") or {})
        case "ping":
            result = {}
        case _:
            error = {"code": -32601, "message": "Method not found"}
            say({"id": message["id"], "error": error})
            return
    say({"id": message["id"], "result": result})


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


async def read_in_a_loop() -> None:
    stdin = sys.stdin
    readline = stdin.readline
    while line := await asyncio.to_thread(readline):
        answer(line)


def lie() -> None:
    """Every fork is said to be this very process, and more than was ordered."""
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            channel = socket.socket(fileno=os.dup(number))
        except OSError:
            continue
        if channel.type == socket.SOCK_SEQPACKET:
            for word in ({"kind": "ready"}, {"kind": "forked", "number": 1}):
                channel.send(json.dumps(word).encode())


if __name__ == "__main__":
    if MODE == "thread":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    if MODE == "open":
        kept = open("/proc/self/status", encoding="utf-8")  # noqa: SIM115
    if MODE == "liar":
        lie()
    if MODE == "loop":
        asyncio.run(read_in_a_loop())
    elif MODE != "done":
        for received in sys.stdin:
            answer(received)
