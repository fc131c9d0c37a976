"""Set-id bits are refused on every call that could give them, and on no other."""

import pytest

from vsm.core.seccomp import Action, compile_filter, rules_for, simulate
from vsm.core.set_id import refuse_set_id
from vsm.core.syscalls import numbers

AT_FDCWD = 2**64 - 100
CREATE, TEMPORARY, WRITE = 0o100, 0o20200000, 0o1
RULES = rules_for(["@system-service"], [], unix_sockets=False, inet=False, tier="namespaced")

CASES = [
    ("chmod", (1, 0o755), True),
    ("chmod", (1, 0o4755), False),
    ("chmod", (1, 0o2755), False),
    ("chmod", (1, 0o1777), True),
    ("fchmod", (3, 0o6755), False),
    ("fchmodat", (AT_FDCWD, 1, 0o4755), False),
    ("fchmodat", (AT_FDCWD, 1, 0o644), True),
    ("fchmodat2", (AT_FDCWD, 1, 0o4755, 0), False),
    ("creat", (1, 0o4755), False),
    ("open", (1, CREATE | WRITE, 0o4755), False),
    ("open", (1, CREATE | WRITE, 0o644), True),
    ("openat", (AT_FDCWD, 1, CREATE | WRITE, 0o4755), False),
    ("openat", (AT_FDCWD, 1, TEMPORARY | WRITE, 0o2755), False),
    ("openat", (AT_FDCWD, 1, CREATE | WRITE, 0o644), True),
    # Without O_CREAT nobody reads the mode: it is whatever the register held.
    ("openat", (AT_FDCWD, 1, 0, 0o7777), True),
]


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
@pytest.mark.parametrize(("name", "arguments", "allowed"), CASES)
def test_only_the_set_id_bits_are_refused(
    arch: str, name: str, arguments: tuple[int, ...], *, allowed: bool
) -> None:
    number = numbers(arch).get(name)
    if number is None:
        pytest.skip(f"{arch} has no {name}")
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    program = compile_filter(refuse_set_id(RULES), arch)
    answer = simulate(program, arch, number, padded)
    assert answer == (Action.ALLOW if allowed else Action.EPERM)
    assert simulate(compile_filter(RULES, arch), arch, number, padded) == Action.ALLOW


def test_openat2_hides_its_mode_and_is_answered_as_unknown() -> None:
    program = compile_filter(refuse_set_id(RULES), "x86_64")
    arguments = (AT_FDCWD, 1, 1, 24, 0, 0)
    assert simulate(program, "x86_64", numbers("x86_64")["openat2"], arguments) == Action.ENOSYS


def test_what_was_refused_stays_refused() -> None:
    rules = rules_for(["read"], [], unix_sockets=False, inet=False, tier="namespaced")
    program = compile_filter(refuse_set_id(rules), "x86_64")
    arguments = (1, 0o644, 0, 0, 0, 0)
    assert simulate(program, "x86_64", numbers("x86_64")["chmod"], arguments) == Action.EPERM
