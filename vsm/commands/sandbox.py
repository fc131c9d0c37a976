"""`vsm sandbox run` confines any command as a worker would be; `vsm sandbox probe` reads the host.

Neither needs a running supervisor; both work as root and as a user. `run` is the parent of the
confined command: it hands on the terminal, signals and the exit status, and says nothing of its
own unless asked. `vsm sandbox audit` is in `vsm.commands.audit`.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vsm.commands import audit
from vsm.errors import ConfigurationError, VsmError

if TYPE_CHECKING:
    from vsm.configuration.profile import Profile
    from vsm.confinement.cgroup import CgroupFacts, Group
    from vsm.confinement.execution import Plan
    from vsm.confinement.probe import HostFacts
    from vsm.core.egress import Rules
    from vsm.egress.link import EgressLink
    from vsm.processes.launch import ExitReport, Spawned

    Egress = tuple[EgressLink, Rules]

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGTSTP,
    signal.SIGCONT,
)
SI_KERNEL = 0x80  # asm-generic/siginfo.h: the terminal sent it, to the whole process group
# A run of one command has no stable identity: its uid is unique among what lives, above the range
# of `vsm.confinement.uids`, and where systemd's list of uids has nothing.
FIRST_RUN_UID = 0x7800_0000
MARKS = {"works": "yes", "weaker": "weaker", "absent": "no"}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `sandbox run`, `sandbox probe` and `sandbox audit`."""
    parser = subparsers.add_parser("sandbox", help="confine any command, or probe this host")
    actions = parser.add_subparsers(dest="action", required=True, metavar="run|probe|audit")
    run = actions.add_parser("run", help="run a command confined; its exit status is the command's")
    run.add_argument("--profile", default="integration", metavar="NAME", help="name or file")
    run.add_argument("--tier", choices=("namespaced", "landlocked"), help="insist on this tier")
    run.add_argument("--read", action="append", default=[], metavar="PATH")
    run.add_argument("--write", action="append", default=[], metavar="PATH")
    run.add_argument(
        "--allow", action="append", default=[], metavar="HOST:PORT", help="egress to this host"
    )
    run.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]")
    run.add_argument("--cwd", metavar="DIR", help="working directory inside")
    run.add_argument("-v", "--verbose", action="store_true", help="print the layers in force")
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD ...")
    probe = actions.add_parser("probe", help="print what this host gives, found by trials")
    probe.add_argument("--json", action="store_true", help="machine-readable")
    audit.add_parser(actions)


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    if args.action == "audit":
        return audit.run(args)
    return _probe(as_json=args.json) if args.action == "probe" else _run(args)


# -- probe -----------------------------------------------------------------------------------------


def _probe(*, as_json: bool) -> int:
    import msgspec

    from vsm.confinement.probe import layer_table, probe_host

    facts = probe_host()
    rows = layer_table(facts)
    if as_json:
        answer = {"host": facts, "layers": rows}
        print(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
        return 0
    who = "root" if facts.root else f"uid {facts.uid}"
    print(f"Linux {facts.kernel} {facts.architecture}, as {who}: tier {facts.tier}\n")
    for row in rows:
        print(f"{row.layer:<16} {MARKS[row.state]:<7} {row.detail}")
        if row.remedy:
            print(f"{'':<24} → {row.remedy}")
    return 0


# -- run -------------------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    from vsm.configuration.profile import check_foreign, load_profile
    from vsm.confinement import scratch, uids
    from vsm.confinement.cgroup import detect
    from vsm.confinement.probe import probe_host

    argv = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
    if not argv:
        raise ConfigurationError("sandbox run", "no command", "Write it after `--`.")
    profile = _allow(check_foreign(load_profile(args.profile), "--profile"), args.allow)
    scratch.sweep(uids.may_be_workers)
    groups = detect()
    host = probe_host(groups=groups)
    with _group(profile, groups) as group:
        plan = _plan(args, argv, profile, host, group)
        with egress_process(profile, host) as egress, _start_explained(group, profile):
            report = _spawn_and_wait(plan, egress, verbose=args.verbose)
        if args.verbose:
            _print_end(report, group, profile)
    return 128 + (report.signal or 0) if report.status is None else report.status


def _allow(profile: "Profile", hosts: list[str]) -> "Profile":
    """The profile with these hosts beside its own."""
    import msgspec

    from vsm.core.egress import compile_rules

    if not hosts:
        return profile
    if profile.network.mode == "host":
        what = f"the profile {profile.name} has the host's network already"
        raise ConfigurationError("--allow", what, "Leave it out, or take another profile.")
    allow = (*profile.network.allow, *hosts)
    try:
        compile_rules(allow)
    except ValueError as error:
        remedy = "Write api.example.com:443, *.example.com:443 or 127.0.0.1:8000."
        raise ConfigurationError("--allow", str(error), remedy) from error
    network = msgspec.structs.replace(profile.network, mode="proxy", allow=allow)
    return msgspec.structs.replace(profile, network=network)


@contextmanager
def egress_process(profile: "Profile", host: "HostFacts") -> "Iterator[Egress | None]":
    """The egress process of this run, where the profile needs one; it ends with the run."""
    from vsm.confinement.plan import egress_rules

    rules = egress_rules(profile)
    if rules is None or not rules.listeners:
        yield None
        return
    from vsm.egress.link import EgressLink, egress_plan_of_runs

    link = EgressLink(egress_plan_of_runs(host))
    try:
        link.wait_ready()
        yield link, rules
    finally:
        link.close()


@contextmanager
def _group(profile: "Profile", facts: "CgroupFacts") -> "Iterator[Group | None]":
    """The command's control group, where one works; removed with all that is left in it."""
    from vsm.confinement.cgroup import Cgroups, limits_of

    if facts.kind == "none":
        yield None
        return
    limits = profile.limits
    cgroups = Cgroups(facts)
    cgroups.sweep()
    try:
        yield cgroups.create(
            "sandbox",
            limits_of(limits),
        )
    finally:
        cgroups.close()


def _plan(
    args: argparse.Namespace,
    argv: list[str],
    profile: "Profile",
    host: "HostFacts",
    group: "Group | None",
) -> "Plan":
    from vsm.confinement.closure import DEFAULT_PATH, closure
    from vsm.confinement.plan import WorkerRequest, compile_plan

    env = _environment(args.env)
    path = env.get("PATH") or os.environ.get("PATH") or DEFAULT_PATH
    needed = closure(argv, env={**profile.environment, **env, "PATH": path})
    kept = tuple(map(_real, args.read))
    read = (*needed.read, *kept)
    write = tuple(map(_real, args.write))
    request = WorkerRequest(
        name="sandbox",
        argv=(needed.executable, *argv[1:]),
        cwd=args.cwd or _visible_cwd((*read, *write)),
        env=env,
        path=needed.folders,
        read=read,
        kept=kept,
        write=write,
        uid=FIRST_RUN_UID + os.getpid() if host.root else None,
        tier=args.tier,
        tty=_has_terminal(),
        cgroups=group.paths if group else (),
        cgroup_layers=group.layers if group else (),
    )
    return compile_plan(profile, request, host)


def _environment(items: list[str]) -> dict[str, str]:
    """`NAME=VALUE` sets; `NAME` passes ours on; a terminal gets its TERM."""
    env = {"TERM": os.environ["TERM"]} if _has_terminal() and "TERM" in os.environ else {}
    for item in items:
        name, equals, value = item.partition("=")
        if not name:
            raise ConfigurationError("--env", f"{item!r} has no name", "Write NAME=VALUE.")
        if equals:
            env[name] = value
        elif name in os.environ:
            env[name] = os.environ[name]
    return env


def _real(path: str) -> str:
    real = os.path.realpath(path)  # unlike a Path's, of links in a circle too
    if not os.path.exists(real):
        raise ConfigurationError("sandbox run", f"{path} does not exist", "Correct the path.")
    return real


def _visible_cwd(paths: tuple[str, ...]) -> str | None:
    """Stay where we are if the command sees any of it; else its private directory."""
    here = Path.cwd()
    for path in map(Path, paths):
        if here == path or here in path.parents or path in here.parents:
            return str(here)
    return None


def _has_terminal() -> bool:
    return any(os.isatty(fd) for fd in (0, 1, 2))


@contextmanager
def _start_explained(group: "Group | None", profile: "Profile") -> "Iterator[None]":
    """A command that did not start is an error that says which limit ended it, if one did."""
    from vsm.processes.launch import LaunchError
    from vsm.supervision.last_words import start_failure

    try:
        yield
    except LaunchError as error:
        usage = group.usage() if group else None
        raise VsmError("sandbox run", start_failure(error, usage, profile.limits), "") from error


def _print_end(report: "ExitReport", group: "Group | None", profile: "Profile") -> None:
    from vsm.supervision.last_words import words

    usage = group.usage() if group else None
    print(f"vsm: {words(report, usage, profile.limits)}", file=sys.stderr)


def _spawn_and_wait(plan: "Plan", egress: "Egress | None", *, verbose: bool) -> "ExitReport":
    from vsm.processes.launch import spawn_confined

    tty = _has_terminal()
    # Blocked before the fork, so that no signal falls between it and the wait below.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    try:
        spawned = spawn_confined(plan, 0, 1, 2, tty=tty)
        if egress:
            _serve_egress(spawned, *egress)
        if verbose:
            _print_layers(plan, spawned)
        report = _wait(spawned, tty=tty)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if verbose and egress:
        _print_egress(egress[0])
    return report


def _wait(spawned: "Spawned", *, tty: bool) -> "ExitReport":
    """Hand signals on until the command's init ends."""
    from vsm.processes.launch import wait_confined

    while True:
        info = signal.sigwaitinfo({*FORWARDED, signal.SIGCHLD})
        if info.si_signo == signal.SIGCHLD:
            with suppress(TimeoutError):  # another child, or stopped: not the end
                return wait_confined(spawned, 0)
            continue
        # What a terminal sends has reached the command as well: it is in our process group.
        if not (tty and info.si_code == SI_KERNEL):
            os.kill(spawned.pid, info.si_signo)
        if info.si_signo == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)


def _serve_egress(spawned: "Spawned", link: "EgressLink", rules: "Rules") -> None:
    link.serve("sandbox", rules, spawned.listeners)
    for fd in spawned.listeners:
        os.close(fd)


def _print_egress(link: "EgressLink") -> None:
    """What the command asked for; said once it has ended."""
    link.wait_last_counts("sandbox")
    for name, row in sorted(link.counts.get("sandbox", {}).items()):
        reason = f" ({row['reason']})" if row["reason"] else ""
        print(
            f"vsm: egress: {name}: {row['allowed']} allowed, {row['refused']} refused{reason}, "
            f"{row['sent_bytes']} bytes out, {row['received_bytes']} in",
            file=sys.stderr,
        )


def _print_layers(plan: "Plan", spawned: "Spawned") -> None:
    print(f"vsm: tier {plan.tier}", file=sys.stderr)
    for layer in spawned.layers:
        print(f"vsm: {layer['name']}: {layer['state']} ({layer['detail']})", file=sys.stderr)
