"""A runner that has served many runs holds no more than one that has served few.

A file of its own: the runner is another one, started and ended by the test.
"""

from pathlib import Path

import pytest

import vsm
from vsm.library import runner_link

COUNTING_RUNNER = """
import ctypes, gc, json, sys
sys.path += json.loads(sys.argv[1])
from vsm.library import runner
class Held(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena a b c hblkhd e f uordblks g h".split()]
mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Held
out = None
bury = runner.Runner._bury
def counted(self, run):
    global out
    out = out or open(OUT, "w", buffering=1)  # the runner closes what it begins with
    bury(self, run)
    gc.collect()
    held = mallinfo2()
    out.write(f"{{sys.getallocatedblocks()}} {{held.uordblks + held.hblkhd}}\\n")
runner.Runner._bury = counted
runner.main({}, {})
"""


def test_the_runner_keeps_no_memory_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one block or byte a run: what it held at least, early, in the middle and at the end.

    A leak grows from each to the next; what the allocator keeps at some time is there once,
    and most of that within the first two hundred runs.
    """
    text = COUNTING_RUNNER.replace("OUT", repr(str(tmp_path / "held")))
    monkeypatch.setattr(runner_link, "_START", text)
    runner_link.close()
    try:
        for n in range(550):
            assert vsm.run(pow, n, 1).value == n
    finally:
        runner_link.close()
    rows = [line.split() for line in (tmp_path / "held").read_text().splitlines()]
    assert len(rows) >= 550
    least = [
        [min(int(row[n]) for row in rows[i : i + 50]) for n in (0, 1)] for i in (250, 375, 500)
    ]
    early, middle, end = least
    blocks, held = (min(middle[n] - early[n], end[n] - middle[n]) for n in (0, 1))
    assert blocks < 60, rows
    assert held < 125 * 30, rows  # no allocation is smaller than 32 bytes
