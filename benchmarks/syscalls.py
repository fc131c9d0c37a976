"""What the filter and the rules cost a running worker: nanoseconds a call, bare and confined.

Beside the tiers stands the kernel's own part, in processes without any other confinement: a
Landlock domain of one rule for the root, for what opening a file costs, and a filter of the one
instruction that allows everything, for what every call costs. Nothing with Landlock, or with any
filter, is below.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from confined import Bench, row

from vsm.linux import landlock

PROBE = """
import json, os, time
def cost(call, count):
    for _ in range(count // 10):
        call()
    start = time.perf_counter_ns()
    for _ in range(count):
        call()
    return (time.perf_counter_ns() - start) / count
path = os.path.realpath("/usr/bin/env")
fd = os.open(path, os.O_RDONLY)
memory = os.memfd_create("x")
block = bytes(4096)
reader, writer = os.pipe()
def open_close():
    os.close(os.open(path, os.O_RDONLY))
def pipe():
    os.write(writer, b"x")
    os.read(reader, 1)
print(json.dumps({
    "getppid": cost(os.getppid, 50000),
    "stat": cost(lambda: os.stat(path), 20000),
    "open+close": cost(open_close, 20000),
    "read 4 KiB": cost(lambda: os.pread(fd, 4096, 0), 20000),
    "write 4 KiB": cost(lambda: os.pwrite(memory, block, 0), 20000),
    "pipe write+read": cost(pipe, 20000),
}))
"""


LANDLOCK = "Landlock alone, one rule"
FILTER = "seccomp alone, one instruction"
_IMPORTS = f"""
import struct, sys
sys.path.insert(0, {str(Path(__file__).resolve().parent.parent)!r})
from vsm.linux import landlock, prctl, seccomp
prctl.set_no_new_privileges()
"""
ALONE = {
    LANDLOCK: _IMPORTS + 'landlock.restrict([("/", landlock.CHANGE)], tcp=True)\n',
    # BPF_RET | BPF_K with SECCOMP_RET_ALLOW
    FILTER: _IMPORTS + 'seccomp.install(struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000))\n',
}


def run(rounds: int) -> list[dict[str, Any]]:
    """Median cost of each call in each variant, processes of the variants interleaved."""
    argv = [os.path.realpath("/usr/bin/python3"), "-SI", "-c"]
    bench = Bench([*argv, PROBE])
    variants = [*bench.variants, FILTER, *([LANDLOCK] if landlock.abi() else [])]
    found: dict[str, dict[str, list[float]]] = {variant: {} for variant in variants}
    for _ in range(rounds):
        for variant, costs in found.items():
            if variant in ALONE:
                code = ALONE[variant] + PROBE
                said = subprocess.run([*argv, code], stdout=subprocess.PIPE, check=True)
                printed = said.stdout.decode()
            else:
                printed = bench.output(variant)
            for call, cost in json.loads(printed).items():
                costs.setdefault(call, []).append(cost)
    return [
        row("syscalls", variant, call, values=values, unit="ns", bare=found["bare"][call])
        for variant, costs in found.items()
        for call, values in costs.items()
    ]
