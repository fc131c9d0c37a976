"""The `mcpServers` entries of desktop clients, judged: what each becomes, or why it cannot. Pure.

Nothing is guessed: an entry whose meaning is not plain is refused with the reason, and what is
left out of one that is taken is said.
"""

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from vsm.core.addresses import judge, parse_literal
from vsm.core.packages import is_server_name

_SECRET: Final = re.compile(
    r"(?i)(^|_)(key|token|secret|password|passwd|pat|credentials?|auth|apikey)($|_)|api_?key"
)
# What lets in wherever it is told: a header as text or as JSON, a URL with a password.
_SECRET_VALUE: Final = re.compile(
    r"(?i)\bauthorization[\"']?\s*[:=]\s*\S|\b(bearer|basic)\s+\S{8}|://[^/\s:@]*:[^/\s@]+@"
)
_SHELLS: Final = {"sh", "bash", "zsh", "dash", "fish", "cmd", "cmd.exe", "powershell", "pwsh"}
_CONTAINERS: Final = {"docker", "podman", "nerdctl"}
_KNOWN: Final = {"command", "args", "env", "cwd", "disabled", "type", "transport", "url"}
_KNOWN_OF_REMOTE: Final = {
    *("url", "httpUrl", "serverUrl", "type", "transport", "headers", "disabled"),
}
_HTTP: Final = {"", "http", "streamable-http", "streamablehttp"}
_HEADER: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?")
OWN_HEADERS: Final = frozenset(
    {
        *("accept", "accept-encoding", "connection", "content-length", "content-type", "host"),
        *("last-event-id", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id"),
        *("te", "trailer", "transfer-encoding", "upgrade", "user-agent"),
    }
)
"""Made from the request itself, or from `bearer` and `oauth`."""
_SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
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
        secrets: variables to keep out of the configuration; of a remote server headers.
        url: a remote server's, in place of a program.
        addresses: that its host may have although they are not public.
        headers: of a remote server, that are no secrets.
        unseen: host paths that it is told of and does not see.
        remarks: what was left out, or needs a look.
        refused: why it cannot be translated; "" if it can.
    """

    client_name: str
    name: str
    package: Wanted | None = None
    argv: tuple[str, ...] = ()
    env: dict[str, str] = {}  # noqa: RUF012 - a tuple's default, never changed
    secrets: dict[str, str] = {}  # noqa: RUF012 - the same
    url: str = ""
    addresses: tuple[str, ...] = ()
    headers: dict[str, str] = {}  # noqa: RUF012 - the same
    cwd: str = ""
    enabled: bool = True
    unseen: tuple[str, ...] = ()
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
            if name == "vsm":
                raise RefusedError("vsm is what vsm itself is called: it is no server")  # noqa: TRY301 - as above
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


def before_secret(text: str) -> str | None:
    """What of a text comes before that by which its holder gets in somewhere; None without it."""
    found = _SECRET_VALUE.search(text)
    return None if found is None else text[: found.start()]


def _translate(client_name: str, name: str, entry: Any) -> Entry:  # noqa: ANN401 - JSON
    if not isinstance(entry, dict):
        raise RefusedError("it is no object")
    url = entry.get("url", entry.get("httpUrl", entry.get("serverUrl")))
    if url is not None or str(entry.get("type", "stdio")) not in {"stdio", ""}:
        return _remote(client_name, name, entry, url)
    command, args = entry.get("command"), entry.get("args", [])
    if not isinstance(command, str) or not command:
        raise RefusedError("it has no command")
    if not isinstance(args, list) or not all(isinstance(one, str) for one in args):
        raise RefusedError("its args are no list of texts")
    package, argv = _program(command, args)
    if package is not None and (package.kind, package.name) == ("npm", "mcp-remote"):
        return _bridged(client_name, name, entry, argv)
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
    remarks += [
        f"argument {number} holds what looks like a secret and stays an argument"
        for number, word in enumerate(argv, 1)
        if before_secret(word) is not None
    ]
    given = argv if package else argv[2:]  # a program and its script are found without being told
    unseen = _unseen([*given, *env.values()])
    remarks += [
        f"{path[:80]} is not visible to it: add it to read or write in its entry" for path in unseen
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
        unseen=tuple(unseen),
        remarks=tuple(remarks),
    )


def _unseen(words: list[str]) -> list[str]:
    """Paths that a server is told of and does not see."""
    paths = [word.rpartition("=")[2] for word in words]
    return list(dict.fromkeys(path for path in paths if path.startswith(("/", "~/"))))


def _remote(client_name: str, name: str, entry: dict[str, Any], url: Any) -> Entry:  # noqa: ANN401 - JSON
    kind = str(entry.get("type", entry.get("transport", ""))).lower().replace("_", "-")
    if kind == "sse" or (not kind and str(url).partition("?")[0].rstrip("/").endswith("/sse")):
        reason = "it speaks the old SSE transport, which vsm does not: ask for its streamable HTTP"
        raise RefusedError(reason)
    if kind not in _HTTP:
        raise RefusedError(f"its type {kind[:40]!r} is unknown")
    if not isinstance(url, str) or "command" in entry:
        raise RefusedError("it has no url, or a command as well")
    plain, addresses, remarks = remote_url(url)
    headers, secrets, own = _headers(entry.get("headers") or {})
    remarks += [f"{key} is not taken over: vsm makes it for each request" for key in own]
    remarks += [f"{key} is not taken over" for key in entry if key not in _KNOWN_OF_REMOTE]
    if not secrets:
        remarks.append(f"if it wants a login: add oauth = {{}} and run `vsm login {name}`")
    return Entry(
        client_name,
        name,
        secrets=secrets,
        url=plain,
        addresses=addresses,
        headers=headers,
        enabled=not entry.get("disabled", False),
        remarks=tuple(remarks),
    )


def _bridged(client_name: str, name: str, entry: dict[str, Any], argv: list[str]) -> Entry:
    """A program that bridges to a remote server: vsm speaks to that server itself."""
    headers: dict[str, str] = {}
    words = iter(argv)
    url = next(words, None)
    for option in words:
        key, colon, value = next(words, "").partition(":") if option == "--header" else ("", "", "")
        if not colon:
            raise RefusedError(f"mcp-remote {_start(option)} has no counterpart")
        headers[key.strip()] = value.strip()
    inner = {"headers": headers, "disabled": entry.get("disabled", False)}
    found = _remote(client_name, name, inner, url)
    remark = "mcp-remote is not needed: vsm speaks to the server itself"
    return found._replace(remarks=(remark, *found.remarks))


def remote_url(url: str) -> tuple[str, tuple[str, ...], list[str]]:
    """A client's URL for vsm.toml, the addresses to allow for it, and what is to be said of it."""
    if "${" in url:
        raise RefusedError("it has ${…}, which only its client fills in")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RefusedError("its url is none") from None
    host = parts.hostname or ""
    plain = all("!" <= char <= "~" for char in url)
    if parts.scheme not in {"http", "https"} or not host or not plain:
        raise RefusedError("its url is none of http or https")
    if parts.username or parts.password:
        raise RefusedError("its url holds a name and password: put them into a header's file")
    remarks = []
    if host == "localhost":
        host = "127.0.0.1"
        netloc = host if port is None else f"{host}:{port}"
        parts = parts._replace(netloc=netloc)
        remarks.append("localhost is written as 127.0.0.1")
    literal = parse_literal(host)
    own = bool(literal) and judge(literal) != ""
    if parts.scheme == "http" and not (own and judge(literal) == "loopback"):
        raise RefusedError("its url is http: everybody on the way could read what is said")
    if own:
        remarks.append(f"{literal} is {judge(literal)}: it is allowed for this server")
    if parts.scheme == "http":
        remarks.append("it is spoken to in clear")
    secret = [key for key, _ in parse_qsl(parts.query) if is_secret(key.replace("-", "_"))]
    remarks += [f"{key[:40]} looks like a secret and stays in the url" for key in secret]
    return urlunsplit(parts), (literal,) if own else (), remarks


def is_header_value(text: str) -> bool:
    """Whether every server reads the same in it, and it ends no header."""
    return all(" " <= char <= "~" for char in text)


def _headers(table: Any) -> tuple[dict[str, str], dict[str, str], list[str]]:  # noqa: ANN401 - JSON
    """Plain headers, those that hold a secret, and the names of those that are vsm's own."""
    if not isinstance(table, dict) or not all(isinstance(one, str) for one in table.values()):
        raise RefusedError("its headers are no table of texts")
    if any("${" in value for value in table.values()):
        raise RefusedError("it has ${…}, which only its client fills in")
    if not all(_HEADER.fullmatch(key) for key in table):
        raise RefusedError("its headers have a name that is none for a header")
    odd = [key for key, value in table.items() if not is_header_value(value)]
    if odd:
        raise RefusedError(f"its header {odd[0]} is not one line of printable ASCII")
    own = [key for key in table if key.lower() in OWN_HEADERS]
    taken = {key: value.strip() for key, value in table.items() if key not in own}
    return *_parted(taken, is_secret_header), own


def _parted(
    table: dict[str, str], is_secret_name: Callable[[str], bool]
) -> tuple[dict[str, str], dict[str, str]]:
    """What is told openly, and what is kept, for its name or for what it says."""
    secrets = {k: v for k, v in table.items() if is_secret_name(k) or before_secret(v) is not None}
    return {key: value for key, value in table.items() if key not in secrets}, secrets


def is_secret_header(name: str) -> bool:
    """Whether a header of that name probably holds a secret."""
    return name.lower() in _SECRET_HEADERS or is_secret(name.replace("-", "_"))


def _variables(table: Any, words: list[str]) -> tuple[dict[str, str], dict[str, str]]:  # noqa: ANN401 - JSON
    if not isinstance(table, dict) or not all(isinstance(one, str) for one in table.values()):
        raise RefusedError("its env is no table of texts")
    if not all(_VARIABLE.fullmatch(key) for key in table):
        raise RefusedError("its env has a name that is none for a variable")
    if any(re.search(r"\$\{", text) for text in (*table.values(), *words)):
        raise RefusedError("it has ${…}, which only its client fills in")
    return _parted(table, is_secret)


def _program(command: str, args: list[str]) -> tuple[Wanted | None, list[str]]:
    program = re.split(r"[/\\]", command)[-1].removesuffix(".exe").removesuffix(".cmd")
    if program in _CONTAINERS:
        what = "it runs a container image; vsm confines programs, not images"
        raise RefusedError(f"{what}: take the same server from npm, PyPI or a URL")
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
            raise RefusedError(f"npx {_start(option)} has no counterpart")
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
            raise RefusedError(f"uvx {_start(option)} has no counterpart")
    if not rest:
        raise RefusedError("uvx is given no package")
    first = rest.pop(0)
    spec, command = (source, first) if source else (first, "")
    name, separator, version = spec.partition("==")
    if not separator:
        name, _, version = spec.partition("@")
    return _wanted("pypi", _PYPI, name, version, command), rest


def _start(word: str) -> str:
    """Enough of a word to find it by, before what may be a password: an option's value, a URL's."""
    return word.partition("=")[0].partition("://")[0][:80]


def _wanted(kind: str, names: "re.Pattern[str]", name: str, version: str, command: str) -> Wanted:
    if not names.fullmatch(name):
        raise RefusedError(f"{_start(name)!r} is no package of a registry")
    if version in {"latest", "*"}:
        version = ""
    if version and not _EXACT.fullmatch(version):
        raise RefusedError(f"{_start(version)!r} is a range of versions; choose one")
    return Wanted(kind, name, version, command)
