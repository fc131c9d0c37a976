"""Installing from registries of the test's own: pinned, nothing run, all or nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registries import NpmRegistry, SimpleIndex, serve, tarball, write_sdist, write_wheel

pytestmark = pytest.mark.isolation

VSM = str(Path(sys.executable).with_name("vsm"))
BOUND_S = 100


class Host:
    """A host with its configuration of pip and npm, and an empty state directory."""

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder = folder
        self.servers = state / "servers"
        kept = {k: v for k, v in os.environ.items() if not k.lower().startswith(("pip_", "npm_"))}
        self.env = {**kept, "PIP_CONFIG_FILE": os.devnull, "VSM_TEST_SECRET": "do-not-leak"}
        self.env["npm_config_userconfig"] = str(folder / "npmrc")

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [VSM, *words],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def vsm(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [VSM, *words],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
            check=False,
            cwd="/",
        )

    def install(self, *words: str) -> dict[str, Any]:
        done = self.vsm("install", "--json", *words)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def refused(self, *words: str) -> str:
        """Why an installation is refused; it leaves nothing but what is known of hashes."""
        before = self.trees()
        done = self.vsm("install", *words)
        assert done.returncode == 1, (done.stdout, done.stderr)
        assert self.trees() == before
        return done.stderr.splitlines()[-1]

    def trees(self) -> set[str]:
        hidden = {".lock", "hashes.json"}
        if not self.servers.exists():
            return set()
        return {str(p) for p in self.servers.glob("*") if p.name not in hidden} | {
            str(p) for p in self.servers.glob("*/*")
        }


@pytest.fixture
def host(runtime_dir: Path, tmp_path: Path) -> Iterator[Host]:
    yield Host(tmp_path, runtime_dir.parent / "state")
    for folder, _, _ in os.walk(runtime_dir.parent):
        os.chmod(folder, 0o700)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_wheel(folder, "tiny_dep", "2.0")
    write_wheel(folder, "tiny_server", "1.0", requires=("tiny_dep==2.0",), scripts=("tiny-server",))
    return folder


def run_confined(host: Host, profile: str, argv: list[str]) -> str:
    done = host.vsm("sandbox", "run", "--profile", profile, "--", *argv)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


STEP = """
import pathlib, sys
from vsm.install.sandbox import InstallSandbox
argv = ["/bin/sh", "-c", "exec >&- 2>&-; exec sleep 30"]
print(InstallSandbox(pathlib.Path(sys.argv[1])).run(argv, env={}, timeout_s=0.5).timed_out)
"""


def test_a_step_that_closes_its_output_and_runs_on_is_ended_all_the_same(
    host: Host, tmp_path: Path
) -> None:
    (tmp_path / "build").mkdir()
    command = [sys.executable, "-c", STEP, str(tmp_path / "build")]
    done = subprocess.run(
        command, env=host.env, capture_output=True, text=True, check=False, timeout=BOUND_S
    )
    assert done.stdout == "True\n", done.stderr


# -- PyPI ------------------------------------------------------------------------------------------


def test_a_server_from_an_index_is_pinned_sealed_replaced_and_runs_offline(
    host: Host, wheels: Path
) -> None:
    index = SimpleIndex(wheels)
    with serve(index) as url:
        host.env["PIP_INDEX_URL"] = url.replace("http://", "http://user:s3cret@") + "/simple"
        answer = host.install("pypi:tiny-server==1.0")
        asked = len(index.asked)
        again = host.install("pypi:tiny-server==1.0")
        assert len(index.asked) == asked  # a no-op asks nobody
        assert host.install("pypi:tiny-server") == again  # the newest is there already
        outdated = json.loads(host.vsm("outdated", "--json").stdout)
    assert (answer["installed"], again["installed"]) == (True, False)
    assert again["server"] == answer["server"]
    assert outdated == {"servers": [{"name": "tiny-server", "installed": "1.0", "latest": "1.0"}]}
    server = answer["server"]
    assert {one["file"]: one["hash"][:7] for one in server["files"]} == {
        "tiny_dep-2.0-py3-none-any.whl": "sha256:",
        "tiny_server-1.0-py3-none-any.whl": "sha256:",
    }
    assert all(authorization.startswith("Basic ") for _, authorization in index.asked)
    home = host.servers / "tiny-server"
    everything = [path for path in home.rglob("*") if not path.is_symlink()]
    assert "s3cret" not in (home / "server.json").read_text()
    tree = [path for path in everything if "1.0-" in str(path)]
    assert tree
    assert [path for path in tree if path.stat().st_mode & 0o6222] == []
    assert not (home / "current" / "tmp").exists()
    assert run_confined(host, "python-server", server["command"]) == "tiny_server 1.0"
    write_wheel(wheels, "tiny_server", "1.1", requires=("missing==1",), scripts=("tiny-server",))
    write_wheel(wheels, "tiny_server", "1.2", scripts=("tiny-server",))
    host.env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    assert "it needs missing" in host.refused("pypi:tiny-server==1.1")
    newer = host.install("pypi:tiny-server==1.2")["server"]
    assert (newer["previous"], newer["command"]) == (server["directory"], server["command"])
    assert run_confined(host, "python-server", newer["command"]) == "tiny_server 1.2"
    other = host.vsm("install", "pypi:tiny-dep==2.0", "--name", "tiny-server")
    assert other.returncode == 2
    assert "tiny-server is pypi:tiny-server already" in other.stderr
    assert host.vsm("uninstall", "tiny-server").returncode == 0
    assert host.trees() == set()
    # What was installed once may not come back as something else.
    write_wheel(wheels, "tiny_dep", "2.0", content="def main(): steal()\n")
    assert "another hash" in host.refused("pypi:tiny-dep==2.0")
    assert host.trees() == set()


def test_what_has_no_wheel_is_refused_and_never_built(host: Host, tmp_path: Path) -> None:
    folder, mark = tmp_path / "sdists", tmp_path / "it-ran"
    folder.mkdir()
    write_sdist(folder, "tiny_source", "1.0", f"open({str(mark)!r}, 'w')\n")
    host.env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
    assert "has no wheel" in host.refused("pypi:tiny-source==1.0")
    assert "no such package" in host.refused("pypi:no-such-thing==1.0")
    assert not mark.exists()


BACKEND = """
import os, urllib.request
def prepare_metadata_for_build_wheel(folder, settings=None):
    told = os.environ["PIP_INDEX_URL"].partition("//")[2].partition("@")
    password = told[0].replace(":", "-")
    urllib.request.urlopen(f"http://{told[2]}/it-ran-and-knows-{password}")
build_wheel = lambda *_: prepare_metadata_for_build_wheel("")
"""


@pytest.mark.parametrize("kind", ["a backend of its own", "setup.py"])
def test_a_wheel_that_gives_a_source_by_url_does_not_get_it_built(
    host: Host, wheels: Path, kind: str
) -> None:
    """pip would: `--only-binary` is about what an index lists, and the index's password is near."""
    system = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    ran = f"{BACKEND}\nprepare_metadata_for_build_wheel('')\n"
    files = {"s-1.0/PKG-INFO": "Name: s\nVersion: 1.0\n", "s-1.0/setup.py": ran}
    if kind != "setup.py":
        files |= {"s-1.0/pyproject.toml": system, "s-1.0/backend.py": BACKEND}
    (wheels / "s-1.0.tar.gz").write_bytes(tarball(files))
    index = SimpleIndex(wheels)
    with serve(index) as url:
        source = f"s @ {url}/files/s-1.0.tar.gz"
        write_wheel(wheels, "tiny_server", "1.1", requires=(source,), scripts=("tiny-server",))
        host.env["PIP_INDEX_URL"] = url.replace("http://", "http://user:s3cret@") + "/simple"
        reason = host.refused("pypi:tiny-server==1.1")
    asked = [path for path, _ in index.asked]
    assert "files/s-1.0.tar.gz" in asked  # it was there to be built
    assert [path for path in asked if "it-ran" in path] == []
    assert "no wheel; building it would run its code" in reason


@pytest.mark.parametrize("place", ["data/pyvenv.cfg", "scripts/python", "data/bin/python3"])
def test_a_package_cannot_replace_the_interpreter_of_its_environment(
    host: Host, wheels: Path, place: str
) -> None:
    more = {f"tiny_server-1.1.data/{place}": "home = /home/ann/.local/bin\n"}
    write_wheel(wheels, "tiny_server", "1.1", scripts=("tiny-server",), more=more)
    host.env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    assert "replaces the interpreter" in host.refused("pypi:tiny-server==1.1")


def test_what_unpacks_to_too_much_is_stopped(host: Host, wheels: Path, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "sandbox_profiles" / "installer.toml"
    own = tmp_path / "profiles" / "installer.toml"
    own.parent.mkdir()
    small = shipped.read_text().replace('"8G"', '"16M"').replace("500000", "2000")
    own.write_text(small)
    host.env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    host.install("pypi:tiny-dep==2.0")  # under the shipped limits and,
    assert host.vsm("uninstall", "tiny-dep").returncode == 0
    host.env["VSM_PROFILE_PATH"] = str(own.parent)
    host.install("pypi:tiny-dep==2.0")  # so a small one, under small limits
    assert host.vsm("uninstall", "tiny-dep").returncode == 0
    write_wheel(wheels, "bomb", "1.0", more={"zeros": "\0" * (64 << 20)})
    write_wheel(wheels, "crowd", "1.0", more={f"c/{number}": "" for number in range(3000)})
    assert "unpacks to more than 16 MiB" in host.refused("pypi:bomb==1.0")
    assert "unpacks to more than 2000 files" in host.refused("pypi:crowd==1.0")


def test_files_on_another_host_are_out_of_reach_unless_allowed(host: Host, wheels: Path) -> None:
    index, elsewhere = SimpleIndex(wheels), SimpleIndex(wheels)
    with serve(elsewhere) as other, serve(index) as url:
        plain = index.answer
        index.answer = lambda path, base: (  # type: ignore[method-assign]
            plain(path, base)[0],
            plain(path, base)[1].replace(b'href="/files', f'href="{other}/files'.encode()),
        )
        host.env["PIP_INDEX_URL"] = f"{url}/simple"
        assert "cannot be" in host.refused("pypi:tiny-dep==2.0")
        assert elsewhere.asked == []
        host.install("pypi:tiny-dep==2.0", "--allow", other.removeprefix("http://"))
        assert elsewhere.asked


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_installation_leaves_nothing(
    host: Host, wheels: Path, signo: signal.Signals, wait_gone: Any
) -> None:
    index = SimpleIndex(wheels)
    index.broken = "silence"
    with serve(index) as url:
        host.env["PIP_INDEX_URL"] = f"{url}/simple"
        installing = host.start("install", "pypi:tiny-dep==2.0")
        try:
            while not index.asked:
                assert installing.poll() is None
                os.sched_yield()
            assert len(host.trees()) == 2  # it is under way
            busy = host.vsm("install", "pypi:tiny-dep==2.0")
            assert "under way" in busy.stderr
            children = Path(f"/proc/{installing.pid}/task/{installing.pid}/children").read_text()
        finally:
            installing.send_signal(signo)
            installing.communicate(timeout=BOUND_S)
        for pid in children.split():
            wait_gone(int(pid))
    assert installing.returncode in (130, -signo)
    if signo == signal.SIGKILL:
        assert host.vsm("uninstall", "tiny-dep").returncode == 5  # sweeps the store
        swept = host.vsm("sandbox", "run", "--profile", "integration", "--", "/bin/true")
        assert swept.returncode == 0, swept.stderr  # sweeps the control groups
    assert host.trees() == set()


def test_a_registry_that_does_not_answer_is_named(host: Host) -> None:
    host.env["PIP_INDEX_URL"] = "http://127.0.0.1:1/simple"
    host.env["PIP_RETRIES"] = "0"
    for spec in ("pypi:tiny-dep==2.0", "pypi:tiny-dep"):  # to fetch it; to ask for the newest
        reason = host.refused(spec)
        assert f"{spec}: the registry cannot be reached: 127.0.0.1:1: cannot connect" in reason


def test_a_package_of_pre_releases_alone_has_a_newest_one(host: Host, wheels: Path) -> None:
    write_wheel(wheels, "early_server", "0.1a1", scripts=("early-server",))
    write_wheel(wheels, "early_server", "0.1a2", scripts=("early-server",))
    write_wheel(wheels, "tiny_dep", "3.0a1")
    with serve(SimpleIndex(wheels)) as url:
        host.env["PIP_INDEX_URL"] = f"{url}/simple"
        assert host.install("pypi:early-server")["server"]["version"] == "0.1a2"
        assert host.install("pypi:tiny-dep")["server"]["version"] == "2.0"
        reason = host.refused("pypi:early-server==9", "--name", "other")
        assert "there is no such version. The newest is 0.1a2." in reason
        assert "pypi:nosuch: there is no such package" in host.refused("pypi:nosuch")


def test_a_registry_that_is_slow_or_wrong_is_named(host: Host, wheels: Path) -> None:
    index = SimpleIndex(wheels)
    plain = index.answer
    with serve(index) as url:
        host.env |= {"PIP_INDEX_URL": f"{url}/simple", "PIP_RETRIES": "0"}
        index.answer = lambda path, base: (  # type: ignore[method-assign]
            (200, b"other bytes") if path.startswith("files/") else plain(path, base)
        )
        assert "DO NOT MATCH THE HASHES" in host.refused("pypi:tiny-dep==2.0")
        index.answer = lambda *_: (200, b"<html>log in</html>")  # type: ignore[method-assign]
        assert "lists no file of it" in host.refused("pypi:tiny-dep==2.0")
        index.broken = "silence"
        host.env["PIP_TIMEOUT"] = "1"  # not before: a busy host answers later
        assert "no answer in time" in host.refused("pypi:tiny-dep==2.0")


def test_a_full_disk_is_named_and_nothing_is_left(
    host: Host, wheels: Path, require: Any, runtime_dir: Path
) -> None:
    require("tmpfs", os.geteuid() == 0, "only root can mount a small one")
    state = runtime_dir.parent / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    options = ["-t", "tmpfs", "-o", "size=32k,mode=0700", "tmpfs"]
    subprocess.run(["mount", *options, str(state)], check=True)
    try:
        host.env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
        reason = host.refused("pypi:tiny-dep==2.0")
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)
    assert "o space left" in reason
    assert "Make room" in reason


# -- npm -------------------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path, require: Any) -> NpmRegistry:
    require("npm", shutil.which("npm") is not None, "not installed")
    made = NpmRegistry()
    made.add("tiny-dep", "2.0.0", {"index.js": "module.exports = 'dep'"})
    made.add(
        "@scope/tiny-server",
        "1.0.0",
        {"cli.js": "#!/usr/bin/env node\nconsole.log('tiny', require('tiny-dep'))"},
        bin={"tiny-server": "./cli.js"},
        dependencies={"tiny-dep": "^2.0.0"},
        scripts={"postinstall": f"touch {tmp_path}/it-ran; exit 1", "preinstall": "exit 1"},
    )
    return made


def test_a_registry_that_lies_is_refused(host: Host, registry: NpmRegistry) -> None:
    with serve(NpmRegistry()) as other, serve(registry) as url:
        host.env["npm_config_registry"] = f"{url}/"
        assert "The newest is 2.0.0" in host.refused("npm:tiny-dep@3.0.0")
        registry.tarball_base = other
        assert "not the registry" in host.refused("npm:tiny-dep@2.0.0")
        registry.broken = "garbage"
        assert "cannot be fetched: npm error invalid json" in host.refused("npm:tiny-dep@2.0.0")
        registry.broken = "silence"
        host.env["npm_config_fetch_timeout"] = "1000"
        assert "cannot be reached: npm error network" in host.refused("npm:tiny-dep@2.0.0")
    assert host.trees() == set()


def test_an_import_installs_the_newest_from_npm_pinned_sealed_and_runs_no_script(
    host: Host, registry: NpmRegistry, tmp_path: Path
) -> None:
    client, config = tmp_path / "client.json", tmp_path / "vsm.toml"
    npx = {"command": "npx", "args": ["-y", "@scope/tiny-server", "--flag"], "env": {"A_KEY": "k"}}
    docker = {"command": "docker", "args": ["run", "x"]}
    client.write_text(json.dumps({"mcpServers": {"Tiny": npx, "Boxed": docker}}))
    words = ("import", str(client), "--config", str(config))
    shown = host.vsm(*words)
    assert "vsm install npm:@scope/tiny-server --name tiny\n" in shown.stdout
    assert "cannot be taken over: it runs a container image" in shown.stdout
    assert (config.exists(), host.trees()) == (False, set())
    with serve(registry) as url:
        host.env["npm_config_registry"] = f"{url}/"
        authority = url.removeprefix("http:")
        (tmp_path / "npmrc").write_text(
            f"{authority}/:_authToken=t0ken\n//other.example.com/:_authToken=another\n"
        )
        done = host.vsm(*words, "--write")
    assert done.returncode == 1, done.stderr  # one was refused
    assert "brings an install script, which is not run: if the server does not" in done.stderr
    assert not (tmp_path / "it-ran").exists()
    assert {authorization for _, authorization in registry.asked} == {"Bearer t0ken"}
    entry = tomllib.loads(config.read_text())["integrations"]
    assert set(entry) == {"tiny"}
    assert entry["tiny"]["command"][-1] == "--flag"
    assert Path(entry["tiny"]["secrets"]["A_KEY"]["file"]).read_text() == "k"
    home = host.servers / "tiny"
    server = json.loads((home / "server.json").read_text())
    assert server["version"] == "1.0.0"
    assert {one["name"]: one["install_script"] for one in server["files"]} == {
        "@scope/tiny-server": True,
        "tiny-dep": False,
    }
    texts = [p.read_bytes() for p in home.rglob("*") if p.is_file() and not p.is_symlink()]
    assert not any(b"t0ken" in text or b"another" in text for text in texts)
    real = [path for path in home.rglob("*") if not path.is_symlink() and "1.0.0-" in str(path)]
    assert real
    assert [path for path in real if path.stat().st_mode & 0o6222] == []
    assert not list(home.rglob("link"))  # a link out of the tree
    assert run_confined(host, "node-server", entry["tiny"]["command"]) == "tiny dep"


def test_every_scope_comes_from_the_registry_that_npm_has_for_it_and_no_other(
    host: Host, registry: NpmRegistry, tmp_path: Path
) -> None:
    """Else a name that is free on the public registry would stand for the operator's own."""
    own = NpmRegistry()
    own.add("@own/lib", "1.0.0", {"index.js": "module.exports = 'own'"})
    registry.add("@own/lib", "1.0.0", {"index.js": "module.exports = 'squatted'"})
    registry.add(
        "taker",
        "1.0.0",
        {"cli.js": "console.log(require('@own/lib'))"},
        bin={"taker": "./cli.js"},
        dependencies={"@own/lib": "^1.0.0"},
    )
    with serve(own) as own_url, serve(registry) as url:
        host.env["npm_config_registry"] = f"{url}/"
        (tmp_path / "npmrc").write_text(f"@own:registry={own_url}/\n")
        server = host.install("npm:taker@1.0.0")["server"]
        assert [path for path, _ in registry.asked if path.startswith("@own")] == []
        assert run_confined(host, "node-server", server["command"]) == "own"
        own.tarball_base = url  # a registry that sends one elsewhere, to the other one
        assert host.vsm("uninstall", "taker").returncode == 0
        assert "not the registry" in host.refused("npm:taker@1.0.0")


def test_npm_files_on_another_host_are_taken_from_there_if_that_is_allowed(
    host: Host, registry: NpmRegistry
) -> None:
    elsewhere = NpmRegistry()
    elsewhere.packages = registry.packages
    with serve(elsewhere) as other, serve(registry) as url:
        host.env["npm_config_registry"] = f"{url}/"
        registry.tarball_base = other
        assert "not the registry" in host.refused("npm:tiny-dep@2.0.0")
        assert elsewhere.asked == []
        host.install("npm:tiny-dep@2.0.0", "--allow", other.removeprefix("http://"))
        assert elsewhere.asked


def test_npm_fetches_nothing_from_a_git_repository(
    host: Host, registry: NpmRegistry, require: Any
) -> None:
    """It would run git, and another npm inside what git fetched."""
    require("git", shutil.which("git") is not None, "not installed")
    with serve(registry) as url:
        registry.add("taker", "1.0.0", {"i.js": ""}, dependencies={"evil": f"git+{url}/evil.git"})
        host.env["npm_config_registry"] = f"{url}/"
        reason = host.refused("npm:taker@1.0.0")
    assert [path for path, _ in registry.asked if "evil.git" in path] == []
    assert "from a git repository" in reason


TAKEN_OVER = """#!/bin/sh
case "$1" in
config) echo "{}"; exit;;
install) %s
  echo '{"packages": {"node_modules/x": {"version": "1.0.0", "integrity": "sha512-%s"}}}' \\
    > package-lock.json;;
ci) mkdir -p node_modules/x; echo '{"bin": "x.js"}' > node_modules/x/package.json
  touch node_modules/x/x.js;;
esac
"""


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("rm tmp/npmrc; ln -s {victim} tmp/npmrc", ""),
        ("rm -r tmp; ln -s {folder} tmp", "tmp: expected a folder"),
        ("ln -s {victim} package-lock.json; exit", "expected a file"),
        ("mkfifo package-lock.json; exit", "is no file"),
        ("ln -s {victim} link", "leads out of the package"),
        ("mkfifo pipe", "neither a file nor a link"),
    ],
)
def test_an_npm_that_was_taken_over_gets_nothing_written_or_read_for_it(
    host: Host, tmp_path: Path, require: Any, does: str, reason: str
) -> None:
    """What it left is touched by vsm itself, unconfined."""
    require("node", shutil.which("node") is not None, "not installed")
    victim = tmp_path / "victim" / "npmrc"
    victim.parent.mkdir()
    victim.write_text("mine")
    npm = tmp_path / "tools" / "npm"
    npm.parent.mkdir()
    words = does.format(victim=victim, folder=victim.parent)
    npm.write_text(TAKEN_OVER % (words, "A" * 86 + "=="))
    npm.chmod(0o755)
    host.env["PATH"] = f"{npm.parent}:{host.env['PATH']}"
    if reason:
        assert reason in host.refused("npm:x@1.0.0")
    else:
        host.install("npm:x@1.0.0")
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("mine", 0o644)
    assert list(victim.parent.iterdir()) == [victim]


def test_a_damaged_record_stops_nothing_else_and_can_be_uninstalled(
    host: Host, wheels: Path
) -> None:
    host.env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    damaged = host.servers / "other" / "server.json"
    damaged.parent.mkdir(parents=True)
    host.servers.parent.chmod(0o700)
    damaged.write_text("{")
    assert (
        "offers no command, as a library does" in host.vsm("install", "pypi:tiny-dep==2.0").stdout
    )
    assert damaged.exists()
    done = host.vsm("uninstall", "other")
    assert (done.returncode, damaged.exists()) == (0, False)
    assert "its record was damaged" in done.stdout


def test_uninstalling_names_the_entries_that_run_it(
    host: Host, wheels: Path, tmp_path: Path
) -> None:
    host.env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    host.install("pypi:tiny-server==1.0")
    program = f"{host.servers}/tiny-server/current/env/bin/tiny-server"
    config = tmp_path / "named.toml"
    entries = {"mine": program, "other": f"{host.servers}/tiny-server-2/x", "bare": "tiny-server"}
    text = "".join(f'[integrations.{k}]\ncommand = ["{v}"]\n' for k, v in entries.items())
    config.write_text(text + "[integrations.wrong]\ncommand = 3\n[policy]\nnonsense = 1\n")
    done = host.vsm("uninstall", "tiny-server", "nosuch")
    assert (done.returncode, done.stdout) == (5, "")
    assert "Installed: tiny-server." in done.stderr  # all of them or none
    done = host.vsm("uninstall", "tiny-server", "--config", str(config))
    (said,) = done.stdout.splitlines()[1:]
    assert said.startswith(f"{config}: [integrations.mine] runs it and cannot start again: remove")
    host.install("pypi:tiny-server==1.0")
    host.env["VSM_CONFIG"] = str(config)
    done = host.vsm("uninstall", "tiny-server", "--json")
    assert json.loads(done.stdout) == {
        "removed": ["tiny-server"],
        "left": [{"file": str(config), "integration": "mine"}],
    }


# -- the command line ------------------------------------------------------------------------------


def test_what_is_no_exact_version_is_refused_at_once(host: Host) -> None:
    done = host.vsm("install", "npm:tiny@latest")
    assert done.returncode == 2
    assert "Write" in done.stderr
    assert host.trees() == set()
