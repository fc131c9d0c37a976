"""What a worker asked of the egress process, by name: asked, allowed, refused and why.

Names come from the worker where it uses the HTTP proxy, so their number and length are bounded.
"""

from typing import Any, Final

MOST_NAMES: Final = 100
OTHERS: Final = "(others)"
_MOST_REASON: Final = 160


class Counts:
    """One worker's counts; `table` is JSON-able: name:port → counts."""

    def __init__(self) -> None:
        self.table: dict[str, dict[str, Any]] = {}

    def allowed(self, key: str) -> dict[str, Any]:
        """Count a connection that was made; the caller adds to its bytes."""
        row = self._asked(key)
        row["allowed"] += 1
        return row

    def refused(self, key: str, reason: str) -> None:
        """Count one that was not."""
        row = self._asked(key)
        row["refused"] += 1
        row["reason"] = reason[:_MOST_REASON]

    def _asked(self, key: str) -> dict[str, Any]:
        if key not in self.table and len(self.table) >= MOST_NAMES:
            key = OTHERS
        empty = {"asked": 0, "allowed": 0, "refused": 0, "sent_bytes": 0, "received_bytes": 0}
        row = self.table.setdefault(key, {**empty, "reason": ""})
        row["asked"] += 1
        return row
