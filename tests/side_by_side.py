"""All tests in pytest sessions side by side: most of them wait, and two cores can wait better.

`python tests/side_by_side.py [pytest options]`; what names a test or a folder is for pytest itself.
Each session checks what its own tests leave; what has no kin is checked here, once all have ended.
The output of one follows the other's, and one closing line counts all.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import leaks

# Tests of isolation fork from their session, whose memory counts against their limits: they have
# one of their own.
ROWS = (("tests/integration",), ("tests/e2e",), ("tests/isolation", "tests/unit"))
CLOSING = re.compile(r"^=+ (.*) in [0-9.]+s(?: \([0-9:]+\))? =+$")
COUNTED = re.compile(r"(\d+) (\w+)")
WIDTH = 80


def main(options: list[str]) -> int:
    """Run all rows; 0 when nothing failed and nothing is left."""
    root = Path(__file__).resolve().parents[1]
    leaks.become_subreaper()
    scratch = leaks.make_scratch()
    try:
        before, began = leaks.snapshot(scratch), time.monotonic()
        with ThreadPoolExecutor(len(ROWS)) as rows:
            argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
            run = partial(_run_row, argv, root)
            done = [one for row in rows.map(run, ROWS) for one in row]
        left = leaks.leaks_since(before, scratch)
        return _close(done, left, time.monotonic() - began)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run_row(argv: list[str], root: Path, folders: tuple[str, ...]) -> list[tuple[int, str]]:
    """Exit codes and outputs of sessions one after another; the first row's is seen as it comes."""
    done = []
    for folder in folders:
        with subprocess.Popen(
            [*argv, folder],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as session:
            assert session.stdout is not None
            lines = []
            for line in session.stdout:
                lines.append(line)
                if folders == ROWS[0]:
                    sys.stdout.write(line)
                    sys.stdout.flush()
        done.append((session.returncode, "".join(lines)))
    return done


def _close(done: list[tuple[int, str]], left: list[str], took_s: float) -> int:
    for _, text in done[len(ROWS[0]) :]:
        sys.stdout.write(text)
    counts: Counter[str] = Counter()
    for _, text in done:
        closing = [match[1] for line in text.splitlines() if (match := CLOSING.match(line))]
        counts.update({word: int(number) for number, word in COUNTED.findall("".join(closing))})
    for line in left:
        sys.stdout.write(f"left behind by all: {line}\n")
    counts["errors"] += counts.pop("error", 0) + len(left)
    wrong = any(code for code, _ in done) or left
    order = ["failed", "passed", "skipped", "errors"]
    said = ", ".join(f"{counts[word]} {word}" for word in order if counts[word])
    closing_line = f" {said or 'no tests ran'} in {took_s:.2f}s "
    sys.stdout.write(closing_line.center(WIDTH, "=") + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    if any(not word.startswith("-") for word in sys.argv[1:]):
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *sys.argv[1:]])
    sys.exit(main(sys.argv[1:]))
