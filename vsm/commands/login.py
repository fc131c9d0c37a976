"""`vsm login NAME`: log in to a remote server by OAuth, in a browser of one's own.

Needs no running vsm; one that runs starts the integration anew with the tokens.
"""

import argparse
import os
import sys
from pathlib import Path

from vsm.commands.control_client import NotRunningError, request
from vsm.commands.terminal import clean
from vsm.configuration.config import load_config
from vsm.errors import ConfigurationError, VsmError

RESTART_TIMEOUT_S = 180.0
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
        raise ConfigurationError(where, "there is no such integration", "See `vsm status`.")
    from vsm.supervision import oauth_store

    if args.forget:
        known = oauth_store.forget(integration, args.client)
        print(f"{args.name}: {'logged out' if known else 'there was no login'}")
        _start_anew(args.name)
        return 0
    # Only here: the SDK takes a second to import.
    from vsm.install.login import log_in

    tokens = log_in(integration, args.client, _show)
    oauth_store.store(args.name, args.client, tokens)
    print(f"{args.name}: logged in; tokens are renewed at {clean(tokens.token_endpoint)}")
    _start_anew(args.name)
    return 0


def _show(address: str) -> None:
    print(f"Open this address in a browser and agree:\n\n  {clean(address)}\n", file=sys.stderr)
    print("Waiting for the answer ...", file=sys.stderr, flush=True)


def _start_anew(name: str) -> None:
    try:
        rows = request("status")["workers"]
        state = next((row["state"] for row in rows if row["name"] == name), "")
        if state:
            command = "start" if state in _NEEDS_START else "restart"
            answer = request(command, timeout_s=RESTART_TIMEOUT_S, name=name)
            print(f"{name}: {clean(str(answer.get('state', 'done')))}")
    except NotRunningError:
        print("vsm does not run; the tokens are used when it does")
    except VsmError as error:
        print(f"{name}: could not be started anew: {clean(str(error))}", file=sys.stderr)
