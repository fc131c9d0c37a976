"""The journal: durable records a second, and the time from handing one over to its acknowledgement.

Three ways to the same process: groups of 100 as a busy sender makes them, records one by one
without waiting, and one record at a time, each waited for (unbatched: a commit each). A plain
write and fsync of one record to the same disk is the floor that no journal of one at a time gets
below. The records are 263 bytes, as the figures in the documentation.
"""

import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vsm.journal import records

GROUP = 100
GROUPED_RECORDS = 40_000
SINGLE_RECORDS = 4_000
WAITED_RECORDS = 300
RECORD_BYTES = 263
SOCKET_BUFFER_BYTES = 1 << 20

Row = dict[str, Any]


class Sender:
    """The journal process in a directory of the working disk, and a bare socket to it."""

    def __init__(self, folder: str) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        arguments = (theirs.fileno(), f"{folder}/journal.db", 86_400, 2**30, "unconfined")
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "vsm.journal.process", *map(str, arguments)],
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        self.sock.send(records.hello_message("benchmark", 0))
        self._next = self._receive() + 1

    def close(self) -> None:
        """End the process and wait for it."""
        self.sock.close()
        self.process.wait()

    def _receive(self) -> int:
        answer = records.parse_from_journal(self.sock.recv(4096))
        if not isinstance(answer, records.Ready | records.Committed):
            raise SystemExit(f"the journal said {answer}")
        return answer.sequence

    def send(self, group: int, encoded: str) -> int:
        """Hand over `group` records; returns the last one's number."""
        self.sock.send(records.records_message(self._next, [encoded] * group))
        self._next += group
        return self._next - 1

    def answers(self) -> int:
        """The newest acknowledged number that is here already; 0 for none."""
        newest = 0
        while select.select([self.sock], [], [], 0)[0]:
            newest = self._receive()
        return newest

    def wait(self, sequence: int) -> None:
        """Wait until this number is durable."""
        while self._receive() < sequence:
            pass


def _record() -> str:
    event = records.Event(
        time.time_ns(), time.monotonic_ns(), "benchmark", "worker.exited", "w-1", "w", 1, '""'
    )
    padding = RECORD_BYTES - len(records.encode(event)) - 4  # the quotes are escaped on the way
    return records.encode(event._replace(detail='"' + "x" * padding + '"'))


def _rate(sender: Sender, group: int, count: int) -> float:
    """Records a second, from the first handed over to the last acknowledged."""
    encoded = _record()
    began_s = time.perf_counter()
    for _ in range(count // group):
        sender.send(group, encoded)
        sender.answers()
    sender.wait(sender.send(1, encoded))  # `answers` may have taken the last group's
    return count / (time.perf_counter() - began_s)


def _waited_ms(sender: Sender) -> list[float]:
    """How long each record took to be durable, one at a time."""
    encoded, times_ms = _record(), []
    for _ in range(WAITED_RECORDS):
        began_s = time.perf_counter()
        sender.wait(sender.send(1, encoded))
        times_ms.append((time.perf_counter() - began_s) * 1000)
    return sorted(times_ms)


def _fsync_ms(folder: str) -> list[float]:
    payload, times_ms = b"x" * RECORD_BYTES, []
    fd = os.open(f"{folder}/floor", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for _ in range(WAITED_RECORDS):
        began_s = time.perf_counter()
        os.write(fd, payload)
        os.fdatasync(fd)
        times_ms.append((time.perf_counter() - began_s) * 1000)
    os.close(fd)
    return sorted(times_ms)


def run(rounds: int) -> list[Row]:
    """Measure every way in each round, on the disk of the working directory."""
    rates: dict[str, list[float]] = {"groups of 100": [], "one by one": [], "each waited for": []}
    times_ms: dict[str, list[list[float]]] = {"each waited for": [], "write and fdatasync": []}
    pss_kib = 0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd()) as folder:
            sender = Sender(folder)
            try:
                rates["groups of 100"].append(_rate(sender, GROUP, GROUPED_RECORDS))
                rates["one by one"].append(_rate(sender, 1, SINGLE_RECORDS))
                waited_ms = _waited_ms(sender)
                pss_kib = max(pss_kib, _pss_kib(sender.process.pid))
            finally:
                sender.close()
            rates["each waited for"].append(1000 * len(waited_ms) / sum(waited_ms))
            times_ms["each waited for"].append(waited_ms)
            times_ms["write and fdatasync"].append(_fsync_ms(folder))
    return [*_rate_rows(rates, rounds), *_time_rows(times_ms, rounds), _memory_row(pss_kib)]


def _rate_rows(rates: dict[str, list[float]], rounds: int) -> list[Row]:
    alone = statistics.median(rates["each waited for"])
    return [
        _row(variant, "durable records", value, "1/s", rounds, value / alone, "each waited for")
        for variant, value in ((v, statistics.median(found)) for v, found in rates.items())
    ]


def _time_rows(times_ms: dict[str, list[list[float]]], rounds: int) -> list[Row]:
    quantiles: list[tuple[str, Callable[[list[float]], float]]] = [
        ("p50 to durable", lambda found: found[len(found) // 2]),
        ("p99 to durable", lambda found: found[len(found) * 99 // 100]),
    ]
    rows = []
    for metric, quantile in quantiles:
        of = {v: statistics.median(map(quantile, found)) for v, found in times_ms.items()}
        floor = of["write and fdatasync"]
        rows += [
            _row(variant, metric, value, "ms", rounds, value / floor, "write and fdatasync")
            for variant, value in of.items()
        ]
    return rows


def _memory_row(pss_kib: int) -> Row:
    return _row("process", "memory, PSS", pss_kib / 1024, "MiB", 1, None, None)


def _pss_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def _row(  # noqa: PLR0917 - the columns of a row
    variant: str,
    metric: str,
    value: float,
    unit: str,
    runs: int,
    ratio: float | None,
    ratio_to: str | None,
) -> Row:
    return {
        "benchmark": "journal",
        "variant": variant,
        "metric": metric,
        "value": value,
        "unit": unit,
        "ratio": ratio,
        "ratio_to": ratio_to,
        "runs": runs,
    }
