"""The system call policy: a profile's names → rules, with the floor under every profile. Pure.

Three things are decided here and not in profiles: calls that a group never brings in (a profile
can still name one), calls whose arguments are filtered, and calls that answer ENOSYS instead of
EPERM because a C library falls back on that answer only.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from vsm.core.seccomp_bpf import (
    Action,
    ArgumentFilter,
    Clause,
    Comparison,
    Decision,
    Rules,
    compile_filter,
    replace_answer,
    simulate,
)
from vsm.core.syscalls import group, known

__all__ = [
    "FILTERED",
    "NOT_BY_GROUP",
    "NOT_WITHOUT_NAMESPACES",
    "Action",
    "Rules",
    "compile_filter",
    "may_report",
    "refuse_own_group",
    "replace_answer",
    "reported",
    "rules_for",
    "simulate",
]

NOT_BY_GROUP: Mapping[str, str] = MappingProxyType(
    {
        "unshare": "new namespaces widen what the kernel exposes",
        "setns": "joins namespaces of other processes",
        "io_uring_setup": "its operations pass by the filter",
        "io_uring_enter": "its operations pass by the filter",
        "io_uring_register": "its operations pass by the filter",
        "io_setup": "its contexts come out of one pool of the whole host",
        "add_key": "keyrings belong to the user, not to the worker",
        "keyctl": "keyrings belong to the user, not to the worker",
        "request_key": "keyrings belong to the user, and it can start a helper of the host",
        "userfaultfd": "holds the kernel still in the middle of a copy",
        "process_vm_readv": "reads memory of other processes",
        "process_vm_writev": "writes memory of other processes",
        "process_madvise": "acts on other processes",
        "migrate_pages": "acts on other processes",
        "move_pages": "acts on other processes",
        "mbind": "places memory on the host's nodes, which no server needs",
        "set_mempolicy": "places memory on the host's nodes, which no server needs",
        "set_mempolicy_home_node": "places memory on the host's nodes, which no server needs",
        "kcmp": "compares kernel addresses of other processes",
        "name_to_handle_at": "file handles outlive path checks",
        "capset": "a worker has no capabilities to set",
        "vmsplice": "lends pages to the kernel, which no server needs",
        "remap_file_pages": "obsolete",
        "sync": "flushes every disk of the host",
    }
)

_IPC = (
    *("shmget", "shmat", "shmctl", "shmdt", "semget", "semop", "semctl", "semtimedop"),
    *("msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink", "mq_notify"),
    *("mq_timedsend", "mq_timedreceive", "mq_getsetattr"),
)
NOT_WITHOUT_NAMESPACES: Mapping[str, str] = MappingProxyType(
    {
        "pidfd_open": "opens any process of the user",
        **dict.fromkeys(_IPC, "reaches objects of other processes of the user"),
    }
)

# A C library or runtime tries these first and takes the older call on ENOSYS only.
_FALLS_BACK = (
    *("clone3", "statx", "close_range", "openat2", "faccessat2", "fchmodat2", "epoll_pwait2"),
    *("copy_file_range", "preadv2", "pwritev2", "futex_waitv", "futex_wake", "futex_wait"),
    *("futex_requeue", "mseal", "map_shadow_stack", "cachestat", "setxattrat", "getxattrat"),
    *("listxattrat", "removexattrat", "file_getattr", "file_setattr", "statmount", "listmount"),
    *("lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules", "open_tree_attr"),
    *("rseq", "membarrier", "pkey_alloc"),  # V8 asks for protection keys at every start
)

# What a mini-init may call after its filter is there and before somebody holds the listener. A
# refusal of these is not reported: nobody could answer it, and it would wait for ever.
_BEFORE_HAND_OVER = frozenset(
    {
        *("sendmsg", "close", "read", "write", "mmap", "munmap", "mprotect", "mremap", "madvise"),
        *("brk", "futex", "rt_sigprocmask", "rt_sigreturn", "rt_sigaction", "getpid", "gettid"),
        *("sched_yield", "restart_syscall", "exit", "exit_group"),
    }
)

_WHOLE = 2**64 - 1
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_SEQPACKET, _SOCK_TYPE_MASK = 1, 2, 5, 0xF
_IPPROTO_DEFAULT, _IPPROTO_TCP, _IPPROTO_UDP = 0, 6, 17
# linux/sched.h: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_CLONE_NEW = 0x7E02_0000
_CLONE_THREAD = 0x1_0000
_CLONE_NEWTIME = 0x80  # of unshare(2) only: in clone(2) the bit belongs to the exit signal

# The options of prctl(2) that concern the caller only.
_PRCTL = (
    *(1, 2, 3, 4, 7),  # PDEATHSIG, DUMPABLE, GET_KEEPCAPS
    *(15, 16, 21, 23, 29, 30),  # NAME, GET_SECCOMP, CAPBSET_READ, TIMERSLACK
    *(36, 37, 38, 39, 40, 41, 42),  # CHILD_SUBREAPER, NO_NEW_PRIVS, GET_TID_ADDRESS, THP_DISABLE
    *(51, 52, 56, 65, 66),  # SVE_GET_VL, GET_SPECULATION_CTRL, GET_TAGGED_ADDR_CTRL, MDWE
)
_PR_SET_VMA = 0x5356_4D41

# ioctl(2) requests that act on the caller's own descriptor. Not among them: TIOCSTI and TIOCLINUX
# (type into a terminal), TIOCSETD and TIOCCONS, the consoles' KD* and VT_*, and every driver.
_IOCTL_TERMINAL = (
    *(0x5401, 0x5402, 0x5403, 0x5404),  # TCGETS, TCSETS, TCSETSW, TCSETSF
    *(0x5409, 0x540A, 0x540B, 0x540E),  # TCSBRK, TCXONC, TCFLSH, TIOCSCTTY
    *(0x540F, 0x5410, 0x5411, 0x5413, 0x5414),  # TIOCGPGRP, SPGRP, OUTQ, GWINSZ, SWINSZ
    *(0x5422, 0x5425, 0x5429, 0x40045431, 0x5441),  # TIOCNOTTY, TCSBRKP, TIOCGSID, SPTLCK, GPTPEER
    *(0x802C542A, 0x402C542B, 0x402C542C, 0x402C542D, 0x80045430),  # TCGETS2, TCSETS2…, TIOCGPTN
)
_IOCTL_FILE = (
    *(0x541B, 0x5421, 0x5450, 0x5451, 0x5452),  # FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, FIOASYNC
    *(0x2, 0x80086601, 0x40049409, 0x4020940D),  # FIGETBSZ, FS_IOC_GETFLAGS, FICLONE, FICLONERANGE
)
# SIOCGIFNAME, CONF, FLAGS, ADDR, NETMASK, MTU, INDEX: read-only.
_IOCTL_INET = (0x8910, 0x8912, 0x8913, 0x8915, 0x891B, 0x8921, 0x8933)


def _only(*clauses: tuple[Comparison, ...]) -> ArgumentFilter:
    """Allow what one of the conjunctions describes, refuse the rest."""
    return ArgumentFilter(tuple(Clause(tests, Action.ALLOW) for tests in clauses), Action.EPERM)


def _one_of(index: int, values: Iterable[int]) -> ArgumentFilter:
    return _only(*((Comparison(index, value),) for value in values))


_RLIMIT_CORE = 4  # stays at 1, which keeps crashes from the host's core helper; 0 would not
# linux/fcntl.h: F_SETLEASE, and F_SETDELEG, which does the same to folders.
_FCNTL_LEASES = (1024, 1040)
_OWN_PROCESS = _only((Comparison(0, 0),))
_THREADS_ONLY = _only((Comparison(0, _CLONE_THREAD, _CLONE_NEW | _CLONE_THREAD),))
_NO_NAMESPACE = _only((Comparison(0, 0, _CLONE_NEW),))

_FILTERS: Mapping[str, ArgumentFilter] = MappingProxyType(
    {
        "clone": _NO_NAMESPACE,
        "unshare": _only((Comparison(0, 0, _CLONE_NEW | _CLONE_NEWTIME),)),
        "fcntl": ArgumentFilter(
            tuple(Clause((Comparison(1, value),), Action.EPERM) for value in _FCNTL_LEASES),
            Action.ALLOW,
        ),
        "prctl": _one_of(0, (*_PRCTL, _PR_SET_VMA)),
        # Its own pid cannot be told from another's, so it is 0, or nothing is written.
        "prlimit64": ArgumentFilter(
            (
                Clause((Comparison(2, 0, _WHOLE),), Action.ALLOW),
                Clause((Comparison(1, _RLIMIT_CORE),), Action.EPERM),
                Clause((Comparison(0, 0),), Action.ALLOW),
            ),
            Action.EPERM,
        ),
        "setrlimit": ArgumentFilter(
            (Clause((Comparison(0, _RLIMIT_CORE),), Action.EPERM),), Action.ALLOW
        ),
        "personality": _one_of(0, (0, 0xFFFF_FFFF)),
        "setpriority": _only((Comparison(0, 0), Comparison(1, 0))),
        "ioprio_set": _only((Comparison(0, 1), Comparison(1, 0))),
    }
)
# Without a pid namespace these reach every process of the user.
_SCHEDULING = ("sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler")

FILTERED: Mapping[str, str] = MappingProxyType(
    {
        "clone": "no new namespaces; threads only where fork is denied",
        "unshare": "no new namespaces",
        "fcntl": "no leases, which hold up whoever else opens the file",
        "prctl": "only options that concern the caller",
        "prlimit64": "its own limits but that of core dumps, or reading",
        "setrlimit": "any but that of core dumps",
        "personality": "reading, or the plain Linux one",
        "setpriority": "its own process",
        "ioprio_set": "its own thread",
        "ioctl": "terminal and file requests that concern its own descriptor; no TIOCSTI",
        "socket": "by family, type and protocol; none without a network or unix_sockets",
        "socketpair": "connected pairs; datagrams with unix_sockets only",
    }
)


def rules_for(
    syscalls_allow: Iterable[str],
    syscalls_deny: Iterable[str],
    *,
    unix_sockets: bool,
    inet: bool,
    tier: str,
    udp: bool | None = None,
) -> Rules:
    """The rules of a profile in a tier.

    Args:
        syscalls_allow: names and @groups.
        syscalls_deny: names and @groups; they win.
        unix_sockets: AF_UNIX sockets with an address. Without namespaces they stay refused,
            because no other layer keeps a worker from the host's sockets there.
        inet: IPv4 and IPv6: TCP, and UDP where there are namespaces.
        tier: "namespaced" or "landlocked".
        udp: None decides by the tier; True for a process of vsm's own that asks name servers.

    Raises:
        KeyError: an unknown group.
    """
    namespaced = tier == "namespaced"
    denied = _names(syscalls_deny)
    allowed = _expand(syscalls_allow, namespaced=namespaced) - denied
    decisions: dict[str, Decision] = dict.fromkeys(_FALLS_BACK, Action.ENOSYS)
    decisions.update(dict.fromkeys(allowed, Action.ALLOW))
    filters = dict(_FILTERS)
    filters["ioctl"] = _one_of(1, _IOCTL_TERMINAL + _IOCTL_FILE + (_IOCTL_INET if inet else ()))
    datagrams = namespaced if udp is None else udp
    filters["socket"] = _sockets(unix=unix_sockets and namespaced, inet=inet, udp=datagrams)
    filters["socketpair"] = _socketpairs(datagrams=unix_sockets and namespaced)
    if not namespaced:
        filters.update(dict.fromkeys(_SCHEDULING, _OWN_PROCESS))
    if "fork" in denied:
        # C libraries fork by clone: who may not fork may make threads only.
        filters["clone"] = _THREADS_ONLY
    decisions.update((name, filters[name]) for name in allowed if name in filters)
    # Its flags are behind a pointer, where no filter can see them.
    decisions["clone3"] = Action.ENOSYS
    return Rules(decisions)


def may_report(rules: Rules) -> bool:
    """Whether a mini-init under these rules can hand the listener over at all."""
    return rules.decisions.get("sendmsg") is Action.ALLOW


def reported(rules: Rules) -> Rules:
    """The same rules, with NOTIFY for EPERM: whoever holds the listener counts, and answers EPERM.

    What answers ENOSYS stays as it is: C libraries ask for it at every turn, and take no harm.
    """
    decisions = dict(rules.decisions)
    for name in _BEFORE_HAND_OVER - decisions.keys():
        decisions[name] = rules.default
    changed = {
        name: decision if name in _BEFORE_HAND_OVER else _reported(decision)
        for name, decision in decisions.items()
    }
    return Rules(changed, _reported_action(rules.default), rules.absent)


def refuse_own_group(rules: Rules) -> Rules:
    """The same rules, with EPERM for a signal to the own process group.

    For whoever shares one with processes outside: kill(2) finds them there, of whatever namespace.
    """
    decisions = dict(rules.decisions)
    if decisions.get("kill") is Action.ALLOW:
        own = Clause((Comparison(0, 0),), Action.EPERM)
        decisions["kill"] = ArgumentFilter((own,), Action.ALLOW)
    return Rules(decisions, rules.default, rules.absent)


def _reported(decision: Decision) -> Decision:
    if isinstance(decision, Action):
        return _reported_action(decision)
    clauses = (Clause(one.tests, _reported_action(one.action)) for one in decision.clauses)
    return ArgumentFilter(tuple(clauses), _reported_action(decision.otherwise))


def _reported_action(action: Action) -> Action:
    return Action.NOTIFY if action is Action.EPERM else action


def _expand(entries: Iterable[str], *, namespaced: bool) -> set[str]:
    named: set[str] = set()
    grouped: set[str] = set()
    for entry in entries:
        if entry.startswith("@"):
            grouped |= group(entry)
        else:
            named.add(entry)
    grouped -= NOT_BY_GROUP.keys()
    if not namespaced:
        grouped -= NOT_WITHOUT_NAMESPACES.keys()
    return (named | grouped) & known()


def _names(entries: Iterable[str]) -> set[str]:
    return {name for entry in entries for name in (group(entry) if entry[:1] == "@" else {entry})}


def _sockets(*, unix: bool, inet: bool, udp: bool) -> ArgumentFilter:
    """By domain, type and protocol: never netlink, packet, vsock, alg, raw, SCTP or MPTCP."""
    clauses: list[tuple[Comparison, ...]] = [(Comparison(0, _AF_UNIX),)] if unix else []
    kinds = [(_SOCK_STREAM, _IPPROTO_TCP), *([(_SOCK_DGRAM, _IPPROTO_UDP)] if udp else [])]
    for domain in (_AF_INET, _AF_INET6) if inet else ():
        for kind, protocol in kinds:
            for number in (_IPPROTO_DEFAULT, protocol):
                of_kind = Comparison(1, kind, _SOCK_TYPE_MASK)
                clauses.append((Comparison(0, domain), of_kind, Comparison(2, number)))
    return _only(*clauses)


def _socketpairs(*, datagrams: bool) -> ArgumentFilter:
    """Connected pairs; a datagram end could still send to any path, so it needs unix_sockets."""
    kinds = (_SOCK_STREAM, _SOCK_SEQPACKET, *((_SOCK_DGRAM,) if datagrams else ()))
    return _only(
        *((Comparison(0, _AF_UNIX), Comparison(1, kind, _SOCK_TYPE_MASK)) for kind in kinds)
    )
