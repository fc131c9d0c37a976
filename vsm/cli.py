"""`vsm COMMAND`: finds the command's module, and turns errors into text and an exit code.

Owns the table of commands and the one boundary at which a VsmError becomes a line on stderr. Only
the module of the command that was typed is imported: `vsm status` has to answer at once.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, Protocol, cast

from vsm import __version__
from vsm.errors import ConfigurationError, VsmError, from_os_error

# command -> (module, summary). A module may serve several commands.
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("vsm.commands.up", "run vsm in the foreground"),
    "connect": ("vsm.connect", "bridge stdio to the running vsm; what a desktop client launches"),
    "status": ("vsm.commands.status", "show every worker and the layers in force"),
    "tools": ("vsm.commands.tools", "list the tools of all integrations"),
    "call": ("vsm.commands.call", "call one tool"),
    "start": ("vsm.commands.worker", "start an integration"),
    "stop": ("vsm.commands.worker", "stop an integration, or all of vsm"),
    "restart": ("vsm.commands.worker", "restart an integration"),
    "drain": ("vsm.commands.worker", "finish the calls in flight, then stop an integration"),
    "logs": ("vsm.commands.logs", "show what an integration wrote to stderr"),
    "panic": ("vsm.commands.panic", "stop every integration now and refuse calls"),
    "resume": ("vsm.commands.panic", "end a panic"),
    "variety": ("vsm.commands.variety", "show what is asked against what is answered, in bits"),
    "board": ("vsm.commands.board", "show what is in the shared memory"),
    "events": ("vsm.commands.events", "show what happened, from the journal"),
    "decisions": ("vsm.commands.events", "show what vsm decided, and by which rule"),
    "rules": ("vsm.commands.rules", "show the rules, or which would decide about a call"),
    "approvals": ("vsm.commands.approvals", "show the calls that wait for a person"),
    "approve": ("vsm.commands.approvals", "let a call that waits pass"),
    "deny": ("vsm.commands.approvals", "refuse a call that waits"),
    "dead-letters": (
        "vsm.commands.dead_letters",
        "show calls that were not answered, or call again",
    ),
    "calls": ("vsm.commands.calls", "show who called what, and how it ended"),
    "reflect": ("vsm.commands.reflect", "show what works, what is unusual, what was learned"),
    "doctor": ("vsm.commands.doctor", "check this host and this installation"),
    "docs": ("vsm.commands.docs", "read the documentation of this vsm"),
    "profile": ("vsm.commands.profile", "list, show, check or explain sandbox profiles"),
    "reload": ("vsm.commands.reload", "apply an edited vsm.toml to the running vsm"),
    "limit": ("vsm.commands.limit", "move the limits of a running integration"),
    "audit": ("vsm.commands.audit_worker", "compare a running integration with its plan"),
    "trust": ("vsm.commands.trust", "compare what servers offer with what was approved"),
    "log-level": ("vsm.commands.reload", "say more or less in the log, from now on"),
    "service": ("vsm.commands.service", "run vsm under systemd"),
    "import": ("vsm.commands.import_", "take over the mcpServers of a desktop client"),
    "login": ("vsm.commands.login", "log in to a remote server by OAuth"),
    "install": ("vsm.commands.install", "install a server from npm or PyPI, confined and pinned"),
    "uninstall": ("vsm.commands.install", "remove an installed server"),
    "outdated": ("vsm.commands.install", "compare installed servers with their registries"),
    "sandbox": ("vsm.commands.sandbox", "confine any command, or probe what this host gives"),
}
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class Command(Protocol):
    """What a command's module offers."""

    def add_parser(self, subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        """Add the parsers of the module's commands."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; `args.command` is the command as typed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code (docs/cli.md lists them)."""
    words = list(sys.argv[1:] if argv is None else argv)
    _fill_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What the locale has no character for, as the bytes of a file's name may be, is escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _told(words) if words else _usage()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone; keep the interpreter from failing again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_BROKEN_PIPE


def _fill_standard_streams() -> None:
    """Put /dev/null where a caller closed 0, 1 or 2.

    Else what is opened next gets that number, and is read, written and handed on as the stream.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            os.set_inheritable(number, True)  # noqa: FBT003 - positional only
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _told(words: list[str]) -> int:
    """Run it; an error becomes a line for people and, where --json was typed, a document."""
    as_json = "--json" in words
    try:
        if words[0] in _ABOUT:
            print(_ABOUT[words[0]]())
            return 0
        command, args = _parse(words)
        as_json = getattr(args, "json", False)
        code = command.run(args)
        sys.stdout.flush()
    except VsmError as error:
        return _fail(error, as_json=as_json)
    except OSError as error:
        told = from_os_error(error, words[0])
        if told is None:
            raise
        return _fail(told, as_json=as_json)
    return code


def _fail(error: VsmError, *, as_json: bool) -> int:
    print(f"vsm: {_one_line(str(error))}", file=sys.stderr, flush=True)
    if as_json:
        import json

        told = {name: getattr(error, name) for name in ("where", "what", "remedy", "exit_code")}
        with suppress(OSError):  # stderr has it, and this may be what failed
            print(json.dumps({"error": told}), flush=True)
    return error.exit_code


def _usage() -> int:
    print(_overview(), file=sys.stderr)
    return EXIT_USAGE


def _parse(words: list[str]) -> tuple[Command, argparse.Namespace]:
    name = words[0]
    if name not in COMMANDS:
        raise _unknown(name)
    command = cast("Command", importlib.import_module(COMMANDS[name][0]))
    try:
        return command, _parser_of(command).parse_args(words)
    except _UsageError as error:
        where = f"vsm {name}" if error.parser == "vsm" else error.parser
        raise ConfigurationError(where, error.what, f"`{where} --help` says more.") from None


class _UsageError(Exception):
    """What was typed is not what the parser of that name takes."""

    def __init__(self, parser: str, what: str) -> None:
        super().__init__(what)
        self.parser = parser
        self.what = what


class _Parser(argparse.ArgumentParser):
    """One whose errors are vsm's."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise _UsageError(self.prog, message)

    def print_help(self, file: Any = None) -> None:  # noqa: ANN401 - as argparse has it
        """Print it, or raise OSError, which newer versions of argparse keep to themselves."""
        print(self.format_help(), end="", file=file, flush=True)


def _parser_of(command: Command) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(prog="vsm", allow_abbrev=False)
    command.add_parser(parser.add_subparsers(dest="command", required=True, metavar="COMMAND"))
    return parser


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vsm COMMAND ...",
            "",
            "Run untrusted MCP servers, each confined by the kernel, behind one endpoint.",
            "",
            *lines,
            "",
            "`vsm COMMAND --help` says more, `vsm docs` all. Exit codes:",
            "0 done, 1 failed, 2 wrong usage or configuration, 3 a required layer cannot be",
            "applied, 4 no vsm runs, 5 no such thing.",
        ]
    )


_ABOUT: dict[str, Callable[[], str]] = {
    **dict.fromkeys(("-h", "--help", "help"), _overview),
    **dict.fromkeys(("-V", "--version"), lambda: f"vsm {__version__}"),
}


def _unknown(name: str) -> ConfigurationError:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"Did you mean `vsm {near[0]}`?" if near else "`vsm --help` lists them."
    return ConfigurationError("", f"no command {name!r}", hint)


def _one_line(text: str) -> str:
    """Errors may quote foreign text: nothing in it may move a terminal's cursor."""
    return "".join(char if char.isprintable() else " " for char in text)
