"""`vsm login NAME`: log in to a remote server by OAuth, in a browser of one's own.

Needs no running vsm; one that runs starts the integration anew with the tokens.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from vsm.commands.control_client import MOVE_TIMEOUT_S, NotRunningError, request
from vsm.commands.terminal import clean
from vsm.configuration.config import load_config
from vsm.errors import ConfigurationError, NotFoundError, VsmError

_NEEDS_START = frozenset({"quarantined", "stopped"})


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `login`."""
    parser = subparsers.add_parser(
        "login",
        help="log in to a remote server by OAuth",
        description="Print the address at which you agree, wait for the answer on a loopback port, "
        "and keep the tokens in the state directory (mode 0600).",
    )
    parser.add_argument("name", metavar="NAME", help="an integration with a url and oauth")
    parser.add_argument("--client", default="", help="log in for this client alone")
    parser.add_argument(
        "--scope", default="", help="also ask for this, and for what the login had: words in quotes"
    )
    parser.add_argument("--forget", action="store_true", help="remove the tokens instead")
    parser.add_argument("--config", type=Path, metavar="FILE", help="vsm.toml ($VSM_CONFIG)")


def run(args: argparse.Namespace) -> int:
    """Log in; have a running vsm use it."""
    path = args.config or os.environ.get("VSM_CONFIG")
    if not path:
        remedy = "Give --config FILE or set VSM_CONFIG."
        raise ConfigurationError("vsm login", "no configuration is named", remedy)
    config = load_config(Path(path))
    integration = config.integrations.get(args.name)
    if integration is None:
        where = f"{path}: integrations.{args.name[:64]}"
        raise NotFoundError(where, "there is no such integration", "See `vsm status`.")
    from vsm.supervision import oauth_store

    if args.forget:
        known = oauth_store.forget(integration, args.client)
        print(f"{args.name}: {'logged out' if known else 'there was no login'}")
        if known:
            _start_anew(args.name, forgotten=True)
        return 0
    # Only here: the SDK takes a second to import.
    from vsm.install.login import log_in

    scope = args.scope and f"{oauth_store.scope(args.name, args.client)} {args.scope}".strip()
    tokens = log_in(integration, args.client, _show, scope)
    oauth_store.store(args.name, args.client, tokens)
    print(f"{args.name}: logged in; tokens are renewed at {clean(tokens.token_endpoint)}")
    _start_anew(args.name)
    return 0


def _show(address: str) -> None:
    print(f"Open this address in a browser and agree:\n\n  {clean(address)}\n", file=sys.stderr)
    print("Waiting for the answer ...", file=sys.stderr, flush=True)


def _start_anew(name: str, *, forgotten: bool = False) -> None:
    """Have a running vsm take the tokens, or with `forgotten` go on without them."""
    try:
        rows = request("status")["workers"]
        state = next((row["state"] for row in rows if row["name"] == name), "")
        if state and not (forgotten and state in _NEEDS_START):
            command = "start" if state in _NEEDS_START else "restart"
            print(f"{name}: {command} ...", file=sys.stderr, flush=True)
            _tell(name, request(command, timeout_s=MOVE_TIMEOUT_S, name=name))
    except NotRunningError:
        if not forgotten:
            print("vsm does not run; the tokens are used when it does")
    except VsmError as error:
        print(f"{name}: could not be started anew: {clean(str(error))}", file=sys.stderr)


def _tell(name: str, answer: dict[str, Any]) -> None:
    """How it stands with the login; where it does not serve, why and what to do."""
    state, detail = answer["state"], clean(answer["detail"])
    if state == "ready":
        print(f"{name}: ready")
        return
    print(f"{name}: does not serve: {state}{f': {detail}' if detail else ''}", file=sys.stderr)
    if state == "backing_off":
        text = f"It is tried again, ever more slowly. Repair that; `vsm start {name}` tries at once"
        print(f"{text}, `vsm logs {name}` shows what it printed.", file=sys.stderr)
