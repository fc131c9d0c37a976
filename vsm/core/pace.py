"""What one server's output may cost the gateway: a share of its time, paid for by being read later.

Pure. Costs are estimates by count and size, not measurements: a process that was preempted would
charge a server for what another one did. A token bucket kept as one number, as in `vsm.core.rates`.
"""

from typing import Final

SHARE: Final = 0.04
"""Of the gateway's time. Less than one call in twenty is behind it then: no matter for a p95."""
BURST_S: Final = 0.010
FRAME_S: Final = 8e-6
"""A frame that answers nothing: to decode it, or to find out that it cannot be."""
BYTE_S: Final = 1e-9
BLANK_S: Final = 30e-9
"""A line with nothing on it."""


def cost_s(frames: int, size_bytes: int, blanks: int = 0) -> float:
    """What so much takes, in seconds."""
    return frames * FRAME_S + size_bytes * BYTE_S + blanks * BLANK_S


class Pace:
    """One server's account. It begins with the whole burst."""

    __slots__ = ("_paid_at_s",)

    def __init__(self) -> None:
        self._paid_at_s = float("-inf")

    def charge(self, spent_s: float, now_s: float) -> float:
        """Take what was spent; returns for how many seconds to read nothing more."""
        since_s = max(self._paid_at_s, now_s - BURST_S / SHARE)
        self._paid_at_s = since_s + spent_s / SHARE
        return max(0.0, self._paid_at_s - now_s)
