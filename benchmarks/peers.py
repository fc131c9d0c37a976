"""vsm's gateway beside other people's: FastMCP's proxy and mcp-proxy from PyPI, on one upstream.

Each peer lives in an environment of its own under .peers, made at first use; where that cannot be
had its rows say so. All stand in front of the same minimal server, each at its best (one session
kept open to the upstream, no logging), driven by one raw client in one run, interleaved: over
stdio, and over streamable HTTP with a legacy session, which all of them speak.
"""

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from route import BURST, IN_FLIGHT, PEERS, Driver, Lines, cpu_s, peer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SERVER = [sys.executable, str(HERE / "route_peers.py"), "server"]
PINNED = {"fastmcp": ["fastmcp==4.1.2"], "mcp-proxy": ["mcp-proxy==0.13.0", "mcp==1.30.0"]}
CALLS = 60
FEW = 256  # calls of a burst through a slow peer
START_TIMEOUT_S = 60.0
FASTMCP = """
import asyncio, sys
import fastmcp
from fastmcp.client import Client
from fastmcp.client.transports import StdioTransport
from fastmcp.server import create_proxy

fastmcp.settings.log_level = "ERROR"
import logging
logging.disable(logging.WARNING)
transport, port, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]

async def main():
    async with Client(StdioTransport(command[0], command[1:]), mode="legacy") as client:
        proxy = create_proxy(client)
        if transport == "stdio":
            sys.stderr.write("READY\\n"); sys.stderr.flush()
            await proxy.run_stdio_async(show_banner=False)
        else:
            await proxy.run_http_async(
                show_banner=False, host="127.0.0.1", port=port, log_level="error")

asyncio.run(main())
"""
Variant = tuple[Driver, int | None]


class Session:
    """A legacy session of streamable HTTP: as many connections as calls in flight, kept alive."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._session = b""
        opening = self._connect()
        parameters = {"protocolVersion": "2025-11-25", "capabilities": {}}
        parameters["clientInfo"] = {"name": "bench", "version": "1"}
        opening.sendall(self._post({"id": 0, "method": "initialize", "params": parameters}))
        head, _ = _response(opening)
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"mcp-session-id:"):
                self._session = line.split(b":", 1)[1].strip()
        opening.sendall(self._post({"method": "notifications/initialized"}))
        _response(opening)
        opening.close()
        arguments = {"name": "echo", "arguments": {"a": "b"}}
        self._requests = [
            self._post({"id": number, "method": "tools/call", "params": arguments})
            for number in range(1, IN_FLIGHT + 1)
        ]
        self._sockets: list[socket.socket] = []

    def renew(self) -> None:
        """Connect anew: servers close what is idle for some seconds."""
        self.close()
        self._sockets = [self._connect() for _ in range(IN_FLIGHT)]

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _post(self, message: dict[str, Any]) -> bytes:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        session = b"mcp-session-id: %b\r\n" % self._session if self._session else b""
        return (
            b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
            b"accept: application/json, text/event-stream\r\n%bcontent-length: %d\r\n\r\n%b"
            % (self._port, session, len(body), body)
        )

    def one(self) -> None:
        """Make one call."""
        self._sockets[0].sendall(self._requests[0])
        _expect_result(self._sockets[0])

    def burst(self, calls: int) -> None:
        """Make `calls` calls, 32 in flight."""
        left = calls
        while left > 0:
            # The slowest of a round is waited for: the same for all, and what slows them is not it.
            some = self._sockets[: min(left, IN_FLIGHT)]
            for connection, request in zip(some, self._requests, strict=False):
                connection.sendall(request)
            for connection in some:
                _expect_result(connection)
            left -= len(some)

    def close(self) -> None:
        """Close every connection."""
        while self._sockets:
            self._sockets.pop().close()


def _response(connection: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    folded = head.lower()
    if b"transfer-encoding: chunked" in folded:
        while not body.endswith(b"0\r\n\r\n"):
            body += _more(connection)
    else:
        at = folded.find(b"content-length:")
        length = int(folded[at:].split(b"\r\n")[0].split(b":")[1]) if at >= 0 else 0
        while len(body) < length:
            body += _more(connection)
    return head, body


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise ConnectionError("the peer is gone")
    return data


def _expect_result(connection: socket.socket) -> None:
    head, body = _response(connection)
    if b" 200 " not in head.split(b"\r\n")[0] or b'"result"' not in body:
        raise RuntimeError((head + body)[:400].decode(errors="replace"))


def _environment(name: str) -> Path | None:
    """The interpreter of a peer's own environment; None where it cannot be had."""
    folder = ROOT / ".peers" / name
    stamp, wanted = folder / "installed", " ".join(PINNED[name])
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
        commands = [
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(folder / "bin/pip"), "install", "-q", *PINNED[name]],
        ]
        for command in commands:
            if subprocess.run(command, capture_output=True, check=False).returncode != 0:
                return None
        stamp.write_text(wanted, encoding="utf-8")
    return folder / "bin/python"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _session(port: int) -> Session:
    """Connect once it listens, bounded."""
    end = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return Session(port)
        except ConnectionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def variants() -> Iterator[dict[str, Variant]]:
    """Every gateway's client and the pid of the gateway."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        vsm = stack.enter_context(peer(*PEERS, "gateway", folder, ready=True))
        bridge = stack.enter_context(
            peer(
                *(sys.executable, "-m", "vsm", "connect"),
                ready=False,
                env={**os.environ, "VSM_RUNTIME_DIR": folder},
            )
        )
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.connect(f"{folder}/mcp.sock")
        port = int(os.readlink(f"{folder}/port"))
        found: dict[str, Variant] = {
            "vsm, stdio": (_lines(bridge), vsm.pid),
            "vsm, socket": (Lines(local.fileno(), local.fileno()), vsm.pid),
            "vsm, HTTP": (stack.enter_context(contextlib.closing(_session(port))), vsm.pid),
        }
        fastmcp, other = _environment("fastmcp"), _environment("mcp-proxy")
        if fastmcp is not None:
            command = [str(fastmcp), "-c", FASTMCP]
            piped = stack.enter_context(peer(*command, "stdio", "0", *SERVER, ready=True))
            found["FastMCP proxy, stdio"] = _lines(piped), piped.pid
            port = _free_port()
            remote = stack.enter_context(peer(*command, "http", str(port), *SERVER, ready=False))
            session = stack.enter_context(contextlib.closing(_session(port)))
            found["FastMCP proxy, HTTP"] = session, remote.pid
        if other is not None:
            port = _free_port()
            command = [str(other.with_name("mcp-proxy")), "--port", str(port)]
            command += ["--log-level", "ERROR", "--", *SERVER]
            remote = stack.enter_context(peer(*command, ready=False))
            session = stack.enter_context(contextlib.closing(_session(port)))
            found["mcp-proxy, HTTP"] = session, remote.pid
        yield found


def _lines(process: "subprocess.Popen[bytes]") -> Lines:
    assert process.stdin is not None
    assert process.stdout is not None
    return Lines(process.stdin.fileno(), process.stdout.fileno())


def _measure(name: str, driver: Driver, pid: int | None) -> dict[str, float]:
    burst = BURST.get("vsm", 4096) if name.startswith("vsm") else FEW
    if isinstance(driver, Session):
        driver.renew()
    driver.burst(2 * IN_FLIGHT)
    times = []
    for _ in range(CALLS):
        began = time.perf_counter()
        driver.one()
        times.append(time.perf_counter() - began)
    before = cpu_s(pid) if pid else 0.0
    began = time.perf_counter()
    driver.burst(burst)
    took = time.perf_counter() - began
    spent = (cpu_s(pid) if pid else 0.0) - before
    return {
        "p50": statistics.median(times) * 1e6,
        "calls": burst / took,
        "cpu": spent / burst * 1e6,
    }


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure every gateway in each round and report medians, as ratios to vsm's."""
    measured: dict[str, list[dict[str, float]]] = {}
    with variants() as found:
        for _ in range(rounds):
            for name, (driver, pid) in found.items():
                measured.setdefault(name, []).append(_measure(name, driver, pid))
    medians = {
        name: {key: statistics.median(one[key] for one in all_) for key in all_[0]}
        for name, all_ in measured.items()
    }
    rows = [row for name in medians for row in _rows(name, medians, rounds)]
    for name in PINNED:
        if not any(one.lower().startswith(name) for one in medians):
            skipped = "skipped: it could not be installed"
            rows.append({"benchmark": "peers", "variant": name, "metric": "all", "value": 0.0})
            rows[-1] |= {"unit": "", "ratio": None, "ratio_to": None, "runs": 0}
            rows[-1] |= {"skipped": skipped}
    return rows


def _rows(name: str, medians: dict[str, dict[str, float]], runs: int) -> list[dict[str, Any]]:
    way = name.rpartition(", ")[2]
    base = "vsm, HTTP" if way == "HTTP" else "vsm, stdio"
    mine, vsm = medians[name], medians[base]
    units = {"p50": "us", "calls": "1/s", "cpu": "us"}
    metrics = {
        "p50": "p50",
        "calls": "calls/s, 32 in flight",
        "cpu": "gateway CPU/call, 32 in flight",
    }
    return [
        {
            "benchmark": "peers",
            "variant": name,
            "metric": metrics[key],
            "value": mine[key],
            "unit": units[key],
            "ratio": None if mine is vsm else mine[key] / vsm[key],
            "ratio_to": None if mine is vsm else base,
            "runs": runs,
        }
        for key in metrics
    ]
