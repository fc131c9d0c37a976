"""Numbers as a person reads them. Pure."""


def figure(value: float, digits: int = 3) -> str:
    """So many significant digits, and no power of ten for what is large: 1284.6 is "1285"."""
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def amount(resource: str, value: float) -> str:
    """Of memory (bytes), or a number of anything else."""
    return f"{value / 2**20:.0f} MiB" if resource == "memory" else figure(value)
