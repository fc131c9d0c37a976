"""`vsm profile learn NAME -- CMD …`: the smallest part of a profile that one run needs.

Needs no running supervisor; works as root and as a user. The command runs confined by NAME; the
profile that is printed extends NAME and takes away what the run did not use.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vsm.errors import ConfigurationError

if TYPE_CHECKING:
    from vsm.learn import Learned

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
    from vsm.cgroup import detect
    from vsm.commands.sandbox import _group, _plan
    from vsm.learn import learn, profile_text
    from vsm.probe import probe_host
    from vsm.profile import load_profile

    argv = args.argv
    profile = load_profile(args.profile)
    if profile.network.mode == "proxy":
        what = f"{profile.name} has egress, which is not observed yet"
        raise ConfigurationError("profile learn", what, "Learn on top of a profile without.")
    groups = detect()
    host = probe_host(groups=groups)
    with _group(profile, groups) as group:
        plan = _plan(args, argv, profile, host, group)
        learned = learn(plan)
    text = profile_text(profile, plan.tier, learned, argv)
    _write(args.output, text, learned)
    return learned.status


def _write(output: Path | None, text: str, learned: "Learned") -> None:
    calls, paths = learned.calls, learned.paths
    if output is None:
        print(text)
    else:
        output.write_text(text, encoding="utf-8")
    print(
        f"vsm: {calls.total()} system calls of {len(calls)} kinds, {len(paths)} paths; "
        "refused calls are not seen; what this run did not do is not in the profile",
        file=sys.stderr,
    )
