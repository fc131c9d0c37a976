"""What a gateway adds to a call: vsm over unix socket, stdio and HTTP, and the SDK's own proxy.

Beside them a relay that copies bytes and looks at none: what no gateway in Python can be below.

All in front of the same minimal server, interleaved in one run, driven by a raw client. Rows:
the p50 of one call at a time and what it adds to a direct call, calls per second with 32 in
flight, and the gateway's CPU time for one call (the kernel's clock of its threads).
"""

import contextlib
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
from compare import spread

HERE = Path(__file__).resolve().parent
PEERS = [sys.executable, str(HERE / "route_peers.py")]
IN_FLIGHT = 32
# A metric whose ratio is taken round by round → what _measure calls it.
KEYS = {
    "p50": "p50",
    "calls/s, 32 in flight": "calls",
    "gateway CPU/call, 1 at a time": "cpu alone",
    "gateway CPU/call, 32 in flight": "cpu",
}
CALLS = {"direct": 600, "sdk proxy": 120}
BURST = {"direct": 6000, "sdk proxy": 400}
DEFAULT_CALLS, DEFAULT_BURST = 600, 6000
VERSION = "2026-07-28"
CALL = (
    b'{"jsonrpc":"2.0","id":%d,"method":"tools/call",'
    b'"params":{"name":"echo","arguments":{"a":"b"}}}\n'
)
INITIALIZE = (
    b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25",'
    b'"capabilities":{},"clientInfo":{"name":"bench","version":"1"}}}\n'
    b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n'
)


class Driver(Protocol):
    """A connected client."""

    def one(self) -> None:
        """Make one call."""

    def burst(self, calls: int) -> None:
        """Make `calls` calls, 32 in flight."""


class Answer(msgspec.Struct):
    """What a client looks at in an answer: every one is checked against its request."""

    id: int
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


decode = msgspec.json.Decoder(Answer).decode


class Lines:
    """Newline-delimited JSON over a pair of descriptors."""

    def __init__(self, write_fd: int, read_fd: int) -> None:
        self._write_fd, self._read_fd = write_fd, read_fd
        self._id = 0
        self._rest = b""
        self._waiting = {0}
        os.write(write_fd, INITIALIZE)
        self._read(1)

    def _read(self, least: int) -> int:
        seen = 0
        while seen < least:
            data = os.read(self._read_fd, 1 << 18)
            if not data:
                raise ConnectionError("the peer is gone")
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                answer = decode(line)
                if answer.id not in self._waiting or answer.result is msgspec.UNSET:
                    raise RuntimeError(line[:300].decode())
                self._waiting.discard(answer.id)
            seen += len(lines)
        return seen

    def _call(self) -> bytes:
        self._id += 1
        self._waiting.add(self._id)
        return CALL % self._id

    def one(self) -> None:
        """Make one call."""
        os.write(self._write_fd, self._call())
        self._read(1)

    def ask(self, request: bytes, request_id: int) -> None:
        """Send a request of one's own and wait for its answer."""
        self._waiting.add(request_id)
        os.write(self._write_fd, request)
        self._read(1)

    def burst(self, calls: int) -> None:
        """Make `calls` calls, 32 in flight."""
        os.write(self._write_fd, b"".join(self._call() for _ in range(IN_FLIGHT)))
        left, open_calls = calls - IN_FLIGHT, IN_FLIGHT
        while open_calls:
            answered = self._read(1)
            more = min(answered, left)
            left -= more
            open_calls += more - answered
            if more:
                os.write(self._write_fd, b"".join(self._call() for _ in range(more)))


class Http:
    """Modern streamable HTTP: as many connections as calls in flight, kept alive."""

    def __init__(self, port: int) -> None:
        meta = (
            b'"_meta":{"io.modelcontextprotocol/protocolVersion":"%b",'
            b'"io.modelcontextprotocol/clientCapabilities":{}}' % VERSION.encode()
        )
        body = CALL[:-3] % 1 + b"," + meta + b"}}"
        self._request = (
            b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-type: application/json\r\n"
            b"accept: application/json, text/event-stream\r\nmcp-protocol-version: %b\r\n"
            b"mcp-method: tools/call\r\nmcp-name: echo\r\ncontent-length: %d\r\n\r\n%b"
            % (port, VERSION.encode(), len(body), body)
        )
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(IN_FLIGHT)]
        for one in self._sockets:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _answer(self, connection: socket.socket) -> None:
        data = b""
        while not data.endswith(b"}}"):
            data += connection.recv(1 << 16)
        if not data.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(data[:300].decode())

    def one(self) -> None:
        """Make one call."""
        self._sockets[0].sendall(self._request)
        self._answer(self._sockets[0])

    def burst(self, calls: int) -> None:
        """Make `calls` calls, 32 in flight."""
        with selectors.DefaultSelector() as selector:
            for connection in self._sockets:
                selector.register(connection, selectors.EVENT_READ)
                connection.sendall(self._request)
            left, open_calls = calls - IN_FLIGHT, IN_FLIGHT
            while open_calls:
                for key, _ in selector.select():
                    self._answer(key.fileobj)  # type: ignore[arg-type]
                    open_calls -= 1
                    if left:
                        key.fileobj.sendall(self._request)  # type: ignore[union-attr]
                        left, open_calls = left - 1, open_calls + 1

    def close(self) -> None:
        """Close every connection."""
        for connection in self._sockets:
            connection.close()


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, in seconds, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((t / "schedstat").read_text().split()[0]) for t in tasks.iterdir()) / 1e9


@contextlib.contextmanager
def peer(
    *argv: str, ready: bool, env: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with pipes, waited for on the way out."""
    pipe, stderr = subprocess.PIPE, subprocess.PIPE if ready else None
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=stderr, env=env) as process:
        try:
            if ready:
                assert process.stderr
                while (line := process.stderr.readline()) != b"READY\n":
                    if not line:
                        raise RuntimeError(f"{argv}: did not become ready")
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def lines_of(process: "subprocess.Popen[bytes]") -> Lines:
    """A client on its pipes."""
    assert process.stdin is not None
    assert process.stdout is not None
    return Lines(process.stdin.fileno(), process.stdout.fileno())


@contextlib.contextmanager
def drivers() -> Iterator[dict[str, tuple[Driver, int | None]]]:
    """Every variant's client and the pid of its gateway."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        environment = {**os.environ, "VSM_RUNTIME_DIR": folder}
        direct = stack.enter_context(peer(*PEERS, "server", ready=False))
        vsm = stack.enter_context(peer(*PEERS, "gateway", folder, ready=True))
        bridge = stack.enter_context(
            peer(sys.executable, "-m", "vsm", "connect", ready=False, env=environment)
        )
        sdk = stack.enter_context(peer(*PEERS, "sdk", ready=True))
        relay = stack.enter_context(peer(*PEERS, "relay", ready=True))
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.connect(f"{folder}/mcp.sock")
        http = stack.enter_context(contextlib.closing(Http(int(os.readlink(f"{folder}/port")))))
        yield {
            "direct": (lines_of(direct), None),
            "bare relay": (lines_of(relay), relay.pid),
            "vsm unix": (Lines(local.fileno(), local.fileno()), vsm.pid),
            "vsm connect": (lines_of(bridge), vsm.pid),
            "vsm http": (http, vsm.pid),
            "sdk proxy": (lines_of(sdk), sdk.pid),
        }


def _measure(name: str, driver: Driver, pid: int | None) -> dict[str, float]:
    calls, burst = CALLS.get(name, DEFAULT_CALLS), BURST.get(name, DEFAULT_BURST)
    driver.burst(2 * IN_FLIGHT)
    times = []
    cpu_before = cpu_s(pid) if pid else 0.0
    for _ in range(calls):
        began = time.perf_counter()
        driver.one()
        times.append(time.perf_counter() - began)
    cpu_between = cpu_s(pid) if pid else 0.0
    began = time.perf_counter()
    driver.burst(burst)
    rate = burst / (time.perf_counter() - began)
    cpu_after = cpu_s(pid) if pid else 0.0
    return {
        "p50": statistics.median(times) * 1e6,
        "calls": rate,
        "cpu alone": (cpu_between - cpu_before) / calls * 1e6,
        "cpu": (cpu_after - cpu_between) / burst * 1e6,
    }


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure every variant in each round and report medians."""
    measured: dict[str, list[dict[str, float]]] = {}
    with drivers() as variants:
        for _ in range(rounds):
            for name, (driver, pid) in variants.items():
                measured.setdefault(name, []).append(_measure(name, driver, pid))
    medians = {
        name: {key: statistics.median(r[key] for r in results) for key in results[0]}
        for name, results in measured.items()
    }
    rows = [row for name in medians for row in _rows(name, medians, rounds)]
    for row in rows:
        key = KEYS.get(row["metric"])
        if key is not None:
            ours, base = measured[row["variant"]], measured[row["ratio_to"]]
            row["spread"] = spread([r[key] for r in ours], [r[key] for r in base])
    return rows


def _rows(name: str, medians: dict[str, dict[str, float]], runs: int) -> list[dict[str, Any]]:
    mine, direct, sdk = medians[name], medians["direct"], medians["sdk proxy"]

    def row(metric: str, value: float, unit: str, base: float, to: str) -> dict[str, Any]:
        ratio = value / base if base else None
        return {
            "benchmark": "route",
            "variant": name,
            "metric": metric,
            "value": value,
            "unit": unit,
            "ratio": ratio,
            "ratio_to": to,
            "runs": runs,
        }

    rows = [
        row("p50", mine["p50"], "us", direct["p50"], "direct"),
        row("calls/s, 32 in flight", mine["calls"], "1/s", direct["calls"], "direct"),
    ]
    if name != "direct":
        added, sdk_added = mine["p50"] - direct["p50"], sdk["p50"] - direct["p50"]
        rows += [
            row("p50 added", added, "us", sdk_added, "sdk proxy"),
            row(
                "gateway CPU/call, 1 at a time",
                mine["cpu alone"],
                "us",
                sdk["cpu alone"],
                "sdk proxy",
            ),
            row("gateway CPU/call, 32 in flight", mine["cpu"], "us", sdk["cpu"], "sdk proxy"),
        ]
    return rows
