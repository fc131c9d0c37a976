"""`vsm sandbox audit`: try to break out of a profile's sandbox on this host, and say what held.

Prints each attempt with the layers that blocked it, or why it is open. With `--accepted FILE`
the openings and layers are compared with those written there; `--accept` writes them. Needs no
running supervisor; works as root and as a user.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vsm.commands.interrupt import end_in_order_on_sigterm
from vsm.commands.output_file import check_writable
from vsm.commands.terminal import clean, print_json
from vsm.errors import ConfigurationError, ConfinementError

if TYPE_CHECKING:
    from vsm.audit.result import Accepted, Result
    from vsm.configuration.profile import Profile
    from vsm.confinement.plan import Tier

EXIT_OPEN = 1
TIERS: "tuple[Tier, ...]" = ("namespaced", "landlocked")
MARKS = {"blocked": "blocked", "open": "OPEN", "unavailable": "-", "broken": "BROKEN"}
HELP = "try to break out of a profile's sandbox; exit code 1 on an opening that nobody accepted"


def add_parser(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `audit` to the actions of `sandbox`."""
    audit = actions.add_parser("audit", help=HELP)
    audit.add_argument("--profile", default="integration", metavar="NAME", help="`shipped` is all")
    audit.add_argument("--tier", choices=TIERS, help="this tier only; without it both")
    audit.add_argument("--json", action="store_true", help="machine-readable")
    audit.add_argument("--accepted", type=Path, metavar="FILE", help="compare with this result")
    audit.add_argument("--accept", action="store_true", help="write what was found into that file")


def run(args: argparse.Namespace) -> int:
    """Audit, print, compare."""
    accepted = _accepted(args)
    end_in_order_on_sigterm()  # the attempts' worlds are not left
    results, refused = [], {}
    for result in _results(args):
        if isinstance(result, tuple):
            refused[result[0]] = result[1]
            continue
        results.append(result)
        if not args.json:
            _print(result, every=args.profile != "shipped")
    if args.json:
        import msgspec

        print_json({"results": msgspec.to_builtins(results), "refused": refused})
    if args.accept:
        _accept(args.accepted, results)
        return 0
    problems = list(_problems(results, accepted))
    problems += [f"{key}: cannot be tried any more" for key in refused if key in (accepted or {})]
    if not args.json:
        for key, reason in refused.items():
            print(f"not run: {key}: {reason}")
        for problem in problems:
            print(f"worse than accepted: {problem}" if args.accepted else f"open: {problem}")
    return EXIT_OPEN if problems or not results else 0


def _accepted(args: argparse.Namespace) -> "dict[str, Accepted] | None":
    """What to compare with; a file that cannot be read or written ends it before the work."""
    if not args.accept:
        return _read(args.accepted) if args.accepted else None
    if not args.accepted:
        raise ConfigurationError("--accept", "no file to write", "Add --accepted FILE.")
    check_writable(args.accepted, "--accepted")
    if args.accepted.exists():
        _read(args.accepted)  # what it holds will be kept
    return None


def _results(args: argparse.Namespace) -> "Iterator[Result | tuple[str, str]]":
    """Each result, or its key and why there is none: the host or the profile has no such tier."""
    from vsm.audit.battery import Control, audit
    from vsm.confinement.probe import probe_host

    host, control = probe_host(), Control()
    for profile in _profiles(args.profile):
        tiers: tuple[Tier, ...] = (args.tier,) if args.tier else TIERS
        for tier in tiers if profile.confine == "exec" else TIERS[1:]:
            if profile.tier == "namespaced" and tier == "landlocked" and not args.tier:
                continue  # it accepts no less: nothing to try
            try:
                yield audit(profile, host, tier=tier, control=control)
            except ConfinementError as error:
                user = "root" if host.root else "user"
                yield f"{profile.name}/{tier}/{user}", str(error)


def _profiles(name: str) -> "list[Profile]":
    from vsm.configuration.profile import list_profiles, load_profile
    from vsm.paths import shipped_profiles

    return list_profiles((shipped_profiles(),)) if name == "shipped" else [load_profile(name)]


def _print(result: "Result", *, every: bool) -> None:
    blocked, opened = result.count("blocked"), result.count("open")
    print(
        f"{result.profile}, {result.tier} tier, as {result.user}: {blocked} blocked "
        f"({result.proven} of them possible unconfined here), {opened} open, "
        f"{result.count('unavailable')} not on this machine"
    )
    for name, state in result.layers.items():
        if every or state == "absent":
            print(f"  layer {name}: {state}")
    for row in result.rows:
        if every or row.verdict in ("open", "broken"):
            why = row.reason or "NOT EXPECTED" if row.verdict == "open" else ", ".join(row.by)
            unproven = row.verdict == "blocked" and row.control not in ("possible", "needs root")
            note = f"; unconfined: {row.control}" if unproven else ""
            text = clean(f"{why} {row.detail}".strip())
            print(f"  {MARKS[row.verdict]:<8} {row.name}: {text}{note}")


def _problems(results: "list[Result]", accepted: "dict[str, Accepted] | None") -> Iterator[str]:
    from vsm.audit.result import compare

    for result in results:
        if accepted is not None:
            yield from compare(result, accepted.get(result.key))
            continue
        for row in result.rows:
            if row.verdict == "broken" or (row.verdict == "open" and not row.reason):
                yield f"{result.key}: {row.name} ({row.detail or 'it succeeded'})"


def _read(path: Path) -> "dict[str, Accepted]":
    import msgspec

    from vsm.audit.result import Accepted

    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Accepted])
    except (OSError, msgspec.DecodeError) as error:
        remedy = "Name a file that --accept wrote, or write one by --accept."
        raise ConfigurationError(str(path), str(error), remedy) from error


def _accept(path: Path, results: "list[Result]") -> None:
    """Replace what was just tried, keep the rest and the reasons that somebody wrote."""
    import msgspec

    from vsm.audit.result import accept

    kept = _read(path) if path.exists() else {}
    for result in results:
        before = kept[result.key].open if result.key in kept else {}
        kept[result.key] = accept(result, before)
    text = msgspec.json.format(msgspec.json.encode(dict(sorted(kept.items()))), indent=1)
    path.write_bytes(text + b"\n")
    unexplained = [f"{k}: {n}" for k, a in kept.items() for n, why in a.open.items() if why == "?"]
    for line in unexplained:
        print(f"accepted without a reason; replace the ? in {path}: {line}")
