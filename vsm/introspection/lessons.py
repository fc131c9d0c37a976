"""What was learned: which choices, retries, limits and routes helped, by the record.

Runs in the supervisor. Pure but for what it is given: rows of the journal and the counts. What
the evidence does not carry is None, and says so.

rule               choice                  turned out well is
any decision's     what was chosen         what its outcome says
budget.*           a limit of NAME         it was not met again; with figures before and after
gateway.retry      send again to NAME      the call was answered then
gateway.route      an instance of a pool   of the calls sent to it, those that were answered
client.route       NAME for a tool         of the calls of it there, those that were answered well
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from vsm.core.demand import NOBODY
from vsm.core.lessons import Body, Fared, compare, share
from vsm.journal.reader import Row

LEAST_TRIALS: Final = 10
LEAST_CALLS: Final = 30
MOST_ROUTES: Final = 8  # instances of one pool, or integrations with one tool
MOST_TOOLS: Final = 20
BUDGET: Final = "budget."
CLIENT_ROUTE: Final = "client.route"  # its choices hold words of clients
_ENDED: Final = ("answered", "failed")
_GOOD: Final = {"ready": True, "rested": True, "served": True, "closed": True}
_BAD: Final = dict.fromkeys(
    ("exited", "not served", "opened again", "refused", "not answered"), False
)
"""States of outcomes; of others, as of what was commanded or revoked, nothing is learned."""
_FIGURES: Final = {
    "answered_per_s": "answers per second",
    "pressure": "times that it was met in a sample",
}


def of_decisions(rows: Iterable[Row]) -> list[Body]:
    """How often what a rule chose turned out well; moved limits by whose they are."""
    made: Counter[tuple[str, str]] = Counter()
    known: Counter[tuple[str, str]] = Counter()
    well: Counter[tuple[str, str]] = Counter()
    figures: dict[tuple[str, str], list[tuple[str, float, float]]] = defaultdict(list)
    for row in rows:
        key = (row["rule"], _choice(row))
        made[key] += 1
        good = turned_out_well(row["outcome"])
        if good is not None:
            known[key] += 1
            well[key] += good
        if row["rule"].startswith(BUDGET):
            figures[key] += _figure(row["outcome"])
    return [
        {
            "rule": rule,
            "choice": choice,
            "decisions": count,
            "outcomes_known": known[rule, choice],
            "turned_out_well": share(well[rule, choice], known[rule, choice], LEAST_TRIALS),
            **_before_after(figures[rule, choice]),
        }
        for (rule, choice), count in made.most_common()
    ]


def _choice(row: Row) -> str:
    """A limit is one thing to learn of, whatever it was moved to."""
    inputs = row["inputs"]
    resource = inputs.get("resource") if isinstance(inputs, dict) else None
    if row["rule"].startswith(BUDGET) and isinstance(resource, str):
        return f"{resource} of {row['subject']}"
    return str(row["choice"])


def turned_out_well(outcome: Any) -> bool | None:  # noqa: ANN401 - JSON
    """Whether an outcome says that the choice was a good one; None where it says neither."""
    if not isinstance(outcome, dict):
        return None
    if "relieved" in outcome:  # a limit that something was measured of
        return bool(outcome["relieved"])
    if "verdict" in outcome:
        return bool(outcome["verdict"] == "approved")
    state = outcome.get("state")
    return (_GOOD | _BAD).get(state) if isinstance(state, str) else None


def _figure(outcome: Any) -> list[tuple[str, float, float]]:  # noqa: ANN401 - JSON
    """What was measured before a move and after it."""
    if not isinstance(outcome, dict):
        return []
    pair = outcome.get("answered_per_s")
    if isinstance(pair, list) and len(pair) == 2:  # noqa: PLR2004 - before and after
        name, before, after = "answered_per_s", *pair
    else:
        name = "pressure"
        before, after = outcome.get("pressure_before"), outcome.get("pressure_since")
    if not isinstance(before, (int, float)) or not isinstance(after, (int, float)):
        return []
    return [(name, float(before), float(after))]


def _before_after(figures: list[tuple[str, float, float]]) -> Body:
    if not figures:
        return {}
    name, count = figures[0][0], len(figures)
    return {
        "before_after": {
            "figure": _FIGURES[name],
            "before": round(sum(before for _, before, _ in figures) / count, 3),
            "after": round(sum(after for _, _, after in figures) / count, 3),
            "moves": count,
        }
    }


def _counts(rows: Any, width: int) -> Iterator[list[int]]:  # noqa: ANN401 - JSON
    """Rows of so many counts; a record may be cut, or of somebody who wrote what makes no sense."""
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, list) and len(row) == width and all(type(n) is int for n in row):
            yield row


def _of_somebody(events: Iterable[Row]) -> Iterator[Row]:
    return (row for row in events if row["integration"] and isinstance(row["detail"], dict))


def of_retries(events: Iterable[Row]) -> list[Body]:
    """Of each integration, whether calls that were sent again were answered then."""
    ended: Counter[str] = Counter()
    well: Counter[str] = Counter()
    for row in _of_somebody(events):
        for answered, failed in _counts([[row["detail"].get(key) for key in _ENDED]], len(_ENDED)):
            ended[row["integration"]] += answered + failed
            well[row["integration"]] += answered
    return [
        {
            "rule": "gateway.retry",
            "choice": f"send again to {name}",
            "decisions": count,
            "outcomes_known": count,
            "turned_out_well": share(well[name], count, LEAST_TRIALS),
        }
        for name, count in ended.most_common()
    ]


def of_instances(events: Iterable[Row]) -> list[Body]:
    """Which instance of a pool calls were sent to, and how each fared beside the others."""
    pools: dict[str, dict[str, Fared]] = {}
    for row in _of_somebody(events):
        pool = pools.setdefault(row["integration"], {})
        for number, answered, failed in _counts(row["detail"].get("instances"), 1 + len(_ENDED)):
            before = pool.get(str(number), Fared(0, 0))
            sums = Fared(before.well + answered, before.trials + answered + failed)
            pool[str(number)] = sums
    return [
        row
        for name, pool in sorted(pools.items())
        for row in _routes("gateway.route", {f"{name}#{one}": it for one, it in pool.items()})
    ]


def of_capabilities(integrations: Mapping[str, Any]) -> list[Body]:
    """Tools that clients asked several integrations for: where they were answered well."""
    tools: dict[str, dict[str, Fared]] = {}
    for name, row in integrations.items():
        for label, counts in row["classes"].items() if name != NOBODY else ():
            if label and sum(counts):
                fared = Fared(counts[0], sum(counts))
                tools.setdefault(label, {})[f"{name} for {label}"] = fared
    several = [one for one in tools.values() if len(one) > 1]
    several.sort(key=lambda one: -sum(fared.trials for fared in one.values()))
    return [row for one in several[:MOST_TOOLS] for row in _routes(CLIENT_ROUTE, one)]


def _routes(rule: str, alternatives: dict[str, Fared]) -> list[Body]:
    """The alternatives with the most calls, each held against the others."""
    most = sorted(alternatives.items(), key=lambda one: -one[1].trials)[:MOST_ROUTES]
    verdicts = compare(dict(most), LEAST_CALLS)
    return [
        {
            "rule": rule,
            "choice": choice,
            "decisions": fared.trials,
            "outcomes_known": fared.trials,
            "turned_out_well": share(fared.well, fared.trials, LEAST_CALLS),
            "compared": verdicts[choice],
        }
        for choice, fared in most
    ]
