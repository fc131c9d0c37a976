"""What a rule of the operator's costs a call: CPU time of the gate of rules alone, in one process.

`by name`: no rule needs the arguments of this tool, so they are not touched. The others need its
size, one member, a member of a member, or every value. `all parsed` is the same gate where all is
parsed by the parser that sees every member, as it is where a quick look shows too little. The
variants take turns.
"""

import asyncio
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

from msgspec import Raw

from vsm.core.policy_rules import compile_rules, to_body
from vsm.gateway import rule_arguments
from vsm.gateway.call import Call
from vsm.gateway.gate_rules import Outlet, RuleGate

CALLS = 500
TURNS = 8  # of each round
SMALL = b'{"path":"/srv/papers/a.txt","mode":"r"}'
LARGE = b'{"path":"/srv/papers/a.txt","text":"' + b"x" * 4000 + b'"}'
ROWS = b",".join(b'{"a":%d,"b":"text %d"}' % (number, number) for number in range(40))
NESTED = b'{"options":{"path":"/srv/a","flags":[1,2,3]},"items":[' + ROWS + b"]}"
PATH = {"argument": [["path", "/etc/*"]]}
INNER = {"argument": [["options.path", "/etc/*"]]}
ANY = {"argument": [["*", "*secret*"]]}
PARSED = "all parsed"
# What a rule that denies a tool says further, the tool that is called, and its arguments.
CASES: dict[str, tuple[dict[str, Any], str, bytes]] = {
    "by name": (PATH, "write", SMALL),
    "size": ({"larger_than": 100_000}, "read", SMALL),
    "member": (PATH, "read", SMALL),
    "member beside 4 KB": (PATH, "read", LARGE),
    "member of a member": (INNER, "read", NESTED),
    "every value": (ANY, "read", SMALL),
}


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure each in turn and report medians."""
    return asyncio.run(_run(rounds))


async def _run(rounds: int) -> list[dict[str, Any]]:
    gates = {name: (_gate(one[0]), _call(one[1], one[2])) for name, one in CASES.items()}
    found: dict[tuple[str, bool], list[float]] = {}
    for _ in range(rounds * TURNS):
        for name, (gate, call) in gates.items():
            for parsed in (False, True):
                with _all_parsed() if parsed else _as_it_is():
                    found.setdefault((name, parsed), []).append(_once(gate, call))
    rows = []
    for name in CASES:
        quick, slow = (statistics.median(found[name, parsed]) for parsed in (False, True))
        rows.append(_row(name, quick, rounds) | {"ratio": quick / slow, "ratio_to": PARSED})
        rows.append(_row(f"{name}, {PARSED}", slow, rounds))
    return rows


def _once(gate: RuleGate, call: Call) -> float:
    """Microseconds of one call."""
    began = time.thread_time()
    for _ in range(CALLS):
        gate.admit(call, _go)
    return (time.thread_time() - began) / CALLS * 1e6


def _go(call: Call) -> None:
    raise AssertionError(f"{call.label} was held")


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _all_parsed() -> Iterator[None]:
    before = rule_arguments.single_members
    vars(rule_arguments)["single_members"] = lambda _text: None
    try:
        yield
    finally:
        vars(rule_arguments)["single_members"] = before


def _gate(more: dict[str, Any]) -> RuleGate:
    rule = {"name": "r", "action": "deny", "kind": "tool", "what": "read", **more}
    rules = compile_rules({"rules": [rule]})
    gate = RuleGate(cast("Outlet", SimpleNamespace()), digest=rules.digest)
    if not gate.take(to_body(rules)):
        raise AssertionError("the rules were not taken")
    return gate


def _call(tool: str, arguments: bytes) -> Call:
    client = SimpleNamespace(identity="unix:0", calls_itself="bench", in_flight={})
    return cast(
        "Call",
        SimpleNamespace(
            client=client,
            integration="it",
            method="tools/call",
            label=tool,
            params={"name": Raw(b'"x"'), "arguments": Raw(arguments)},
        ),
    )


def _row(variant: str, value: float, runs: int) -> dict[str, Any]:
    return {
        "benchmark": "rules",
        "variant": variant,
        "metric": "CPU/call",
        "value": value,
        "unit": "us",
        "ratio": None,
        "ratio_to": None,
        "runs": runs,
    }
