"""No worker makes a set-user-id or set-group-id file: pure changes to a filter's rules.

A worker's mounts are nosuid, but what it writes to a granted folder also appears on the host's
own mount of it, owned by the folder's owner. A program with that bit would run as the owner for
any other user of the host. systemd's RestrictSUIDSGID= closes the same hole in the same way.
"""

import stat

from vsm.core.seccomp_bpf import Action, ArgumentFilter, Clause, Comparison, Decision, Rules

_SET_ID = stat.S_ISUID | stat.S_ISGID
_MAKES_FILE = 0o100 | 0o20000000  # O_CREAT and the bit of its own that O_TMPFILE has
# call → which argument is the mode
_MODE = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "creat": 1} | {
    "mknod": 1,
    "mknodat": 2,
}
# call → which argument holds the flags; the mode, read only if they make a file, is the next one
_OPEN = {"open": 1, "openat": 2}
# The mode is behind a pointer, where no filter can see it; callers take openat on ENOSYS.
_HIDDEN = "openat2"


def refuse_set_id(rules: Rules) -> Rules:
    """The same rules, with EPERM for what would give a file one of the two bits."""
    decisions: dict[str, Decision] = dict(rules.decisions)
    for name, mode in _MODE.items():
        _narrow(decisions, name, (_no_bits(mode),))
    for name, flags in _OPEN.items():
        _narrow(decisions, name, (Comparison(flags, 0, _MAKES_FILE),), (_no_bits(flags + 1),))
    if _HIDDEN in decisions:
        decisions[_HIDDEN] = Action.ENOSYS
    return Rules(decisions)


def _no_bits(argument: int) -> Comparison:
    return Comparison(argument, 0, _SET_ID)


def _narrow(decisions: dict[str, Decision], name: str, *allowed: tuple[Comparison, ...]) -> None:
    """Turn an unconditional yes into a conditional one; a no stays one."""
    if decisions.get(name) == Action.ALLOW:
        clauses = tuple(Clause(tests, Action.ALLOW) for tests in allowed)
        decisions[name] = ArgumentFilter(clauses, Action.EPERM)
