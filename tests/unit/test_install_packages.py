"""Names, locks and what registries print: parsed strictly, whatever they say."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.core.packages import (
    Location,
    Package,
    Sources,
    choose_command,
    is_server_name,
    parse_bins,
    parse_console_scripts,
    parse_fetch_trouble,
    parse_latest,
    parse_location,
    parse_npm_lock,
    parse_package,
    parse_pip_settings,
    parse_wheel_name,
    server_name,
    without_password,
)
from vsm.errors import VsmError
from vsm.install import registry
from vsm.install.node import NodeInstaller
from vsm.install.python import last_words
from vsm.install.registry import _allow, _npm_credentials
from vsm.install.sandbox import Done

REGISTRY = Sources(("r", 443), {"@own": ("own", 443)}, lambda *place: place == ("more", 443))
HASH = "sha512-" + "A" * 86 + "=="


@pytest.mark.parametrize(
    ("text", "package", "server"),
    [
        ("pypi:mcp-time==2026.8.31", ("pypi", "mcp-time", "2026.8.31"), "mcp-time"),
        ("pypi:A.b_C==1.0+cpu", ("pypi", "A.b_C", "1.0+cpu"), "a-b_c"),
        ("npm:left-pad@1.3.0", ("npm", "left-pad", "1.3.0"), "left-pad"),
        ("npm:@scope/name@1.0.0-rc.1", ("npm", "@scope/name", "1.0.0-rc.1"), "name"),
    ],
)  # fmt: skip
def test_an_exact_version_is_a_package(text: str, package: tuple[str, ...], server: str) -> None:
    assert parse_package(text) == package
    assert str(Package(*package)) == text
    assert server_name(Package(*package)) == server
    assert is_server_name(server)


@pytest.mark.parametrize("kind", ["pypi", "npm"])
def test_a_package_may_be_named_without_a_version(kind: str) -> None:
    assert parse_package(f"{kind}:left-pad") == (kind, "left-pad", "")


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "pypi:", "pypi:a>=1", "pypi:a==1.*", "pypi:a==", "pypi:-r==1", "pypi:-r"),
        *("npm:", "npm:a@", "npm:-g", "npm:-g@1.0.0", "npm:../a", "npm:@a/b/c", "npm:a b"),
        *("npm:a@latest", "npm:a@^1.0.0", "npm:a@1", "npm:../a@1.0.0", "npm:@a/b/c@1.0.0"),
        *("npm:a@1.0.0 --flag", "pypi:a==1\n--flag", "pypi:a==1;b", "docker:a@1.0.0"),
        *("pypi:a @ file:///x==1", "npm:a@npm:b@1.0.0", "npm:-g@1.0.0x y", "pypi:a[x]==1"),
    ],
)
def test_anything_else_is_refused_with_how_to_write_it(text: str) -> None:
    with pytest.raises(ValueError, match="Write"):
        parse_package(text)


@given(st.text(max_size=60))
def test_whatever_is_a_package_is_no_option_and_no_path(text: str) -> None:
    try:
        package = parse_package(text)
    except ValueError:
        return
    assert not package.name.startswith("-")
    assert ".." not in package.name.split("/")
    assert not set(package.version) & set(" /\\;'\"")


def test_wheels_are_named_and_nothing_else() -> None:
    assert parse_wheel_name("Foo_Bar-1.0-py3-none-any.whl") == ("foo-bar", "1.0")
    assert parse_wheel_name("torch-2.0+cpu-cp311-cp311-linux_x86_64.whl").version == "2.0+cpu"
    for file in ("a-1.0.tar.gz", "../a-1.0-py3-none-any.whl", "a.whl", "a-1.0-py3-none-any.whl\n"):
        with pytest.raises(ValueError, match="no wheel"):
            parse_wheel_name(file)


def test_pips_settings_are_read_with_the_environment_first() -> None:
    settings = parse_pip_settings(
        "global.index-url='https://a/'\n:env:.index-url='https://b/'\n"
        "global.extra-index-url='x\\ny'\nfreeze.timeout='1'\n:env:.find_links='/w'\nnoise\n"
        "download.index-url='https://c/'\n"
    )
    assert settings == {"index-url": "https://b/", "extra-index-url": "x y", "find-links": "/w"}


def test_a_registry_is_a_host_or_a_path() -> None:
    assert parse_location("https://u:p@pypi.org/simple") == Location("pypi.org", 443)
    assert parse_location("http://127.0.0.1:81/x") == Location("127.0.0.1", 81)
    assert parse_location("file:///opt/x") == parse_location("/opt/x") == Location(path="/opt/x")
    for text in ("", "x", "git+https://a/b", "ftp://a/", "file://host/x", "https://"):
        with pytest.raises(ValueError, match="expected"):
            parse_location(text)
    assert without_password("https://u:p@a:1/b") == "https://a:1/b"


def lock(**entry: object) -> dict[str, object]:
    package = {"version": "1.0.0", "integrity": HASH, "resolved": "https://r/a.tgz", **entry}
    return {"packages": {"": {}, "node_modules/a": package}}


def test_a_lock_gives_every_package_with_its_hash() -> None:
    found = list(parse_npm_lock(lock(hasInstallScript=True), REGISTRY))
    assert [(one.name, one.version, one.integrity, one.script) for one in found] == [
        ("a", "1.0.0", HASH, True)
    ]


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "@own/a", "resolved": "https://own/a.tgz"},
        {"name": "@other/a"},
        {"resolved": "https://more/a.tgz"},
        {"name": "@own/a", "resolved": "https://more/a.tgz"},
    ],
)
def test_a_package_comes_from_its_scopes_registry_or_where_it_is_allowed_to(
    entry: dict[str, object],
) -> None:
    assert list(parse_npm_lock(lock(**entry), REGISTRY))


def test_an_alias_is_known_by_the_name_of_what_it_is() -> None:
    """Else a package could leave a wrong hash behind for any other."""
    assert [one.name for one in parse_npm_lock(lock(name="b"), REGISTRY)] == ["b"]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"integrity": None}, "no hash"),
        ({"integrity": "sha1-xxxx"}, "no hash"),
        ({"integrity": "sha512-\n"}, "no hash"),
        ({"integrity": ""}, "no hash"),
        ({"integrity": f"{HASH} sha512-{'B' * 86}=="}, "or several"),
        ({"integrity": f"{HASH}?option"}, "no hash"),
        ({"resolved": "https://evil/a.tgz"}, "not the registry"),
        ({"resolved": "https://r:444/a.tgz"}, "not the registry"),
        ({"name": "@own/a"}, "not the registry"),
        ({"resolved": "https://own/a.tgz"}, "not the registry"),
        ({"resolved": "git+ssh://git@r/a"}, "expected"),
        ({"resolved": "file:../x"}, "not the registry"),
        ({"link": True}, "not a package"),
    ],
)
def test_an_unsafe_lock_is_refused(entry: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        list(parse_npm_lock(lock(**entry), REGISTRY))


@pytest.mark.parametrize("text", [None, [], {}, {"packages": []}, {"packages": {"a/../b": {}}}])
def test_what_is_no_lock_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"packages|package of"):
        list(parse_npm_lock(text, REGISTRY))


def test_commands_are_found_and_the_servers_own_is_chosen() -> None:
    text = "[gui_scripts]\nno = a:b\n[console_scripts]\nmy-server = a:b\nhelper=c:d [x]\n"
    assert parse_console_scripts(f"{text}[other]\nx=y\n") == ["helper", "my-server"]
    assert choose_command(["helper", "my-server"], Package("pypi", "My_Server", "1")) == "my-server"
    assert choose_command(["helper", "other"], Package("pypi", "x", "1")) == ""
    assert choose_command(["only"], Package("npm", "@s/x", "1")) == "only"
    assert parse_bins({"bin": "./cli.js"}, "@s/x") == {"x": "cli.js"}
    odd = {"a": "../../etc/passwd", "b": "/bin/sh", "c": "ok.js", "../d": "d.js", "e": 1}
    assert parse_bins({"bin": odd}, "x") == {"c": "ok.js"}
    assert parse_bins([], "x") == {}


def test_the_newest_version_is_read_from_pips_answer() -> None:
    assert parse_latest("tiny-server (2.1)\nAvailable versions: 2.1, 2.0\n") == "2.1"
    assert parse_latest("ERROR: nothing") == ""


@pytest.mark.parametrize(
    ("reason", "trouble"),
    [
        ("401 Client Error: Unauthorized for url: http://h/simple/x/ - skipping", "status 401"),
        ("503 Server Error: x for url: http://h/ - skipping", "status 503"),
        ("HTTPConnectionPool(…): (Caused by ResponseError('too many 500 error responses'))", "500"),
        ("connection error: ReadTimeoutError(… Read timed out. (read timeout=1.0)", "in time"),
        ("connection error: [Errno 111] Connection refused", "no connection"),
        ("404 Client Error: Not Found for url: http://h/simple/x/ - skipping", ""),
    ],
)
def test_why_a_page_was_not_got_is_told_from_pips_words(reason: str, trouble: str) -> None:
    found = parse_fetch_trouble(
        f"1 location(s)\n  Could not fetch URL http://h/x/: {reason}\nERROR"
    )
    assert trouble in found
    assert bool(found) == bool(trouble)
    assert parse_fetch_trouble("x (2.0)\nAvailable versions: 2.0") == ""


@pytest.mark.parametrize("word", ["error", "ERR!"])  # npm 10 and before it
def test_of_what_npm_says_the_first_sentence_is_told(word: str) -> None:
    lines = [
        "code FETCH_ERROR",
        "errno FETCH_ERROR",
        "invalid json at http://x",
        "more",
        "log in y",
    ]
    said = last_words(Done(1, "".join(f"npm {word} {line}\n" for line in lines)))
    assert said == f"npm {word} invalid json at http://x"


class Lying(NodeInstaller):
    """A registry's words make npm fail in its words for something else, whatever it is asked."""

    def __init__(self) -> None:
        self._package = Package("npm", "x", "1.0.0")
        self.asked = 0

    def _npm(self, words: list[str]) -> Done:
        del words
        self.asked += 1
        return Done(1, "npm error 500 no - GET http://r/x - ETARGET")


def test_registry_that_always_says_there_is_no_such_version_is_asked_once_more_and_no_longer() -> (
    None
):
    lying = Lying()
    with pytest.raises(VsmError, match="no such version"):
        lying.latest()
    assert lying.asked == 2


def test_a_registrys_name_that_leads_to_metadata_is_not_let_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [(2, 1, 6, "", (address, 80)) for address in ("169.254.169.254", "10.0.0.5")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    assert list(_allow("registry.example", 80)) == ["registry.example:80", "10.0.0.5:80"]


def test_what_a_registry_prints_is_not_searched_for_long() -> None:
    """A pattern that is given a megabyte can take hours, in which nothing interrupts it."""
    code = "from vsm.core.packages import *; assert not parse_fetch_trouble('\\n' * (1 << 20))"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_credentials_of_a_registry_have_the_values_of_the_variables_that_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_TOKEN", "t0ken")
    monkeypatch.setenv("TWO_LINES", "a\nregistry=https://evil.example/")
    monkeypatch.delenv("NOWHERE", raising=False)
    lines = [
        "//r.example/:_authToken=${THE_TOKEN}",
        "//r.example/:email=${NOWHERE}",
        "//r.example/:username=${TWO_LINES}",
        "//other.example/:_authToken=${THE_TOKEN}",
    ]
    (tmp_path / "npmrc").write_text("\n".join(lines))
    settings = {"userconfig": str(tmp_path / "npmrc")}
    found = _npm_credentials("https://r.example/npm/", settings).splitlines()
    assert found == ["//r.example/:_authToken=t0ken", *lines[1:3]]


def test_local_index_of_somebody_without_a_home_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    index = tmp_path / "simple"
    index.mkdir()
    assert registry._existing(str(index)) == str(tmp_path)
