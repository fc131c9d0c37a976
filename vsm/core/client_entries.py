"""The `mcpServers` entries of desktop clients, judged: what each becomes, or why it cannot. Pure.

Nothing is guessed: an entry whose meaning is not plain is refused with the reason, and what is
left out of one that is taken is said.
"""

import re
from typing import Any, Final, NamedTuple

from vsm.core.packages import is_server_name

_SECRET: Final = re.compile(
    r"(?i)(^|_)(key|token|secret|password|passwd|pat|credentials?|auth|apikey)($|_)|api_?key"
)
_SHELLS: Final = {"sh", "bash", "zsh", "dash", "fish", "cmd", "cmd.exe", "powershell", "pwsh"}
_CONTAINERS: Final = {"docker", "podman", "nerdctl"}
_KNOWN: Final = {"command", "args", "env", "cwd", "disabled", "type", "transport", "url"}
_NPM: Final = re.compile(r"(@[a-z0-9~-][a-z0-9._~-]*/)?[a-z0-9~-][a-z0-9._~-]*")
_PYPI: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_EXACT: Final = re.compile(r"[0-9][0-9A-Za-z.+!_-]*")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Wanted(NamedTuple):
    """A package that an entry runs.

    Args:
        version: exact, or "" where the entry takes whatever is newest.
        command: which of its commands; "" is the package's own.
    """

    kind: str
    name: str
    version: str
    command: str


class Entry(NamedTuple):
    """One entry, translated.

    Args:
        client_name: as the client's file has it.
        name: of the integration.
        package: what to install, or None where the program is there already.
        argv: the program with its arguments; with a package only the arguments.
        env: variables that are no secrets.
        secrets: variables to keep out of the configuration.
        remarks: what was left out, or needs a look.
        refused: why it cannot be translated; "" if it can.
    """

    client_name: str
    name: str
    package: Wanted | None = None
    argv: tuple[str, ...] = ()
    env: dict[str, str] = {}  # noqa: RUF012 - a tuple's default, never changed
    secrets: dict[str, str] = {}  # noqa: RUF012 - the same
    cwd: str = ""
    enabled: bool = True
    remarks: tuple[str, ...] = ()
    refused: str = ""


class RefusedError(Exception):
    """An entry that cannot be translated; says why."""


def parse_entries(document: Any) -> list[Entry]:  # noqa: ANN401 - JSON
    """Every entry of a client's file.

    Raises:
        ValueError: the file is no such file.
    """
    table = document.get("mcpServers", document.get("servers")) if isinstance(document, dict) else 0
    if not isinstance(table, dict):
        raise ValueError("expected an object with mcpServers")  # noqa: TRY004 - what was read
    entries: list[Entry] = []
    for client_name, entry in table.items():
        name = integration_name(client_name)
        try:
            if not is_server_name(name) or name in {one.name for one in entries}:
                raise RefusedError("its name is no name for an integration, or is there twice")  # noqa: TRY301 - recorded below
            entries.append(_translate(client_name, name, entry))
        except RefusedError as error:
            entries.append(Entry(client_name, name, refused=str(error)))
    return entries


def integration_name(client_name: str) -> str:
    """The nearest name that an integration may have."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", client_name.lower()).strip("-_")
    return re.sub(r"__+", "_", plain)[:32].rstrip("-_")


def is_secret(variable: str) -> bool:
    """Whether a variable of that name probably holds one."""
    return _SECRET.search(variable) is not None


def _translate(client_name: str, name: str, entry: Any) -> Entry:  # noqa: ANN401 - JSON
    if not isinstance(entry, dict):
        raise RefusedError("it is no object")
    if "url" in entry or str(entry.get("type", "stdio")) not in {"stdio", ""}:
        raise RefusedError("it is a remote server; vsm runs local programs only, so far")
    command, args = entry.get("command"), entry.get("args", [])
    if not isinstance(command, str) or not command:
        raise RefusedError("it has no command")
    if not isinstance(args, list) or not all(isinstance(one, str) for one in args):
        raise RefusedError("its args are no list of texts")
    package, argv = _program(command, args)
    env, secrets = _variables(entry.get("env") or {}, [command, *args])
    cwd = entry.get("cwd", "")
    if not isinstance(cwd, str):
        raise RefusedError("its cwd is no text")
    remarks = [f"{key} is not taken over" for key in entry if key not in _KNOWN]
    options = [word.partition("=")[0] for word in argv if word.startswith("--")]
    remarks += [
        f"{option[:40]} looks like a secret and stays an argument: prefer a variable"
        for option in options
        if is_secret(option.strip("-").replace("-", "_"))
    ]
    return Entry(
        client_name,
        name,
        package=package,
        argv=tuple(argv),
        env=env,
        secrets=secrets,
        cwd=cwd,
        enabled=not entry.get("disabled", False),
        remarks=tuple(remarks),
    )


def _variables(table: Any, words: list[str]) -> tuple[dict[str, str], dict[str, str]]:  # noqa: ANN401 - JSON
    if not isinstance(table, dict) or not all(isinstance(one, str) for one in table.values()):
        raise RefusedError("its env is no table of texts")
    if not all(_VARIABLE.fullmatch(key) for key in table):
        raise RefusedError("its env has a name that is none for a variable")
    if any(re.search(r"\$\{", text) for text in (*table.values(), *words)):
        raise RefusedError("it has ${…}, which only its client fills in")
    secrets = {key: value for key, value in table.items() if is_secret(key)}
    return {key: value for key, value in table.items() if key not in secrets}, secrets


def _program(command: str, args: list[str]) -> tuple[Wanted | None, list[str]]:
    program = re.split(r"[/\\]", command)[-1].removesuffix(".exe").removesuffix(".cmd")
    if program in _CONTAINERS:
        raise RefusedError("it runs a container image; vsm confines programs, not images")
    if program in _SHELLS:
        raise RefusedError("it is a shell line; write the program and its arguments")
    if program == "npx":
        return _npx(args)
    if program in {"uvx", "pipx"} or (program == "uv" and args[:2] == ["tool", "run"]):
        rest = args[2:] if program == "uv" else args[1:] if program == "pipx" else args
        if program == "pipx" and args[:1] != ["run"]:
            raise RefusedError("pipx does something else than run")
        return _uvx(rest)
    if program in {"uv", "pnpm", "yarn", "bunx", "pnpx", "deno"}:
        raise RefusedError(f"{program} fetches or builds when it starts; install the server first")
    return None, [command, *args]


def _npx(args: list[str]) -> tuple[Wanted, list[str]]:
    package = ""
    rest = list(args)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in {"-p", "--package"} and rest and not package:
            package = rest.pop(0)
        elif option.startswith("--package=") and not package:
            package = option.partition("=")[2]
        elif option not in {"-y", "--yes", "-q", "--quiet", "--"}:
            raise RefusedError(f"npx {option[:40]} has no counterpart")
    if not rest:
        raise RefusedError("npx is given no package")
    first = rest.pop(0)
    spec, command = (package, first) if package else (first, "")
    at = spec.find("@", 1)
    name, version = (spec[:at], spec[at + 1 :]) if at > 0 else (spec, "")
    return _wanted("npm", _NPM, name, version, command), rest


def _uvx(args: list[str]) -> tuple[Wanted, list[str]]:
    source = ""
    rest = list(args)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in {"--from", "--spec"} and rest and not source:
            source = rest.pop(0)
        elif option.startswith(("--from=", "--spec=")) and not source:
            source = option.partition("=")[2]
        elif option not in {"-q", "--quiet", "--isolated"}:
            raise RefusedError(f"uvx {option[:40]} has no counterpart")
    if not rest:
        raise RefusedError("uvx is given no package")
    first = rest.pop(0)
    spec, command = (source, first) if source else (first, "")
    name, separator, version = spec.partition("==")
    if not separator:
        name, _, version = spec.partition("@")
    return _wanted("pypi", _PYPI, name, version, command), rest


def _wanted(kind: str, names: "re.Pattern[str]", name: str, version: str, command: str) -> Wanted:
    if not names.fullmatch(name):
        raise RefusedError(f"{name[:80]!r} is no package of a registry")
    if version in {"latest", "*"}:
        version = ""
    if version and not _EXACT.fullmatch(version):
        raise RefusedError(f"{version[:40]!r} is a range of versions; choose one")
    return Wanted(kind, name, version, command)
