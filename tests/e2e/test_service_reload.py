"""`vsm reload` and SIGHUP on a real `vsm up` with small servers of the tests' own."""

import concurrent.futures
import json
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from running import Running, running

SERVER = Path(__file__).resolve().parents[1] / "servers/echo_legacy.py"
PYTHON = "/usr/bin/python3"
BOUND_S = 20.0


class Toml:
    """A vsm.toml that is edited while vsm runs."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "vsm.toml"
        self.profile = folder / "small.toml"
        self.profile.write_text(
            'extends = "python-server"\ndescription = "for tests"\n', encoding="utf-8"
        )

    def write(self, *, gateway: str = "", **more: str) -> None:
        tables = [_table(name, lines) for name, lines in more.items()]
        beside = self.path.with_suffix(".new")  # as editors do: a reload may read meanwhile
        beside.write_text("\n".join([gateway, *tables]), encoding="utf-8")
        beside.replace(self.path)


def _table(name: str, lines: str) -> str:
    profile = "" if "profile" in lines else "profile = 'python-server'"
    command, folder = json.dumps([PYTHON, str(SERVER)]), json.dumps(str(SERVER.parent))
    head = f"[integrations.{name}]\ncommand = {command}\nread = [{folder}]"
    return f"{head}\n{profile}\n{lines}\n"


@pytest.fixture
def toml(test_leaves_nothing: None, tmp_path: Path) -> Toml:
    del test_leaves_nothing
    return Toml(tmp_path)


def reload(vsm: Running, code: int = 0) -> dict[str, dict[str, Any]]:
    done = vsm.vsm("reload", "--json")
    assert done.returncode == code, (done.stdout, done.stderr)
    return {row["name"]: row for row in json.loads(done.stdout)["changes"]}


def pids(vsm: Running) -> dict[str, int | None]:
    rows = vsm.status()["workers"]
    return {row["name"]: row["pid"] for row in rows if row["kind"] == "integration"}


def call(vsm: Running, name: str) -> int:
    return vsm.vsm("call", name, "echo", '{"text": "x"}').returncode


def wait_log(vsm: Running, text: str, count: int = 1) -> None:
    end = time.monotonic() + BOUND_S
    while vsm.log().count(text) < count:
        assert time.monotonic() < end, vsm.log()
        time.sleep(0.01)


def test_each_difference_is_applied_and_the_rest_is_left_alone(toml: Toml) -> None:
    toml.write(kept="", gone="", changed="", off="")
    with running(toml.path) as vsm:
        assert [call(vsm, name) for name in ("kept", "gone", "changed", "off")] == [0] * 4
        before = pids(vsm)
        toml.write(
            kept="", changed='env = { A = "1" }', off="enabled = false", fresh="", timed="",
            gateway='[gateway]\nauth = "none"\n',
        )  # fmt: skip
        rows = reload(vsm)
        assert {name: row["outcome"] for name, row in rows.items()} == {
            "gateway.auth": "not applied",
            "gone": "removed",
            "changed": "replaced",
            "off": "stopped",
            "fresh": "ready",
            "timed": "ready",
        }
        assert rows["changed"]["keys"] == ["env"]
        after = pids(vsm)
        assert after["kept"] == before["kept"]
        assert after["changed"] != before["changed"]
        assert "gone" not in after
        assert after["off"] is None
        assert [call(vsm, name) for name in ("kept", "changed", "fresh")] == [0] * 3
        assert call(vsm, "gone") == 5
        assert "gone__" not in vsm.vsm("tools").stdout
        # What needs a restart of vsm is said each time.
        assert list(reload(vsm)) == ["gateway.auth"]
        assert vsm.stop() == 0


WRONG = [
    ("this is no toml", "vsm.toml"),
    ("[integrations.a]\ncomand = ['x']\n", "integrations.a.*comand.*command"),
    ("[integrations.a]\ncommand = ['/nonexistent/server']\n", "integrations.a.*nonexistent"),
    ("[integrations.a]\ncommand = ['/bin/true']\nprofile = 'nope'\n", "nope"),
    (
        "integrations.a = { command = ['/bin/true'], secrets = { K = { file = '/nope' } } }",
        "integrations.a.*nope",
    ),
    ("[gateway]\nhttp = '0.0.0.0:1'\n", "gateway.http"),
]


def test_a_wrong_file_changes_nothing_and_says_why(toml: Toml) -> None:
    toml.write(kept="")
    with running(toml.path) as vsm:
        assert call(vsm, "kept") == 0
        before = pids(vsm)
        for edit, says in WRONG:
            toml.path.write_text(edit, encoding="utf-8")
            done = vsm.vsm("reload")
            assert done.returncode != 0, edit
            assert re.search(says, done.stderr), done.stderr
        vsm.process.send_signal(signal.SIGHUP)
        wait_log(vsm, "not reloaded, nothing changed")
        assert pids(vsm) == before
        assert call(vsm, "kept") == 0
        assert vsm.stop() == 0


def test_limits_move_under_a_running_worker(toml: Toml) -> None:
    def limit(memory: str) -> None:
        toml.profile.write_text(
            f'extends = "python-server"\ndescription = "d"\n[limits]\nmemory = "{memory}"\n',
            encoding="utf-8",
        )

    limit("200M")
    toml.write(a='profile = "./small.toml"')
    with running(toml.path) as vsm:
        assert call(vsm, "a") == 0
        before = pids(vsm)
        limit("300M")
        row = reload(vsm)["a"]
        if row["outcome"] == "not applied" and "control group" in row["detail"]:
            pytest.skip(f"cgroups: {row['detail']}")
        assert (row["outcome"], row["keys"]) == ("changed", ["profile.limits.memory_bytes"])
        assert pids(vsm) == before
        assert str(300 << 20) in _memory_limits(before["a"])
        assert reload(vsm) == {}
        assert vsm.vsm("limit", "a", "memory=250M").returncode == 0
        assert reload(vsm) == {}  # what a command set is no difference
        assert str(250 << 20) in _memory_limits(before["a"])
        assert vsm.stop() == 0


def _memory_limits(pid: int | None) -> set[str]:
    """What the files of the worker's groups say."""
    found = set()
    for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii").splitlines():
        for name in ("memory.max", "memory.limit_in_bytes"):
            for mounted in ("/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"):
                path = Path(mounted + line.split(":", 2)[2], name)
                if path.exists():
                    found.add(path.read_text(encoding="ascii").strip())
    return found


def test_no_call_is_dropped_on_an_integration_that_is_not_changed(toml: Toml) -> None:
    toml.write(kept="", other="")
    with running(toml.path) as vsm:
        assert call(vsm, "kept") == 0
        stop = threading.Event()

        def calls() -> list[int]:
            codes = []
            while not stop.is_set():
                codes.append(call(vsm, "kept"))
            return codes

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(calls) for _ in range(2)]
            outcomes: list[str] = []
            for number in range(3):
                toml.write(kept="", other=f'env = {{ A = "{number}" }}')
                outcomes.append(reload(vsm)["other"]["outcome"])
            stop.set()
            codes = [code for future in futures for code in future.result()]
        assert set(outcomes) <= {"ready", "replaced"}  # where it did not serve yet: started
        assert codes
        assert set(codes) == {0}
        assert vsm.stop() == 0


def test_a_storm_of_signals_is_a_few_reloads(toml: Toml) -> None:
    toml.write(a="")
    with running(toml.path) as vsm:
        assert call(vsm, "a") == 0
        before = pids(vsm)
        for _ in range(500):
            vsm.process.send_signal(signal.SIGHUP)
        toml.write(a="", b="")
        vsm.process.send_signal(signal.SIGHUP)
        wait_log(vsm, "reloaded")
        end = time.monotonic() + BOUND_S
        while "b" not in pids(vsm):  # the last signal's reload may be still to come
            assert time.monotonic() < end, vsm.log()
        assert call(vsm, "b") == 0
        assert pids(vsm)["a"] == before["a"]
        assert vsm.log().count("reloaded") < 250
        assert vsm.stop() == 0


def test_removed_and_brought_back_while_it_drains(toml: Toml) -> None:
    toml.write(a="", b="")
    with running(toml.path) as vsm:
        assert call(vsm, "a") == 0
        toml.write(b="")
        assert vsm.vsm("reload", "--no-wait").returncode == 0
        toml.write(a="", b="")
        assert reload(vsm).get("a", {"outcome": "ready"})["outcome"] == "ready"
        assert call(vsm, "a") == 0
        assert vsm.stop() == 0


def test_integration_that_comes_and_goes_is_an_oscillation_and_the_operator_hears_of_it(
    toml: Toml,
) -> None:
    few = "[coordination]\nreversals = 2"
    toml.write(gateway=few, a="")
    with running(toml.path) as vsm:
        for more in ({"b": ""}, {}, {"b": ""}):
            toml.write(gateway=few, a="", **more)
            reload(vsm)
        wait_log(vsm, "acquisition went to and fro 2 times")
        words = ("decisions", "--rule", "coordination.oscillation", "--json")
        end = time.monotonic() + BOUND_S
        while not (found := json.loads(vsm.vsm(*words).stdout)):
            assert time.monotonic() < end, vsm.log()
        choice = "tell the operator and wait for 60 s"
        assert [(one["subject"], one["choice"]) for one in found] == [("b", choice)]
        assert vsm.stop() == 0


def test_without_a_file_there_is_nothing_to_reload() -> None:
    with running(None) as vsm:
        done = vsm.vsm("reload")
        assert done.returncode == 2
        assert "without a file" in done.stderr
        assert vsm.stop() == 0


def test_log_level_moves_at_run_time(toml: Toml) -> None:
    toml.write(a="")
    with running(toml.path) as vsm:
        assert vsm.vsm("log-level", "loud").returncode == 2
        assert "error (was info)" in vsm.vsm("log-level", "error").stdout
        quiet = len(vsm.log())
        assert vsm.vsm("stop", "a").returncode == 0
        assert len(vsm.log()) == quiet
        assert vsm.vsm("log-level", "info").returncode == 0
        assert vsm.vsm("start", "a").returncode == 0
        assert len(vsm.log()) > quiet
        assert vsm.stop() == 0
