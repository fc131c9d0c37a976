"""What is counted of every call: demand class, outcome, latency bucket. Names, no state.

A demand class is one kind of thing that is asked for: a tool by its name, a prompt, a resource.
Its label is foreign text, shortened to what a board's row can hold. Pure.
"""

import hashlib
from typing import Final

OUTCOMES: Final = ("ok", "tool_error", "protocol_error", "timeout", "denied", "unserved")
OK, TOOL_ERROR, PROTOCOL_ERROR, TIMEOUT, DENIED, UNSERVED = range(len(OUTCOMES))
"""Only `ok` is answered well. The first four are a server's answers, the last two the gateway's."""
CANCELLED: Final = len(OUTCOMES)
"""No outcome: its client wanted no answer any more; it may have run."""
SERVED: Final = (OK, TOOL_ERROR, PROTOCOL_ERROR, TIMEOUT)

NOBODY: Final = "(nobody)"
"""Who answers for what no integration offers."""
OVERFLOW: Final = "(others)"
"""The class of everything that came after a row's classes were used up."""

CLASSES: Final = 32
LATENCY_BUCKETS: Final = 20
LATENCY_SHIFT: Final = 16
"""Bucket 0 is below 2^16 ns (66 µs), each next one twice as wide, the last one open."""
LABEL_BYTES: Final = 28
_DIGEST_CHARS: Final = 6


def short_label(label: str) -> bytes:
    """A class's label as a row keeps it: at most LABEL_BYTES of UTF-8, distinct by a digest."""
    raw = label.encode(errors="replace")
    if len(raw) <= LABEL_BYTES:
        return raw
    digest = hashlib.sha256(raw).hexdigest()[:_DIGEST_CHARS]
    head = raw[: LABEL_BYTES - _DIGEST_CHARS - 1].decode(errors="ignore")
    return f"{head}~{digest}".encode()


def latency_bucket(latency_ns: int) -> int:
    """Which bucket a latency falls into."""
    return min(max(latency_ns, 0) >> LATENCY_SHIFT, (1 << LATENCY_BUCKETS - 1) - 1).bit_length()


def bucket_limit_s(bucket: int) -> float | None:
    """The upper end of a bucket in seconds; None for the last, which has none."""
    return None if bucket == LATENCY_BUCKETS - 1 else (1 << LATENCY_SHIFT + bucket) / 1e9
