"""Every command against a running vsm with real servers."""

import json
from pathlib import Path

import pytest
from running import Running

CONFIG = Path(__file__).resolve().parents[2] / "demo/vsm.toml"
WORKER_KEYS = {
    "name", "kind", "integration", "state", "pid", "restarts", "uptime_s", "tier", "layers",
    "memory_bytes", "cpu_s", "detail",
}  # fmt: skip


def test_status_has_the_documented_schema(demo: Running) -> None:
    status = demo.status()
    assert {
        "version",
        "pid",
        "ready",
        "panic",
        "uptime_s",
        "endpoint",
        "workers",
        "systems",
    } <= set(status)
    assert status["pid"] == demo.process.pid
    assert status["ready"] is True
    kinds = [worker["kind"] for worker in status["workers"]]
    assert kinds.count("system") == 5
    assert set(kinds) == {"launcher", "template", "journal", "system", "integration"}
    for worker in status["workers"]:
        assert set(worker) >= WORKER_KEYS
        assert worker["state"] == "ready", worker


def test_status_table_shows_every_worker_and_one_worker_its_layers(demo: Running) -> None:
    table = demo.vsm("status")
    assert table.returncode == 0
    assert all(f"\nsystem{n} " in table.stdout for n in range(1, 6))
    one = demo.vsm("status", "time")
    assert "seccomp" in one.stdout
    assert "in force" in one.stdout
    assert "system1" not in one.stdout


def test_tools_are_listed_with_marked_descriptions(demo: Running) -> None:
    done = demo.vsm("tools", "time", "--long")
    assert "time__get_current_time timezone\n  > " in done.stdout
    assert "git__" not in done.stdout
    listed = json.loads(demo.vsm("tools", "--json").stdout)["tools"]
    assert {"time__convert_time", "git__git_log"} <= {tool["name"] for tool in listed}


def test_call_answers(demo: Running) -> None:
    arguments = '{"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}'
    done = demo.vsm("call", "time", "convert_time", arguments)
    assert done.returncode == 0, done.stderr
    assert "T21:00" in done.stdout
    assert all(line.startswith("> ") for line in done.stdout.splitlines())


def test_call_takes_the_public_name_and_arguments_from_stdin(demo: Running) -> None:
    done = demo.vsm(
        "call", "time", "time__get_current_time", "-", "--json", stdin='{"timezone": "UTC"}'
    )
    assert json.loads(done.stdout)["content"][0]["type"] == "text"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("call", "time", "get_current_time", '{"timezone": "Nowhere/Land"}'), 1, "> "),
        (("call", "time", "no_such_tool"), 5, "no tool 'no_such_tool'"),
        (("call", "nobody", "x"), 5, "no such integration"),
        (("call", "time", "get_current_time", "{"), 2, "no JSON"),
        (("status", "nobody"), 5, "no such worker"),
        (("tools", "nobody"), 5, "no such integration"),
        (("logs", "nobody"), 5, "no worker"),
        (("restart", "nobody"), 5, "no integration"),
        (("limit", "nobody"), 5, "no integration"),
        (("audit", "nobody"), 5, "no integration"),
        (("trust", "diff", "nobody"), 5, "no integration"),
        (("approve", "nothing"), 5, "nothing of that id waits"),
        (("deny", "nothing"), 5, "nothing of that id waits"),
        (("dead-letters", "show", "999999"), 5, "there is none"),
        (("limit", "time", "memory"), 2, "no KEY=VALUE"),
        (("log-level", "loud"), 2, "no level 'loud'"),
        (("stop",), 2, "names or --all"),
    ],
)
def test_errors_have_their_exit_code_and_say_what_is_wrong(
    demo: Running, words: tuple[str, ...], code: int, text: str
) -> None:
    done = demo.vsm(*words)
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert done.stdout == ""


def test_call_of_a_stopped_integration_says_why_and_what_to_do(demo: Running) -> None:
    assert demo.vsm("stop", "git").returncode == 0
    try:
        done = demo.vsm("call", "git", "git_status", "{}")
        assert done.returncode == 1
        assert "git is stopped" in done.stderr
        assert "vsm start git" in done.stderr
    finally:
        assert demo.vsm("start", "git").returncode == 0


def test_logs_show_what_a_server_wrote_to_stderr(demo: Running) -> None:
    if "memory" not in {worker["name"] for worker in demo.status()["workers"]}:
        pytest.skip("node servers: not installed")
    done = demo.vsm("logs", "memory")
    assert "Knowledge Graph MCP Server running on stdio" in done.stdout
    assert json.loads(demo.vsm("logs", "memory", "--json").stdout) == done.stdout.splitlines()


def test_doctor_is_content_while_it_runs(demo: Running) -> None:
    findings = {f["check"]: f for f in json.loads(demo.vsm("doctor", "--json").stdout)}
    assert findings["control.sock"]["detail"] == "a vsm is running and answers"
    assert findings["runtime directory"]["result"] == "ok"


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "time"),
        ("tools",),
        ("logs", "time"),
        ("variety",),
        ("board", "dump"),
        ("events",),
        ("decisions",),
        ("calls",),
        ("rules", "--config", str(CONFIG)),
        ("rules", "time", "get_current_time", "{}", "--config", str(CONFIG)),
        ("approvals",),
        ("dead-letters",),
        ("reflect",),
        ("doctor", "--config", str(CONFIG)),
        ("docs",),
        ("docs", "cli"),
        ("profile", "list"),
        ("profile", "show", "integration"),
        ("profile", "check"),
        ("profile", "explain", "integration"),
        ("profile", "diff", "integration", "integration"),
        ("reload",),
        ("log-level", "info"),
        ("limit", "time"),
        ("audit", "time"),
        ("trust",),
        ("trust", "diff", "time"),
        ("service", "apparmor", "--dry-run"),
        ("install",),
        ("outdated",),
        ("sandbox", "probe"),
        ("restart", "time"),
    ],
    ids=" ".join,
)
def test_what_is_listed_is_one_document(demo: Running, words: tuple[str, ...]) -> None:
    done = demo.vsm(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) is not None
    assert done.stdout.isascii()
