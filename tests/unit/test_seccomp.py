import functools
import operator
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.configuration.profile import load_profile, profile_names
from vsm.core.seccomp import (
    Action,
    Rules,
    compile_filter,
    may_report,
    replace_answer,
    reported,
    rules_for,
    simulate,
)
from vsm.core.seccomp_bpf import AUDIT_ARCH, ArgumentFilter, Clause, Comparison
from vsm.core.syscalls import ARCHITECTURES, known, numbers
from vsm.paths import shipped_profiles

ALLOW, EPERM, ENOSYS, KILL = Action.ALLOW, Action.EPERM, Action.ENOSYS, Action.KILL_PROCESS
HIGH = 0xDEAD_BEEF_0000_0000
NEWUSER, NEWNET, NEWNS, NEWTIME = 0x10000000, 0x40000000, 0x00020000, 0x80
THREAD = 0x3D0F00
UNIX, INET, INET6, NETLINK, PACKET, ALG, VSOCK = 1, 2, 10, 16, 17, 38, 40
STREAM, DGRAM, RAW, SEQPACKET, NONBLOCK_CLOEXEC = 1, 2, 3, 5, 0o2004000
TIOCSTI, TIOCLINUX, TIOCSETD, TIOCCONS, TCGETS, FIONREAD = (
    *(0x5412, 0x541C, 0x5423, 0x541D),
    *(0x5401, 0x541B),
)
SIOCGIFCONF, KDSKBENT, FIFREEZE = 0x8912, 0x4B47, 0xC0045877
PR_SET_NAME, PR_SET_MM, PR_SET_PTRACER, PR_SET_SECCOMP = 15, 35, 0x59616D61, 22

every_architecture = pytest.mark.parametrize("arch", ARCHITECTURES)
every_tier = pytest.mark.parametrize("tier", ["namespaced", "landlocked"])


@functools.cache
def program(
    arch: str,
    tier: str = "namespaced",
    *,
    unix: bool = False,
    inet: bool = False,
    allow: tuple[str, ...] = ("@system-service",),
    deny: tuple[str, ...] = (),
) -> bytes:
    rules = rules_for(allow, deny, unix_sockets=unix, inet=inet, tier=tier)
    return compile_filter(rules, arch)


def answer(code: bytes, arch: str, name: str, *args: int) -> Action:
    return simulate(code, arch, numbers(arch)[name], args)


@every_architecture
@every_tier
@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("read", (), ALLOW),
        ("openat", (), ALLOW),
        ("execve", (), ALLOW),
        ("memfd_create", (), ALLOW),
        ("kill", (1, 9), ALLOW),
        ("mount", (), EPERM),
        ("umount2", (), EPERM),
        ("pivot_root", (), EPERM),
        ("move_mount", (), EPERM),
        ("bpf", (), EPERM),
        ("ptrace", (), EPERM),
        ("perf_event_open", (), EPERM),
        ("init_module", (), EPERM),
        ("kexec_load", (), EPERM),
        ("reboot", (), EPERM),
        ("io_uring_setup", (), EPERM),
        ("keyctl", (), EPERM),
        ("userfaultfd", (), EPERM),
        ("process_vm_writev", (), EPERM),
        ("unshare", (0,), EPERM),
        ("setns", (), EPERM),
        ("open_by_handle_at", (), EPERM),
        ("seccomp", (), EPERM),
        ("memfd_secret", (), EPERM),
        ("clone3", (), ENOSYS),
        ("statmount", (), ENOSYS),
        ("pkey_alloc", (), ENOSYS),
        ("clone", (THREAD,), ALLOW),
        ("clone", (17,), ALLOW),
        ("clone", (17 | NEWUSER,), EPERM),
        ("clone", (HIGH | NEWNET,), EPERM),
        ("clone", (THREAD | NEWNS,), EPERM),
        ("ioctl", (0, TCGETS), ALLOW),
        ("ioctl", (0, FIONREAD), ALLOW),
        ("ioctl", (0, TIOCSTI), EPERM),
        ("ioctl", (0, HIGH | TIOCSTI), EPERM),
        ("ioctl", (0, TIOCLINUX), EPERM),
        ("ioctl", (0, TIOCSETD), EPERM),
        ("ioctl", (0, TIOCCONS), EPERM),
        ("ioctl", (0, KDSKBENT), EPERM),
        ("ioctl", (0, FIFREEZE), EPERM),
        ("ioctl", (3, SIOCGIFCONF), EPERM),
        ("prctl", (PR_SET_NAME,), ALLOW),
        ("prctl", (HIGH | PR_SET_NAME,), ALLOW),
        ("prctl", (PR_SET_MM,), EPERM),
        ("prctl", (PR_SET_PTRACER,), EPERM),
        ("prctl", (PR_SET_SECCOMP,), EPERM),
        ("prlimit64", (0, 7, 1, 0), ALLOW),
        ("prlimit64", (1, 7, 0, 1), ALLOW),
        ("prlimit64", (1, 7, 1, 0), EPERM),
        ("prlimit64", (1, 7, 1 << 32, 0), EPERM),
        ("prlimit64", (1, 7, 0xFFFF_FFFF, 0), EPERM),
        ("personality", (0xFFFF_FFFF,), ALLOW),
        ("personality", (0,), ALLOW),
        ("personality", (0x0040000,), EPERM),
        ("personality", (8,), EPERM),
        ("fcntl", (3, 3), ALLOW),
        ("fcntl", (3, 1030, 5), ALLOW),
        ("fcntl", (3, 1024, 1), EPERM),
        ("fcntl", (3, 1 << 32 | 1024, 1), EPERM),
        ("fcntl", (3, 1040, 0), EPERM),
        ("setpriority", (0, 0, 5), ALLOW),
        ("setpriority", (0, 1, 5), EPERM),
        ("setpriority", (2, 0, 5), EPERM),
        ("socket", (UNIX, STREAM, 0), EPERM),
        ("socket", (INET, STREAM, 0), EPERM),
        ("socket", (NETLINK, RAW, 0), EPERM),
        ("socketpair", (UNIX, STREAM | NONBLOCK_CLOEXEC, 0), ALLOW),
        ("socketpair", (UNIX, SEQPACKET, 0), ALLOW),
        ("socketpair", (UNIX, DGRAM, 0), EPERM),
        ("socketpair", (30, STREAM, 0), EPERM),
    ],
)
def test_the_default_policy(
    arch: str, tier: str, name: str, args: tuple[int, ...], expected: Action
) -> None:
    assert answer(program(arch, tier), arch, name, *args) is expected


@every_architecture
@pytest.mark.parametrize(
    ("name", "args", "namespaced", "landlocked"),
    [
        ("socket", (UNIX, STREAM | NONBLOCK_CLOEXEC, 0), ALLOW, EPERM),
        ("socket", (UNIX, DGRAM, 0), ALLOW, EPERM),
        ("socketpair", (UNIX, DGRAM, 0), ALLOW, EPERM),
        ("socket", (INET, STREAM, 0), ALLOW, ALLOW),
        ("socket", (INET6, STREAM | NONBLOCK_CLOEXEC, 6), ALLOW, ALLOW),
        ("socket", (INET, DGRAM, 17), ALLOW, EPERM),
        ("socket", (INET, STREAM, 262), EPERM, EPERM),
        ("socket", (INET, STREAM, 132), EPERM, EPERM),
        ("socket", (INET, DGRAM, 1), EPERM, EPERM),
        ("socket", (INET, RAW, 255), EPERM, EPERM),
        ("socket", (NETLINK, RAW, 0), EPERM, EPERM),
        ("socket", (PACKET, DGRAM, 0), EPERM, EPERM),
        ("socket", (ALG, SEQPACKET, 0), EPERM, EPERM),
        ("socket", (VSOCK, STREAM, 0), EPERM, EPERM),
        ("ioctl", (3, SIOCGIFCONF), ALLOW, ALLOW),
        ("pidfd_open", (1, 0), ALLOW, EPERM),
        ("shmget", (1, 1, 0), ALLOW, EPERM),
        ("mq_open", (1, 1, 0), ALLOW, EPERM),
        ("sched_setaffinity", (0, 8, 1), ALLOW, ALLOW),
        ("sched_setaffinity", (1, 8, 1), ALLOW, EPERM),
    ],
)
def test_a_network_and_unix_sockets_open_what_the_tier_can_hold(
    arch: str, name: str, args: tuple[int, ...], namespaced: Action, landlocked: Action
) -> None:
    for tier, expected in (("namespaced", namespaced), ("landlocked", landlocked)):
        code = program(arch, tier, unix=True, inet=True)
        assert answer(code, arch, name, *args) is expected


@every_architecture
def test_naming_a_call_allows_what_no_group_brings(arch: str) -> None:
    code = program(arch, allow=("@system-service", "keyctl", "unshare"))
    assert answer(code, arch, "keyctl") is ALLOW
    assert answer(code, arch, "unshare", 0x400) is ALLOW
    assert answer(code, arch, "unshare", NEWUSER) is EPERM
    assert answer(code, arch, "unshare", NEWTIME) is EPERM


@every_architecture
def test_denying_wins_over_allowing(arch: str) -> None:
    code = program(arch, allow=("@system-service", "execve"), deny=("execve", "@chown"))
    assert answer(code, arch, "execve") is EPERM
    assert answer(code, arch, "fchownat") is EPERM
    assert answer(code, arch, "read") is ALLOW


@every_architecture
def test_who_may_not_fork_may_make_threads(arch: str) -> None:
    code = program(arch, deny=("fork",))
    assert answer(code, arch, "clone", THREAD) is ALLOW
    assert answer(code, arch, "clone", 17) is EPERM
    assert answer(code, arch, "clone", THREAD | NEWUSER) is EPERM


@every_architecture
def test_clone3_cannot_be_allowed_because_its_flags_cannot_be_seen(arch: str) -> None:
    assert answer(program(arch, allow=("clone3",)), arch, "clone3") is ENOSYS


@every_architecture
@pytest.mark.parametrize("foreign", ["i386", "arm"])
def test_a_foreign_architecture_is_killed(arch: str, foreign: str) -> None:
    for number in range(500):
        assert simulate(program(arch), foreign, number, ()) is KILL


def test_the_other_64_bit_architecture_is_foreign_too() -> None:
    assert simulate(program("x86_64"), "aarch64", 63, ()) is KILL
    assert simulate(program("aarch64"), "x86_64", 0, ()) is KILL


@every_architecture
def test_numbers_that_no_table_knows_do_not_exist(arch: str) -> None:
    x32 = [0x4000_0000 | number for number in range(600)]
    for number in (390, 470, 600, *x32, 2**31, 2**32 - 1):
        assert simulate(program(arch), arch, number, ()) is ENOSYS


@every_architecture
def test_the_filter_fits_the_kernels_limit_with_room(arch: str) -> None:
    for tier in ("namespaced", "landlocked"):
        code = program(arch, tier, unix=True, inet=True)
        assert len(code) // 8 < 500


@pytest.mark.parametrize("name", profile_names((shipped_profiles(),)))
@every_tier
@every_architecture
def test_every_shipped_profile_compiles_to_what_it_says(arch: str, tier: str, name: str) -> None:
    syscalls = load_profile(name, search=(shipped_profiles(),)).syscalls
    rules = rules_for(
        syscalls.allow, syscalls.deny, unix_sockets=syscalls.unix_sockets, inet=False, tier=tier
    )
    code = compile_filter(rules, arch)
    for number in range(600):
        for args in ((), (1, 1, 1, 1, 1, 1), (2**64 - 1,) * 6):
            padded = (*args, 0, 0, 0, 0, 0, 0)[:6]
            assert simulate(code, arch, number, args) is rules.evaluate(arch, number, padded)


@pytest.mark.parametrize("number", range(1, 6))
def test_a_system_starts_no_program_and_makes_no_socket(number: int) -> None:
    syscalls = load_profile(f"system{number}", search=(shipped_profiles(),)).syscalls
    code = program("x86_64", "landlocked", allow=syscalls.allow, deny=syscalls.deny)
    for name in ("execve", "execveat", "fork", "vfork", "connect", "bind", "unlink", "mkdir"):
        assert answer(code, "x86_64", name) is EPERM
    for domain in (UNIX, INET, INET6, NETLINK):
        assert answer(code, "x86_64", "socket", domain, STREAM, 0) is EPERM
    for name in ("read", "write", "recvmsg", "sendmsg", "epoll_wait", "memfd_create", "openat"):
        assert answer(code, "x86_64", name) is ALLOW
    accepts = answer(code, "x86_64", "accept4")
    assert accepts is (ALLOW if number == 1 else EPERM)


words = st.one_of(
    st.sampled_from([0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)
masks = st.sampled_from([0xFFFF_FFFF, 2**64 - 1, 0xF, 0xF << 40, (1 << 63) | 1, 0])


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    mask = draw(masks)
    return Comparison(draw(st.integers(0, 5)), draw(words) & mask, mask)


actions = st.sampled_from([ALLOW, EPERM, ENOSYS])
clauses = st.builds(Clause, st.lists(comparisons(), max_size=3).map(tuple), actions)
filters = st.builds(ArgumentFilter, st.lists(clauses, max_size=4).map(tuple), actions)
decisions = st.dictionaries(st.sampled_from(sorted(known())), actions | filters, max_size=60)
policies = st.builds(Rules, decisions, actions, actions)


@given(
    policies,
    st.sampled_from(ARCHITECTURES),
    st.lists(
        st.tuples(st.integers(0, 480) | st.integers(0, 2**32 - 1), st.tuples(*[words] * 6)),
        min_size=1,
        max_size=20,
    ),
)
def test_the_compiled_filter_answers_as_the_rules_do(
    rules: Rules, arch: str, calls: list[tuple[int, tuple[int, ...]]]
) -> None:
    code = compile_filter(rules, arch)
    filtered = [numbers(arch)[name] for name in rules.decisions if name in numbers(arch)]
    for number, args in [*calls, *((number, calls[0][1]) for number in filtered)]:
        assert simulate(code, arch, number, args) is rules.evaluate(arch, number, args)


def test_a_filter_too_long_for_short_jumps_still_answers_right() -> None:
    many = ArgumentFilter(
        tuple(Clause((Comparison(0, value, 2**64 - 1),), ALLOW) for value in range(300)), EPERM
    )
    rules = Rules({"read": many, "write": ALLOW, "close": many})
    code = compile_filter(rules)
    assert len(code) // 8 > 1000
    for value in (0, 150, 299, 300, 1 << 32):
        assert simulate(code, "x86_64", 0, (value,)) is rules.evaluate("x86_64", 0, (value,))
        assert simulate(code, "x86_64", 3, (value,)) is rules.evaluate("x86_64", 3, (value,))


@pytest.mark.parametrize("code", [b"", b"\x20\0\0\0\0\0\0\0", b"\x05\0\0\0\xff\0\0\0", b"\xff" * 8])
def test_a_malformed_program_is_refused(code: bytes) -> None:
    with pytest.raises(ValueError, match=r"end|instruction"):
        simulate(code, "x86_64", 0, ())


@every_architecture
@every_tier
@given(data=st.data())
def test_a_reported_filter_refuses_exactly_what_the_plain_one_does(
    arch: str, tier: str, data: st.DataObject
) -> None:
    allow = data.draw(st.sampled_from([(), ("@system-service",), ("@default", "socket", "ioctl")]))
    plain_rules = rules_for(allow, (), unix_sockets=False, inet=True, tier=tier)
    plain, told = (compile_filter(r, arch) for r in (plain_rules, reported(plain_rules)))
    number = data.draw(st.sampled_from(sorted(numbers(arch).values())) | st.integers(0, 2**32 - 1))
    args = data.draw(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 40), max_size=6))
    before, after = simulate(plain, arch, number, args), simulate(told, arch, number, args)
    assert after in {before, Action.NOTIFY}
    assert (after is Action.NOTIFY) <= (before is EPERM)
    assert reported(plain_rules).evaluate(arch, number, [*args, *[0] * 6][:6]) is after


@every_architecture
@given(number=st.integers(0, 500), args=st.lists(st.integers(0, 2**64 - 1), max_size=6))
def test_one_answer_is_replaced_and_no_other(arch: str, number: int, args: list[int]) -> None:
    plain = program(arch, inet=True)
    before = simulate(plain, arch, number, args)
    after = simulate(replace_answer(plain, EPERM, ALLOW), arch, number, args)
    assert after is (ALLOW if before is EPERM else before)


@every_architecture
def test_what_a_mini_init_calls_before_the_hand_over_never_waits(arch: str) -> None:
    rules = reported(rules_for((), (), unix_sockets=False, inet=False, tier="landlocked"))
    code = compile_filter(rules, arch)
    for name in ("sendmsg", "close", "write", "mmap", "brk", "futex", "exit_group"):
        if name in numbers(arch):
            assert answer(code, arch, name) is EPERM
    assert answer(code, arch, "bpf") is Action.NOTIFY
    assert not may_report(rules)


def _is_const_allow(code: list[tuple[int, ...]], arch: str, number: int) -> bool:
    """What the kernel finds out when a filter is installed: kernel/seccomp.c, same name there.

    It follows loads of the number and the architecture, comparisons and AND with constants, and
    gives up at anything else: then the filter runs at every such call.
    """
    known = {0: number, 4: AUDIT_ARCH[arch]}
    compare = {0x15: operator.eq, 0x35: operator.ge, 0x25: operator.gt, 0x45: operator.and_}
    accumulator = at = 0
    while True:
        operation, if_true, if_false, operand = code[at]
        at += 1
        if operation == 0x20 and operand in known:
            accumulator = known[operand]
        elif operation == 0x05:
            at += operand
        elif operation in compare:
            at += if_true if compare[operation](accumulator, operand) else if_false
        elif operation == 0x54:
            accumulator &= operand
        else:
            return operation == 0x06 and operand == Action.ALLOW


@pytest.mark.parametrize("name", profile_names((shipped_profiles(),)))
@every_tier
@every_architecture
def test_the_kernel_answers_every_plainly_allowed_call_without_running_the_filter(
    arch: str, tier: str, name: str
) -> None:
    calls = load_profile(name, search=(shipped_profiles(),)).syscalls
    rules = rules_for(
        calls.allow, calls.deny, unix_sockets=calls.unix_sockets, inet=True, tier=tier
    )
    for program in (compile_filter(rules, arch), compile_filter(reported(rules), arch)):
        code = list(struct.iter_unpack("<HBBI", program))
        for call, number in numbers(arch).items():
            plain = rules.decisions.get(call) is Action.ALLOW
            assert _is_const_allow(code, arch, number) == plain, call
