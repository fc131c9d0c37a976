"""Byte counts as people write them: "512M" is 512 MiB. Pure, no I/O."""

import re

_FACTORS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_PATTERN = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(?:iB|B)?", re.ASCII | re.IGNORECASE)
_LIMIT_BYTES = 2**62


def parse_bytes(text: str | int) -> int:
    """Bytes of "512M", "1.5G", "64KiB" or a bare number; suffixes are powers of 1024.

    Raises:
        ValueError: not a size, negative, or not a whole number of bytes.
    """
    match = _PATTERN.fullmatch(str(text).strip())
    if match is None or isinstance(text, bool):
        raise ValueError(f"expected a size such as 512M, found {str(text)[:40]!r}")
    whole, _, fraction = match[1].partition(".")
    factor = _FACTORS[match[2].upper()]
    scaled, rest = divmod(int(whole + fraction) * factor, int("1" + "0" * len(fraction)))
    if rest or scaled > _LIMIT_BYTES:
        raise ValueError(f"expected a whole number of bytes below 4E, found {text!r}")
    return scaled


def format_bytes(count: int) -> str:
    """The shortest exact spelling: 536870912 is "512M", 1000 is "1000"."""
    for suffix in ("T", "G", "M", "K"):
        if count and count % _FACTORS[suffix] == 0:
            return f"{count // _FACTORS[suffix]}{suffix}"
    return str(count)
