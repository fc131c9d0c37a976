"""Entries of desktop clients: what each becomes, and honest refusals."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.cli import main
from vsm.configuration.config import load_config
from vsm.core.client_entries import Entry, Wanted, is_secret, parse_entries
from vsm.errors import ConfigurationError, VsmError
from vsm.install import import_clients
from vsm.install.import_clients import apply, describe, read_client_file


def one(**entry: Any) -> Entry:
    return parse_entries({"mcpServers": {"My Server": entry}})[0]


@pytest.mark.parametrize(
    ("command", "args", "package", "rest"),
    [
        ("npx", ["-y", "a-b@1.2.3", "/x"], ("npm", "a-b", "1.2.3", ""), ("/x",)),
        ("npx", ["@s/n"], ("npm", "@s/n", "", ""), ()),
        ("npx", ["--yes", "@s/n@latest", "-v"], ("npm", "@s/n", "", ""), ("-v",)),
        ("/usr/bin/npx", ["-p", "@s/n@1.0.0", "cmd", "a"], ("npm", "@s/n", "1.0.0", "cmd"), ("a",)),
        ("C:\\node\\npx.cmd", ["-y", "x"], ("npm", "x", "", ""), ()),
        ("uvx", ["mcp-git", "--repo", "/r"], ("pypi", "mcp-git", "", ""), ("--repo", "/r")),
        ("uvx", ["x@1.0"], ("pypi", "x", "1.0", ""), ()),
        ("uvx", ["--from", "pkg==2.0", "tool"], ("pypi", "pkg", "2.0", "tool"), ()),
        ("uv", ["tool", "run", "x==1"], ("pypi", "x", "1", ""), ()),
        ("pipx", ["run", "x"], ("pypi", "x", "", ""), ()),
    ],
)  # fmt: skip
def test_package_runners_become_installs(
    command: str, args: list[str], package: tuple[str, ...], rest: tuple[str, ...]
) -> None:
    entry = one(command=command, args=args)
    assert entry.refused == ""
    assert entry.package == Wanted(*package)
    assert entry.argv == rest
    assert entry.name == "my-server"


def test_paths_that_a_server_does_not_see_are_said() -> None:
    env = {"STORE": "/data/m.json", "API_KEY": "/not/said", "ZONE": "UTC"}
    entry = one(command="npx", args=["-y", "fs@1.0.0", "/home/me", "--db=~/x"], env=env)
    said = [line.partition(" is not visible")[0] for line in describe(entry) if "visible" in line]
    assert said == ["/home/me", "~/x", "/data/m.json"]
    script = one(command="python3", args=["/srv/server.py", "/home/me"])
    assert [line for line in script.remarks if "/srv/server.py" in line] == []


def test_other_programs_stay_as_they_are() -> None:
    entry = one(command="/opt/x/bin/python", args=["-m", "x"], disabled=True, autoApprove=["y"])
    assert (entry.package, entry.argv) == (None, ("/opt/x/bin/python", "-m", "x"))
    assert not entry.enabled
    assert list(describe(entry)) == [
        "autoApprove is not taken over",
        "goes into vsm.toml:",
        "  [integrations.my-server]",
        '  command = ["/opt/x/bin/python", "-m", "x"]',
        '  profile = "integration"',
        "  enabled = false",
    ]
    keyed = one(command="/bin/x", args=["--api-key", "s3cret", "--token=s3cret", "--verbose"])
    said = list(describe(keyed))
    assert said[0].startswith("--api-key looks like a secret")
    assert "s3cret" not in "".join(said)
    assert '"--api-key", "(as it is)", "--token=(as it is)", "--verbose"' in "".join(said)
    flagged = one(command="/bin/x", args=["--use-token", "--api-key", "s3cret", "--verbose"])
    said = list(describe(flagged))
    assert "s3cret" not in "".join(said)
    assert '"--verbose"]' in "".join(said)


@pytest.mark.parametrize(
    "entry",
    [
        {"command": "/bin/x", "args": ["-v", "postgres://me:s3c:r@et@db.example/x?y=1"]},
        {"command": "/bin/x", "args": ["--dsn=redis://:s3c:r@et@db.example"]},
        {"command": "/bin/x", "env": {"DB": "a=b;postgres://s3cr@et@db.example/x"}},
        {"url": "https://x.example/mcp?team=a&api-key=s3c:r@et"},
        {"command": "npx", "args": ["-y", "git+https://s3c:r@et@db.example/x"]},
        {"command": "npx", "args": ["--registry=https://s3c:r@et@db.example", "x"]},
        {"command": "uvx", "args": ["x@git+https://s3c:r@et@db.example/x"]},
    ],
)
def test_what_is_shown_has_no_password_of_a_url(entry: dict[str, Any]) -> None:
    shown = "\n".join(describe(one(**entry)))
    assert not any(part in shown for part in ("s3c", "r@", "et@", "@et"))
    assert ("(as it is)" in shown) == ("cannot be" not in shown)
    assert "db.example" in shown or "team=a" in shown or "cannot be" in shown


@pytest.mark.parametrize(
    "words",
    [
        ["--header", "Authorization: Bearer s3cret-s3cret"],
        ["--header=Authorization:Bearer s3cret-s3cret"],
        ["-H", "X-Api-Key: s3cret"],
        ["--headers", '{"Authorization": "s3cret"}'],
        ["--call", "whatever Bearer s3cret-https://s3cret"],
    ],
)
def test_what_is_shown_has_no_header_that_holds_a_secret(words: list[str]) -> None:
    shown = "\n".join(describe(one(command="/bin/x", args=["-v", *words, "last"])))
    assert "s3cret" not in shown
    assert "(as it is)" in shown
    assert '"last"]' in shown
    assert ("argument" in shown) == ("X-Api-Key" not in shown)


@pytest.mark.parametrize("words", [["--time", "10:30"], ["--url", "http://x/a:b"], ["Accept: x"]])
def test_arguments_with_colons_are_shown_as_they_are(words: list[str]) -> None:
    assert words[-1] in "\n".join(describe(one(command="/bin/x", args=words)))


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        ('{"Authorization": "Bearer abcdefgh", "Version": "1"}', True),
        ("Authorization: x", True),
        ("Bearer abcdefgh", True),
        ("postgres://me:password@db.example/x", True),
        ("a=b;postgres://me:pass:w@rd@db.example/x", True),
        ("postgres://db.example:5432/x", False),
        ("https://x.example/a?b=c:d@e", False),
        ("basic mode", False),
        ("the bearer of it", False),
    ],
)
def test_a_variable_that_holds_a_secret_by_another_name_moves_into_a_file(
    value: str, secret: bool
) -> None:
    entry = one(command="/bin/x", env={"HEADERS": value})
    assert ("HEADERS" in entry.secrets) == secret
    assert ("HEADERS" in entry.env) != secret


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"type": "sse", "url": "https://x/mcp"}, "old SSE transport"),
        ({"url": "https://x/sse"}, "old SSE transport"),
        ({"type": "http", "command": "x"}, "no url"),
        ({"type": "websocket", "url": "https://x/mcp"}, "unknown"),
        ({"url": "http://x.example/mcp"}, "everybody on the way"),
        ({"url": "https://me:secret@x.example/mcp"}, "name and password"),
        ({"url": "https://x/mcp", "headers": {"A": "${KEY}"}}, "only its client"),
        ({"url": "https://x/mcp", "headers": {"../x": "y"}}, "header"),
        ({"url": "https://x/mcp", "headers": {"X-A": "é"}}, "header X-A is not one line"),
        ({"url": "https://x/mcp", "headers": {"X-A": "a\nb"}}, "header X-A is not one line"),
        ({"url": "https://x/é"}, "none of http"),
        ({"url": "ftp://x/mcp"}, "none of http"),
        ({"command": "npx", "args": ["mcp-remote", "https://x/mcp", "--debug"]}, "no counterpart"),
        ({"command": "docker", "args": ["run", "-i", "x"]}, "container"),
        ({"command": "/bin/sh", "args": ["-c", "npx x | tee"]}, "shell line"),
        ({"command": "cmd.exe", "args": ["/c", "npx", "x"]}, "shell line"),
        ({"command": "npx", "args": ["-c", "x"]}, "no counterpart"),
        ({"command": "npx", "args": ["x@^1.0.0"]}, "range"),
        ({"command": "npx", "args": ["github:a/b"]}, "no package"),
        ({"command": "npx", "args": []}, "no package"),
        ({"command": "uvx", "args": ["--with", "y", "x"]}, "no counterpart"),
        ({"command": "uvx", "args": ["--from", "git+https://x/y", "z"]}, "no package"),
        ({"command": "uvx", "args": ["x[extra]"]}, "no package"),
        ({"command": "uv", "args": ["run", "x.py"]}, "fetches or builds"),
        ({"command": "bunx", "args": ["x"]}, "fetches or builds"),
        ({"command": "x", "env": {"A": "${HOME}"}}, "only its client"),
        ({"command": "x", "args": ["${input:key}"]}, "only its client"),
        ({"command": "x", "env": {"A B": "1"}}, "variable"),
        ({"command": "x", "env": {"A": 1}}, "env"),
        ({"command": "x", "args": "y"}, "args"),
        ({"command": ["x"]}, "no command"),
        ({}, "no command"),
        ("x", "no object"),
    ],
)
def test_what_cannot_be_translated_is_refused_with_the_reason(entry: Any, reason: str) -> None:
    refused = parse_entries({"mcpServers": {"x": entry}})[0].refused
    assert reason in refused


def test_entry_of_vsm_itself_is_left_where_it_is() -> None:
    """An import says that the client needs it, so the next one meets it."""
    (entry,) = parse_entries({"mcpServers": {"vsm": {"command": "vsm", "args": ["connect"]}}})
    assert "vsm itself" in entry.refused


def test_names_that_cannot_be_or_clash_are_refused() -> None:
    entries = parse_entries(
        {"servers": {"A B": {"command": "x"}, "a-b": {"command": "x"}, "é": {}}}
    )
    assert [bool(entry.refused) for entry in entries] == [False, True, True]


@pytest.mark.parametrize("document", [None, [], {}, {"mcpServers": []}, "x"])
def test_what_is_no_clients_file_is_refused(document: Any, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(document))
    with pytest.raises(ConfigurationError):
        read_client_file(tmp_path / "c.json")


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.text(max_size=9) | st.none() | st.lists(st.text(max_size=9), max_size=3),
        max_size=4,
    )
)
def test_any_document_gives_entries_or_refusals(entry: dict[str, Any]) -> None:
    for found in parse_entries({"mcpServers": {"x": {"command": "npx", **entry}}}):
        assert found.refused or found.package or found.argv or found.url


@pytest.mark.parametrize(
    "entry",
    [
        {"url": "https://x.example/mcp"},
        {"type": "http", "url": "https://x.example/mcp"},
        {"type": "streamable-http", "url": "https://x.example/mcp"},
        {"type": "streamableHttp", "url": "https://x.example/mcp"},
        {"httpUrl": "https://x.example/mcp"},
        {"command": "npx", "args": ["-y", "mcp-remote@0.1.2", "https://x.example/mcp"]},
    ],
)
def test_remote_servers_become_urls(entry: dict[str, Any]) -> None:
    found = one(**entry)
    assert (found.refused, found.url, found.package) == ("", "https://x.example/mcp", None)


def test_an_imported_remote_server_has_its_secrets_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path / "state"))
    config = tmp_path / "vsm.toml"
    tmp_path.chmod(0o755)
    headers = {"Authorization": "Bearer s3cret", "X-Team": "acme"}
    bridge = ["mcp-remote", "https://z.example/mcp", "--header", "X-Api-Key: s3cret"]
    document = {
        "mcpServers": {
            "far": {"type": "http", "url": "https://x.example/mcp", "headers": headers},
            "near": {"url": "http://localhost:3000/mcp"},
            "bridged": {"command": "npx", "args": bridge},
        }
    }
    entries = parse_entries(document)
    assert "it is spoken to in clear" in list(describe(entries[1]))
    apply(entries, config, lambda _: None)
    assert "s3cret" not in config.read_text()
    found = load_config(config).integrations
    source = found["far"].secrets["HEADER_AUTHORIZATION"]
    assert Path(source.file or "").read_text() == "Bearer s3cret"
    assert '"x-team":"acme"' in found["far"].env["VSM_REMOTE"]
    near, bridged = found["near"].remote, found["bridged"].remote
    assert near is not None
    assert bridged is not None
    assert (near.hosts, near.in_clear) == (("127.0.0.1:3000",), True)
    assert bridged.hosts == ("z.example:443",)
    assert "HEADER_X_API_KEY" in found["bridged"].secrets


def test_headers_that_vsm_makes_itself_are_left_out_and_said() -> None:
    headers = {"Content-Type": "application/json", "ACCEPT": "*/*", "X-Team": " acme "}
    found = one(url="https://x.example/mcp", headers=headers)
    assert (found.refused, found.headers) == ("", {"X-Team": "acme"})
    assert [text.split()[0] for text in found.remarks if "makes it" in text] == [
        "Content-Type",
        "ACCEPT",
    ]


def test_an_entry_that_no_configuration_can_have_keeps_no_other_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path / "state"))
    config = tmp_path / "vsm.toml"
    tmp_path.chmod(0o755)
    twice = {"Authorization": "Bearer s3cret-s3cret", "authorization": "Bearer s3cret-s3cret"}
    document = {
        "mcpServers": {
            "far": {"url": "https://x.example/mcp", "headers": twice},
            "odd": {"command": "npx", "args": ["server", "\0"], "env": {"A_KEY": "s3cret"}},
            "half": {"command": "/bin/cat", "args": ["\ud800"]},
            "kept": {"command": "/bin/cat", "env": {"A_KEY": "\ud800"}},
            "good": {"command": "/bin/cat"},
        }
    }
    said: list[str] = []
    taken, failed = apply(parse_entries(document), config, said.append)
    assert [entry.entry.name for entry in taken] == ["good"]
    assert {name: error.what for name, error in failed.items()} == {
        "far": "authorization is there twice",
        "odd": "an argument holds a NUL byte",
        "half": "has a text that no configuration can have",
        "kept": "has a text that no configuration can have",
    }
    assert failed["far"].where == f"{config}: integrations.far.headers"
    assert [line.partition(":")[0] for line in said] == [
        f"{name} is left out" for name in ("far", "odd", "half", "kept")
    ]
    assert set(load_config(config).integrations) == {"good"}
    assert not (tmp_path / "state/secrets").exists()


def test_servers_are_found_beside_a_long_history(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    servers = {"x": {"command": "/bin/cat"}}
    file.write_text(json.dumps({"history": "x" * (2 << 20), "mcpServers": servers}))
    assert [entry.name for entry in read_client_file(file)] == ["x"]


def test_a_file_that_is_too_large_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.json"
    monkeypatch.setattr(import_clients, "_MOST_BYTES", 1 << 20)
    file.write_text(json.dumps({"history": "x" * (2 << 20), "mcpServers": {}}))
    with pytest.raises(ConfigurationError, match="more than 1 MiB"):
        read_client_file(file)


def test_secrets_are_told_by_their_names() -> None:
    assert all(
        map(is_secret, ("API_KEY", "GITHUB_TOKEN", "apikey", "DB_PASSWORD", "AUTH", "GH_PAT"))
    )
    assert not any(map(is_secret, ("PATH", "MONKEY", "KEYBOARD", "TIMEZONE", "AUTHOR", "COMPAT")))


def test_an_import_adds_entries_and_keeps_secrets_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    monkeypatch.setenv("VSM_STATE_DIR", str(state))
    client, config = tmp_path / "c.json", tmp_path / "vsm.toml"
    config.write_text('# mine\n[integrations.old]\ncommand = ["/bin/true"]\n')
    odd = 'quote " backslash \\ newline \n é \x7f'
    document = {
        "mcpServers": {
            "x": {"command": "/bin/cat", "args": [odd], "env": {"A": odd, "API_KEY": "s3cret"}},
            "container": {"command": "docker", "args": ["run", "y"]},
        }
    }
    client.write_text(json.dumps(document))
    entries = read_client_file(client)
    shown = "\n".join(line for entry in entries for line in describe(entry))
    assert "s3cret" not in shown
    apply(entries, config, print)
    text = config.read_text()
    foreseen = shown.partition("goes into vsm.toml:\n")[2].partition("\ncannot")[0]
    assert "\n".join(line[2:] for line in foreseen.splitlines()) in text
    assert text.startswith("# mine\n")
    assert "s3cret" not in text
    loaded = load_config(config).integrations
    assert set(loaded) == {"old", "x"}
    assert loaded["x"].command == ("/bin/cat", odd)
    assert loaded["x"].env == {"A": odd}
    kept = Path(str(loaded["x"].secrets["API_KEY"].file))
    assert kept.read_text() == "s3cret"
    assert kept.stat().st_mode & 0o777 == 0o600
    entries.append(one(command="/bin/true"))
    taken, failed = apply(entries, config, print)  # what is there already keeps no other back
    assert [entry.entry.name for entry in taken] == ["my-server"]
    assert "already" in str(failed.pop("x"))
    assert failed == {}
    assert config.read_text().startswith(text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "state", "vsm.toml"]


def test_what_cannot_be_installed_is_left_out_and_keeps_no_other_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(import_clients, "newest", no_such_package)
    client, config = tmp_path / "c.json", tmp_path / "vsm.toml"
    gone = {"command": "npx", "args": ["gone"], "env": {"API_KEY": "s3cret"}}
    servers = {"x": gone, "y": {"command": "/bin/cat", "args": ["/etc/motd"]}}
    client.write_text(json.dumps({"mcpServers": servers}))
    said: list[str] = []
    taken, failed = apply(read_client_file(client), config, said.append)
    assert [entry.entry.name for entry in taken] == ["y"]
    assert list(failed) == ["x"]
    assert said == ["x is left out: npm:gone: there is no such package. Correct its name."]
    assert set(load_config(config).integrations) == {"y"}
    assert not (tmp_path / "state/secrets").exists()
    assert main(["import", str(client), "--write", "--config", str(tmp_path / "w.toml")]) == 1
    assert capsys.readouterr().err == f"vsm: {said[0]}\n"


def no_such_package(kind: str, name: str) -> str:
    raise VsmError(f"{kind}:{name}", "there is no such package", "Correct its name.")


def test_paths_that_it_does_not_see_are_in_its_entry_to_be_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path / "state"))
    config = tmp_path / "vsm.toml"
    apply([one(command="/bin/cat", args=["-n", "x", "/etc/motd", "--to=~/x"])], config, print)
    text = config.read_text()
    assert '# read = ["/etc/motd", "~/x"]   # or write' in text
    assert load_config(config).integrations["my-server"].read == ()
    config.write_text(text.replace("# read", "read"))
    home = str(Path("~/x").expanduser())
    assert load_config(config).integrations["my-server"].read == ("/etc/motd", home)


def test_an_import_that_fails_leaves_no_copy_of_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path / "state"))
    client, config = tmp_path / "c.json", tmp_path / "vsm.toml"
    server = {"command": "/bin/cat", "env": {"API_KEY": "s3cret"}}
    client.write_text(json.dumps({"mcpServers": {"x": server, "y": server}}))
    in_the_way = tmp_path / "state/secrets/.y.API_KEY"
    in_the_way.mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        apply(read_client_file(client), config, print)
    assert list((tmp_path / "state/secrets").iterdir()) == [in_the_way]
    assert not config.exists()


def test_a_secret_that_finds_no_room_names_its_place_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path / "state"))
    client, config = tmp_path / "c.json", tmp_path / "vsm.toml"
    server = {"command": "/bin/cat", "env": {"API_KEY": "s3cret"}}
    client.write_text(json.dumps({"mcpServers": {"x": server}}))
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most[1]))  # as on a full disk
    try:
        with pytest.raises(VsmError, match=r"x\.API_KEY: cannot be written: File too"):
            apply(read_client_file(client), config, print)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert list((tmp_path / "state/secrets").iterdir()) == []
    assert not config.exists()


def test_an_import_that_is_interrupted_has_done_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path / "é"))
    secrets, config = tmp_path / "é/secrets", tmp_path / "vsm.toml"
    entry = one(command="/bin/cat", env={"API_KEY": "s3cret"})
    rename = Path.rename
    for last, done in (("my-server.API_KEY", False), ("vsm.toml", True)):

        def interrupted(path: Path, target: Path, last: str = last, done: bool = done) -> None:
            if target.name != last or done:
                rename(path, target)
            if target.name == last:
                raise KeyboardInterrupt

        monkeypatch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            apply([entry], config, print)
        assert config.exists() == done
        assert [path.name for path in secrets.iterdir()] == ["my-server.API_KEY"] * done


@pytest.mark.parametrize("place", ["missing", "everybody's"])
def test_an_import_into_a_place_that_cannot_be_is_refused_before_anything_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("VSM_STATE_DIR", str(tmp_path / "state"))
    client, folder = tmp_path / "c.json", tmp_path / place
    victim = tmp_path / "victim"
    victim.touch(0o600)
    victim.write_text("theirs")
    if place != "missing":
        folder.mkdir()
        folder.chmod(0o777)
        (folder / ".vsm.toml.import.toml").symlink_to(victim)
    servers = {"x": {"command": "npx", "args": ["-y", "tiny"]}}
    client.write_text(json.dumps({"mcpServers": servers}))
    said: list[str] = []
    with pytest.raises(ConfigurationError, match=place):
        apply(read_client_file(client), folder / "vsm.toml", said.append)
    assert said == []
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("theirs", 0o600)
    assert not (tmp_path / "state").exists()
    assert not folder.exists() or not list(folder.iterdir())
