"""Resource limits: lowered, both values at once, or the soft one raised to the hard one."""

import resource
from contextlib import suppress

KINDS = {
    "core": resource.RLIMIT_CORE,
    "cpu": resource.RLIMIT_CPU,
    "data": resource.RLIMIT_DATA,
    "file_size": resource.RLIMIT_FSIZE,
    "open_files": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
}


def lower(kind: str, value: int) -> int:
    """Set the soft and hard limit to `value`, or to the hard limit where that is lower.

    Args:
        kind: a key of KINDS.
        value: in the limit's own unit (bytes, seconds, a count).

    Returns:
        What is in force now.
    """
    number = KINDS[kind]
    if kind == "core":  # here a hard limit of 0 is less of a limit than 1: see core(5), pipes
        with suppress(OSError, ValueError):
            resource.setrlimit(number, (value, value))
            return value
    hard = resource.getrlimit(number)[1]
    limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(number, (limit, limit))
    return limit


def widen(kind: str, most: int) -> int:
    """Raise the soft limit towards the hard one, to `most` at most; what is in force now."""
    soft, hard = resource.getrlimit(KINDS[kind])
    limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return soft
    resource.setrlimit(KINDS[kind], (limit, hard))
    return limit
