"""What `vsm status` says of systems 2, 3 and 4 while they do something, or could and do not."""

from collections.abc import Iterator
from typing import Any

from vsm.commands.terminal import clean
from vsm.core.figures import amount, figure

_SHOWN = 4


def lines(systems: dict[str, Any]) -> Iterator[str]:
    """One line each, printable; nothing of a system that does nothing and was not asked to."""
    for name, words in (("system2", _damped), ("system3", _budget), ("system4", _expected)):
        try:
            yield from [clean(line) for line in words(systems.get(name, {}))]
        except (LookupError, TypeError, AttributeError, ValueError):
            yield f"{name} answers what makes no sense: `vsm status --json` shows it"


def _damped(state: dict[str, Any]) -> Iterator[str]:
    why = {
        (one["integration"], one["series"]): one["what"] for one in state.get("oscillations", ())
    }
    for name, series in state.get("damped", {}).items():
        for one in series:
            yield f"{name}: {why.get((name, one), f'{one} is damped')} (system 2)"


def _budget(state: dict[str, Any]) -> Iterator[str]:
    for resource, row in state.get("budget", {}).items():
        given = f"{amount(resource, row['held'])} of {amount(resource, row['budget'])}"
        why = row["reason"] or "limits are moving"
        yield f"budget: {resource}: {given} given: {why} (system 3)"
    for result in state.get("audits", ())[-_SHOWN:]:
        if result["failed"]:
            failed = ", ".join(result["failed"])
            yield f"{result['integration']}: not confined as planned: {failed} (system 3)"


def _expected(state: dict[str, Any]) -> Iterator[str]:
    for one in state.get("warnings", ())[:_SHOWN]:
        word = "is not served" if one["kind"] == "unserved" else "is asked for more than usual"
        span = f"{figure(one['low'])} to {figure(one['high'])} in the next {one['step_s']:g} s"
        yield f"{one['integration']} {one['demand']} {word}: {span} (system 4)"
