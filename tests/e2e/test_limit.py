"""`vsm limit` on a real `vsm up`: what moves now, what waits, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from running import Running, running

SERVER = Path(__file__).resolve().parents[1] / "servers/echo_legacy.py"
CONFIG = """
[integrations.a]
command = ["/usr/bin/python3", {server}]
read = [{folder}]
profile = "python-server"
"""


@pytest.fixture
def config(test_leaves_nothing: None, tmp_path: Path) -> Path:
    del test_leaves_nothing
    path = tmp_path / "vsm.toml"
    server, folder = json.dumps(str(SERVER)), json.dumps(str(SERVER.parent))
    path.write_text(CONFIG.format(server=server, folder=folder), encoding="utf-8")
    return path


def worker(vsm: Running) -> dict[str, Any]:
    rows: list[dict[str, Any]] = vsm.status()["workers"]
    return next(row for row in rows if row["kind"] == "integration")


def detail(vsm: Running, layer: str) -> str:
    return next(str(one["detail"]) for one in worker(vsm)["layers"] if one["name"] == layer)


def kernel_value(pid: int, names: tuple[str, ...]) -> set[str]:
    """What the files of the worker's groups say."""
    found = set()
    for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii").splitlines():
        _, kinds, group = line.split(":", 2)
        for mounted in ("", f"/{kinds}", "/unified"):
            for name in names:
                path = Path(f"/sys/fs/cgroup{mounted}{group}", name)
                found |= {path.read_text(encoding="ascii").strip()} if path.exists() else set()
    return found


def limit(vsm: Running, *arguments: str) -> dict[str, str]:
    done = vsm.vsm("limit", "a", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return {row["key"]: row["state"] for row in json.loads(done.stdout)["limits"]}


def said_of(vsm: Running) -> dict[str, str]:
    """What `vsm limit` says of those that are in force and that somebody set."""
    done = vsm.vsm("limit", "a", "--json")
    assert done.returncode == 0, done.stderr
    rows = [row for row in json.loads(done.stdout)["held"] if row["state"] == "in force"]
    return {row["key"]: row["detail"] for row in rows if "set by" in row["detail"]}


def test_limits_move_now_or_from_the_next_start_and_survive_a_restart(config: Path) -> None:
    with running(config) as vsm:
        assert vsm.vsm("call", "a", "echo", '{"text": "x"}').returncode == 0
        before = worker(vsm)["pid"]
        states = limit(vsm, "memory=300M", "processes=40", "open_files=100")
        assert states["open_files"] == "from the next start"
        if states["memory"] != "in force":
            pytest.skip("no control group holds memory here")
        assert worker(vsm)["pid"] == before
        assert detail(vsm, "memory") == "300 MiB, by cgroup, set by command"
        assert "set by" not in detail(vsm, "cpu"), "nobody moved it"
        assert said_of(vsm) == {"memory": "set by command", "processes": "set by command"}
        memory = ("memory.max", "memory.limit_in_bytes")
        assert str(300 << 20) in kernel_value(before, memory)
        assert "40" in kernel_value(before, ("pids.max",))
        assert vsm.vsm("restart", "a").returncode == 0
        after = worker(vsm)["pid"]
        assert after != before
        assert str(300 << 20) in kernel_value(after, memory)
        assert said_of(vsm).keys() == {"memory", "processes", "open_files"}
        limits = Path(f"/proc/{after}/limits").read_text(encoding="ascii")
        assert any(line.split()[3:5] == ["100", "100"] for line in limits.splitlines())
        assert vsm.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("a", "memorie=1M"), 2, "Known: memory"),
        (("a", "instances=2"), 2, "it is no pool"),
        (("a", "memory=much"), 2, "memory"),
        (("a", "cpu=-1"), 2, "cpu"),
        (("a", "memory"), 2, "KEY=VALUE"),
        (("b", "memory=1M"), 5, "no integration 'b'"),
    ],
)
def test_wrong_limits_are_refused_and_nothing_changes(
    limited: Running, arguments: tuple[str, ...], code: int, says: str
) -> None:
    before = worker(limited)["layers"]
    done = limited.vsm("limit", *arguments)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert worker(limited)["layers"] == before


@pytest.fixture(scope="module")
def limited(session_leaves_nothing: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    del session_leaves_nothing
    path = tmp_path_factory.mktemp("limited") / "vsm.toml"
    server, folder = json.dumps(str(SERVER)), json.dumps(str(SERVER.parent))
    path.write_text(CONFIG.format(server=server, folder=folder), encoding="utf-8")
    with running(path) as vsm:
        yield vsm
        assert vsm.stop() == 0
