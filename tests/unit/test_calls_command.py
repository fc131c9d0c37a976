"""`vsm calls` prints what S1 had written down, which may have been taken over."""

from typing import Any

import pytest

from vsm.commands.calls import _lines

CALL = {"what": "say", "client": "", "bytes_in": 1, "bytes_out": 2, "ms": 3.0}


@pytest.mark.parametrize(
    ("detail", "lines"),
    [
        ({**CALL, "contents": {"arguments": "{}"}}, 3),
        ({**CALL, "contents": {"arguments": 5}}, 1),
        ({**CALL, "contents": "arguments"}, 1),
        ({**CALL, "ms": "\x1b[2J"}, 1),
        ({"what": 7}, 1),
    ],
)
def test_record_that_makes_no_sense_is_a_line_that_says_so(
    detail: dict[str, Any], lines: int
) -> None:
    row = {
        "id": 1, "at_ns": 1, "kind": "call.ok", "integration": "echo", "source": "unix:0",
        "detail": detail,
    }  # fmt: skip
    shown = _lines(row, contents=True)
    assert len(shown) == lines
    assert ("makes no sense" in shown[0]) is (lines == 1)
    assert all(text.isprintable() for text in shown)
