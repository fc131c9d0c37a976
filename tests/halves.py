"""All tests in two pytest sessions side by side: most of them wait, and two cores can wait better.

`python tests/halves.py [pytest options]`; what names a test or a folder is for pytest itself. Each
session checks what its own tests leave; what has no kin is checked here, once both have ended. The
output of one follows the other's, and one closing line counts both.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import leaks

HALVES = (("tests/integration", "tests/unit"), ("tests/e2e", "tests/isolation"))
CLOSING = re.compile(r"^=+ (.*) in [0-9.]+s(?: \([0-9:]+\))? =+$")
COUNTED = re.compile(r"(\d+) (\w+)")
FAILED = ("failed", "error", "errors")
WIDTH = 80


def main(options: list[str]) -> int:
    """Run both halves; 0 when nothing failed and nothing is left."""
    root = Path(__file__).resolve().parents[1]
    leaks.become_subreaper()
    scratch = leaks.make_scratch()
    try:
        before, began = leaks.snapshot(scratch), time.monotonic()
        codes, texts = _run(root, options)
        left = leaks.leaks_since(before, scratch)
        return _close(codes, texts, left, time.monotonic() - began)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(root: Path, options: list[str]) -> tuple[list[int], list[str]]:
    """Exit codes and outputs; the first half's is seen as it comes."""
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    with tempfile.TemporaryFile("w+") as kept:
        second = subprocess.Popen([*argv, *HALVES[1]], cwd=root, stdout=kept, stderr=kept)
        pipe = subprocess.PIPE
        first = subprocess.Popen(
            [*argv, *HALVES[0]], cwd=root, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )
        lines = []
        assert first.stdout is not None
        with first.stdout:
            for line in first.stdout:
                sys.stdout.write(line)
                sys.stdout.flush()
                lines.append(line)
        codes = [first.wait(), second.wait()]
        kept.seek(0)
        other = kept.read()
    sys.stdout.write(other)
    return codes, ["".join(lines), other]


def _close(codes: list[int], texts: list[str], left: list[str], took_s: float) -> int:
    counts: Counter[str] = Counter()
    for text in texts:
        closing = [match[1] for line in text.splitlines() if (match := CLOSING.match(line))]
        counts.update({word: int(number) for number, word in COUNTED.findall("".join(closing))})
    for line in left:
        sys.stdout.write(f"left behind by both: {line}\n")
    counts["errors"] += counts.pop("error", 0) + len(left)
    wrong = any(codes) or left
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
