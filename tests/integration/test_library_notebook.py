"""`vsm` where notebooks run it: cells without files, a loop that runs, output that is no file."""

import os
import subprocess
import sys
from pathlib import Path

CELLS = [
    "import asyncio, vsm\nfactor = 3\ndef scaled(n):\n    return n * factor",
    "print(vsm.run(scaled, 4).check())",
    "print(vsm.run_code('result = n + 1', inputs={'n': 4}).check())",
    "print([(await vsm.run_async(scaled, n)).value for n in (1, 2)])",
    "async with vsm.Pool(scaled, size=1) as pool:\n    print((await pool.call(7)).value)",
    "class Row:\n    def __init__(self, n):\n        self.n = n",
    "print(vsm.run(lambda row: row.n, Row(8)).check())",
    "print(vsm.run(lambda: 1 / 0).error)",
]
PRINTED = ["12", "5", "[3, 6]", "21", "8", "ZeroDivisionError: division by zero"]

SHELL = """
import ast, asyncio, io, sys, threading
code = {cells!r}
real = sys.stdout

class Output(io.TextIOBase):
    "No file: what a kernel has for stdout."
    def write(self, text):
        real.write(text)
        return len(text)

async def main():
    "As an interactive shell runs cells: in __main__, without a file, in a loop that runs."
    sys.stdout = Output()
    for number, cell in enumerate(code):
        compiled = compile(cell, f"<ipython-input-{{number}}>", "exec",
                           flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(compiled, vars(sys.modules["__main__"]))
        if result is not None:
            await result

waiting = threading.Event()
threading.Thread(target=waiting.wait).start()
try:
    asyncio.run(main())
finally:
    sys.stdout = real
    waiting.set()
"""


def test_cells_run_as_in_a_notebook() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHELL.format(cells=CELLS)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.splitlines(), done.stderr) == (PRINTED, "")


CLIENT = """
import sys, time
from queue import Empty
from jupyter_client.manager import KernelManager

def output(client):
    "What the cell that was sent last prints, until the kernel is idle again."
    deadline, text = time.monotonic() + 60, ""
    while time.monotonic() < deadline:
        try:
            message = client.get_iopub_msg(timeout=1)
        except Empty:
            continue
        content = message["content"]
        if message["msg_type"] == "stream":
            text += content["text"]
        elif message["msg_type"] == "error":
            sys.exit(chr(10).join(content["traceback"]))
        elif message["msg_type"] == "status" and content["execution_state"] == "idle":
            return text
    sys.exit("the kernel does not answer")

manager = KernelManager(kernel_name="python3")
manager.kernel_spec.argv[0] = sys.executable
manager.start_kernel()
client = manager.blocking_client()
client.start_channels()
try:
    client.wait_for_ready(timeout=60)
    for cell in {cells!r}:
        client.execute(cell)
        print(output(client), end="")
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=False)
"""


def test_a_real_kernel_runs_the_cells(tmp_path: Path) -> None:
    folders = ("HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR")
    done = subprocess.run(
        [sys.executable, "-c", CLIENT.format(cells=CELLS)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **{name: str(tmp_path / name) for name in folders}},
    )
    assert done.stdout.splitlines() == PRINTED, done.stderr
