"""The table of other gateways' failures names tests that exist, and leaves out none of these."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs/peer-failures.md"
FAILURES = (
    *("leaked", "takes all down", "gateway dead", "UTF-8", "100,000 deep", "50 MB", "noise"),
    *("share one server", "stale", "notifications", "cancellations", "64 characters"),
    *("fill the context", "time-outs", "Host or Origin", "no tools and no error", "asks back"),
    *("one credential", "without a sandbox", "for every call"),
)


def rows() -> list[tuple[str, list[str]]]:
    found = re.findall(
        r"^\| (.+?) \| (`tests/.+`) \|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE
    )
    return [(failure, re.findall(r"`([^`]+)`", tests)) for failure, tests in found]


def test_each_failure_has_its_row_and_each_row_its_failure() -> None:
    failures = [failure for failure, _ in rows()]
    assert [f for f in FAILURES if not any(f in failure for failure in failures)] == []
    assert [failure for failure in failures if not any(f in failure for f in FAILURES)] == []


def test_every_test_that_is_named_is_there() -> None:
    for _, names in rows():
        assert names
        for name in names:
            path, _, test = name.partition("::")
            text = (ROOT / path).read_text(encoding="utf-8")
            assert re.search(rf"^(async )?def {test}\(", text, re.MULTILINE), name
