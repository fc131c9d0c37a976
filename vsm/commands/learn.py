"""`vsm profile learn NAME -- CMD …`: the smallest part of a profile that one run needs.

Needs no running supervisor; works as root and as a user. The command runs confined by NAME; the
profile that is printed extends NAME and takes away what the run did not use.
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from vsm.commands.output_file import check_writable
from vsm.errors import VsmError

if TYPE_CHECKING:
    from vsm.audit.learn import Learned
    from vsm.configuration.profile import Profile

# A wildcard that no name is below (RFC 6761): with it there is a proxy inside.
NOBODY = "*.nobody.invalid:1"
SUMMARY = "run a command observed; print the smallest part of NAME that it needed"


def add_parser(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `learn` to the actions of `profile`."""
    learn = actions.add_parser("learn", help=SUMMARY, description=SUMMARY)
    learn.add_argument("profile", metavar="NAME", help="name or file")
    learn.add_argument("--output", type=Path, metavar="FILE", help="write it here; else to stdout")
    learn.add_argument("--tier", choices=("namespaced", "landlocked"), help="insist on this tier")
    learn.add_argument("--read", action="append", default=[], metavar="PATH")
    learn.add_argument("--write", action="append", default=[], metavar="PATH")
    learn.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]")
    learn.add_argument("--cwd", metavar="DIR", help="working directory inside")
    learn.add_argument("argv", nargs="+", metavar="CMD", help="after --")


def run(args: argparse.Namespace) -> int:
    """Run it; the exit status is the command's."""
    from vsm.audit.learn import learn, profile_text
    from vsm.commands.sandbox import _group, _plan, egress_process
    from vsm.configuration.profile import load_profile
    from vsm.confinement.cgroup import detect
    from vsm.confinement.probe import probe_host

    if args.output is not None:
        check_writable(args.output, "--output")
    argv = args.argv
    profile = load_profile(args.profile)
    groups = detect()
    host = probe_host(groups=groups)
    namespaced = (args.tier or host.tier) == "namespaced" and profile.network.mode != "host"
    watched = _watched(profile) if namespaced else profile
    with _group(profile, groups) as group, ExitStack() as stack:
        try:
            egress = stack.enter_context(egress_process(watched, host))
        except VsmError:  # not there, or no room for one more port: less of hosts is observed
            watched = profile
            egress = stack.enter_context(egress_process(profile, host))
        plan = _plan(args, argv, watched, host, group)
        learned = learn(plan, egress)
    text = profile_text(profile, plan.tier, learned, argv)
    _write(args.output, text, learned)
    return learned.status


def _watched(profile: "Profile") -> "Profile":
    """The profile with a proxy inside that lets no more through, but hears what is asked for."""
    import msgspec

    allow = (*profile.network.allow, NOBODY)
    network = msgspec.structs.replace(profile.network, mode="proxy", allow=allow)
    return msgspec.structs.replace(profile, network=network)


def _write(output: Path | None, text: str, learned: "Learned") -> None:
    calls, paths = learned.calls, learned.paths
    if output is None:
        print(text)
    else:
        output.write_text(text, encoding="utf-8")
    refused, hosts = learned.refused, learned.hosts
    asked = "hosts not observed" if hosts is None else f"{len(hosts)} hosts"
    print(
        f"vsm: {calls.total()} system calls of {len(calls)} kinds, {refused.total()} refused of "
        f"{len(refused)} kinds, {len(paths)} paths, {asked}; what this run did not do is not in "
        "the profile",
        file=sys.stderr,
    )
