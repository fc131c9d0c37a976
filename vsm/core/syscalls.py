"""System calls by name and number, and systemd's groups of them. Pure tables.

Owns the lookup; the tables are in `syscalls_x86_64`, `syscalls_aarch64` and `syscalls_groups`.
"""

from collections.abc import Iterable, Mapping
from functools import cache

from vsm.core import syscalls_aarch64, syscalls_x86_64
from vsm.core.syscalls_groups import GROUPS

ARCHITECTURES = ("x86_64", "aarch64")

_RUNS = {"x86_64": syscalls_x86_64.RUNS, "aarch64": syscalls_aarch64.RUNS}


@cache
def numbers(arch: str) -> Mapping[str, int]:
    """Name → number of one architecture."""
    return {
        name: first + index
        for first, names in _RUNS[arch].items()
        for index, name in enumerate(names.split())
    }


@cache
def names(arch: str) -> Mapping[int, str]:
    """Number → name of one architecture."""
    return {number: name for name, number in numbers(arch).items()}


@cache
def known() -> frozenset[str]:
    """Every call of any architecture."""
    return frozenset().union(*(numbers(arch) for arch in ARCHITECTURES))


def groups() -> tuple[str, ...]:
    """The names of the groups, sorted."""
    return tuple(sorted([*GROUPS, "@known"]))


@cache
def group(name: str) -> frozenset[str]:
    """The calls of a group, nested ones included.

    Raises:
        KeyError: no such group.
    """
    if name == "@known":
        return known()
    members = GROUPS[name].split()
    nested = (group(member) for member in members if member.startswith("@"))
    return frozenset(member for member in members if not member.startswith("@")).union(*nested)


def unknown(entries: Iterable[str]) -> list[str]:
    """The entries that are neither a call nor a group."""
    everything = known() | set(groups())
    return [entry for entry in entries if entry not in everything]
