"""`vsm rules`: the rules of a configuration, or which of them would decide about a call.

Reads the file alone and asks nobody: the same pure functions as in the gateway, at this time of
day, with every budget unspent.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from msgspec import Raw

from vsm.commands.terminal import clean, print_json, print_table
from vsm.configuration.config import load_config
from vsm.configuration.policy import DAYS, compile_policy
from vsm.core.policy_rules import (
    Asked,
    Budgets,
    Circumstances,
    Rule,
    Rules,
    candidates,
    compile_rules,
    decide,
)
from vsm.errors import ConfigurationError
from vsm.gateway.rule_arguments import Arguments

_AS = 'Write an object in single quotes, such as \'{"path": "hello.txt"}\'.'
KINDS = ("tool", "prompt", "resource")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `rules`."""
    parser = subparsers.add_parser(
        "rules",
        help="show the rules of a vsm.toml, or which would decide about a call",
        description="Without INTEGRATION and NAME the rules in order; with them the one that "
        "would decide about such a call now, with every budget unspent.",
    )
    parser.add_argument("integration", nargs="?", metavar="INTEGRATION")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of a tool, or with --kind")
    parser.add_argument("arguments", nargs="?", metavar="JSON", default="{}")
    parser.add_argument("--kind", choices=KINDS, default="tool", help="what NAME is (tool)")
    parser.add_argument("--client", default=f"unix:{os.geteuid()}", help="who asks (unix:UID)")
    parser.add_argument("--client-name", default="", help="what it calls itself")
    parser.add_argument("--config", type=Path, help="vsm.toml; else $VSM_CONFIG")
    parser.add_argument("--json", action="store_true", help="print a document")


def run(args: argparse.Namespace) -> int:
    """Show the rules, or decide; 0 whatever the decision."""
    rules = _rules(args.config)
    if args.integration is None:
        rows = [_row(rule) for rule in rules.rules]
        if args.json:
            print_json({"rules": rows, "default": rules.default})
        else:
            _print(rows, rules)
        return 0
    if args.name is None:
        raise ConfigurationError("vsm rules", "NAME is missing", "Name a tool as well.")
    found = _decide(rules, args)
    if args.json:
        print_json(found)
    else:
        by = f"rule {found['rule']!r}" if found["rule"] else "the default"
        reason = f": {found['reason']}" if found["rule"] and found["reason"] else ""
        print(clean(f"{found['action']}, by {by}{reason}"))
    return 0


def _rules(given: Path | None) -> Rules:
    path = given or (Path(os.environ["VSM_CONFIG"]) if os.environ.get("VSM_CONFIG") else None)
    if path is None:
        remedy = "Give --config FILE or set VSM_CONFIG."
        raise ConfigurationError("vsm rules", "no configuration is named", remedy)
    return compile_rules(compile_policy(load_config(path).policy, f"{path}: policy"))


def _decide(rules: Rules, args: argparse.Namespace) -> dict[str, Any]:
    try:
        if not isinstance(json.loads(args.arguments), dict):
            raise ConfigurationError("vsm rules", "the arguments are no JSON object", _AS)
        arguments = Arguments({"arguments": Raw(args.arguments.encode())})
    except (ValueError, RecursionError) as error:
        raise ConfigurationError("vsm rules", f"the arguments are no JSON: {error}", _AS) from error
    clock = time.localtime()
    minute = clock.tm_hour * 60 + clock.tm_min
    call = Circumstances(arguments, minute, clock.tm_wday)
    asked = Asked(args.client, args.client_name, args.integration, args.kind, args.name)
    looked_at = candidates(rules, asked)
    decision = decide(looked_at, rules.default, call, Budgets(), 0.0)
    return {
        "action": decision.action,
        "rule": decision.rule.name if decision.rule else None,
        "reason": decision.reason,
        "looked_at": [rule.name for rule in looked_at],
    }


def _row(rule: Rule) -> dict[str, Any]:
    conditions = {
        "client": rule.client,
        "client_name": rule.calls_itself,
        "integration": rule.integration,
        rule.kind or "": rule.what,
    }
    named = {key: value for key, value in conditions.items() if key and value != "*"}
    if rule.kind:
        named[rule.kind] = rule.what
    named |= {f"argument {path}": pattern for path, pattern in rule.argument}
    if rule.larger_than is not None:
        named["larger_than"] = str(rule.larger_than)
    if rule.between is not None:
        begin, end = rule.between
        named["hours"] = f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    if rule.days:
        named["days"] = ",".join(DAYS[day] for day in rule.days)
    if rule.calls is not None:
        named["budget"] = f"{rule.calls} in {rule.period_s:g} s"
    return {"name": rule.name, "action": rule.action, "when": named, "reason": rule.reason}


def _print(rows: list[dict[str, Any]], rules: Rules) -> None:
    if rows:
        shown = [
            (
                clean(row["name"]), row["action"],
                clean(" ".join(f"{key}={value}" for key, value in row["when"].items()) or "always"),
                clean(row["reason"]),
            )
            for row in rows
        ]  # fmt: skip
        print_table(("RULE", "ACTION", "WHEN", "REASON"), shown)
    print(f"{'otherwise' if rows else 'every call'}: {rules.default}")
