"""`vsm up`: run vsm in the foreground; a service manager runs this as well.

Reads the configuration, hands it to the supervisor, and prints once everything is ready where the
endpoint is and how a client connects.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vsm.configuration.config import Config, check_address, load_config
from vsm.errors import ConfigurationError
from vsm.paths import ENDPOINT, MCP_SOCKET, TOKEN, runtime_dir

MOST_OPEN_FILES = 65_536

if TYPE_CHECKING:
    from vsm.processes.template_start import TemplateStart


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `up`."""
    parser = subparsers.add_parser(
        "up",
        help="run vsm in the foreground",
        description="Run vsm until SIGTERM or Ctrl-C. Without a configuration it serves an "
        "endpoint with no integrations.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="vsm.toml ($VSM_CONFIG)")
    parser.add_argument("--http", metavar="ADDRESS", help='another address; "" turns HTTP off')
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="leave this integration out; may be given several times",
    )
    parser.add_argument("--log", choices=("auto", "console", "json"), default="auto")


def run(args: argparse.Namespace) -> int:
    """Run the supervisor; returns when it has shut down."""
    from vsm.linux import rlimits
    from vsm.processes import template_start
    from vsm.systems.preload import ENTRY, PRELOAD

    # Secrets pass through the supervisor and its launcher: neither they nor what they start leave
    # a core. Not 0, which is no limit where the kernel pipes cores to a program.
    rlimits.lower("core", 1)
    # Five for each server; what most sessions begin with, 1024, is enough for some two hundred.
    rlimits.widen("open_files", MOST_OPEN_FILES)
    with template_start.ahead(ENTRY, PRELOAD) as template:  # it imports while we do
        return _supervise(args, template)


def _supervise(args: argparse.Namespace, template: "TemplateStart") -> int:
    config = _config(args)
    from vsm.logs import say
    from vsm.supervision.supervisor import run_supervisor

    say(f"vsm: starting {_counted(config)}")
    for one in config.integrations.values():
        if one.remote is not None and one.remote.in_clear:
            say(f"vsm: WARNING: {one.name} is spoken to in clear: {one.remote.origin}")
    return run_supervisor(
        config,
        on_ready=lambda: _announce(config),
        load=lambda: _config(args),
        log=args.log,
        template=template,
    )


def _config(args: argparse.Namespace) -> Config:
    import msgspec

    chosen = args.config or os.environ.get("VSM_CONFIG")
    config = load_config(Path(chosen) if chosen else None)
    unknown = sorted(set(args.without) - set(config.integrations))
    if unknown:
        where = config.path or "vsm up"
        known = ", ".join(config.integrations) or "none"
        what = f"no integration {unknown[0]!r} to leave out"
        raise ConfigurationError(where, what, f"It has: {known}.")
    kept = {name: i for name, i in config.integrations.items() if name not in args.without}
    gateway = config.gateway
    if args.http is not None:
        check_address(args.http, "--http")
        gateway = msgspec.structs.replace(gateway, http=args.http)
    return msgspec.structs.replace(config, integrations=kept, gateway=gateway)


def _counted(config: Config) -> str:
    count = sum(item.enabled for item in config.integrations.values())
    return (
        f"{count} integration{'' if count == 1 else 's'} from {config.path or 'no configuration'}"
    )


def _announce(config: Config) -> None:
    """Say how to connect; on stderr, like the log that it stands in. A journal wants no prose."""
    from vsm.logs import is_journal, say

    if is_journal():
        return
    folder = runtime_dir()
    endpoint = json.loads((folder / ENDPOINT).read_text(encoding="utf-8"))
    lines = ["vsm: ready", "", "  a desktop client   add this to its mcpServers:"]
    entry = {"vsm": {"command": _own_command(), "args": ["connect"], "env": _environment()}}
    lines += [f"    {line}" for line in json.dumps(entry, indent=2).splitlines()]
    if endpoint.get("http"):
        lines.append(f"  HTTP               {endpoint['http']}")
        if config.gateway.auth == "token":
            lines.append(f"                     Authorization: Bearer $(cat {folder / TOKEN})")
    vsm = _typed_command()
    lines += [
        f"  unix socket        {folder / MCP_SOCKET}",
        f"  from a shell       {vsm} status",
        f"                     {vsm} tools",
        f"                     {vsm} call INTEGRATION TOOL '{{...}}'",
        "",
    ]
    say("\n".join(lines))


def _typed_command() -> str:
    """What runs this same vsm from a shell like the one that runs it."""
    command, found = Path(_own_command()), shutil.which("vsm")
    if found is not None and command.exists() and command.samefile(found):
        return "vsm"
    return shlex.quote(str(command))


def _own_command() -> str:
    """The absolute path of `vsm`: a desktop client has another PATH."""
    typed = Path(sys.argv[0])
    if typed.name == "vsm" and typed.is_file():
        return str(typed.absolute())
    return shutil.which("vsm") or "vsm"


def _environment() -> dict[str, str]:
    """What a client started elsewhere needs to find this vsm."""
    return {"VSM_RUNTIME_DIR": str(runtime_dir())}
