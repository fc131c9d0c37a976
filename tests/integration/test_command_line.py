"""The command line as a process, where no vsm is running."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from running import VSM

SLOW_IMPORTS = {"pydantic", "numpy", "mcp", "asyncio", "msgspec", "structlog"}


def _vsm(*words: str, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [VSM, *words], capture_output=True, text=True, timeout=60, check=False, **options
    )  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    "words",
    [("status",), ("tools",), ("stop", "time"), ("logs", "time"), ("panic",), ("call", "a", "b")],
)
def test_without_a_running_vsm_the_exit_code_is_4(
    runtime_dir: Path, words: tuple[str, ...]
) -> None:
    done = _vsm(*words)
    assert done.returncode == 4
    assert done.stdout == ""
    assert done.stderr.startswith(f"vsm: {runtime_dir}/")
    assert "Start it with `vsm up`" in done.stderr


def test_stale_socket_counts_as_not_running(runtime_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(runtime_dir / "control.sock"))
    done = _vsm("status")
    assert done.returncode == 4
    assert "no vsm is running" in done.stderr
    findings = {item["check"]: item for item in json.loads(_vsm("doctor", "--json").stdout)}
    assert findings["control.sock"]["result"] == "warn"
    assert "stale" in findings["control.sock"]["detail"]
    assert findings["mcp.sock"]["result"] == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_socket_of_another_user_is_refused(runtime_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(runtime_dir / "control.sock"))
        server.listen()
        os.chown(runtime_dir / "control.sock", 65534, 65534)
        done = _vsm("status")
    assert done.returncode == 1
    assert "belongs to uid 65534" in done.stderr


def test_runtime_directory_may_be_longer_than_a_socket_address(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = scratch / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    monkeypatch.setenv("VSM_RUNTIME_DIR", str(folder))
    done = _vsm("status")
    assert done.returncode == 4
    assert "no vsm is running" in done.stderr
    folder.rmdir()
    folder.parent.rmdir()


def _answer_with(runtime_dir: Path, answer: bytes) -> "subprocess.CompletedProcess[str]":
    """What `vsm status` makes of a supervisor that answers with these bytes."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(runtime_dir / "control.sock"))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        done = _vsm("status", "--json")
        thread.join(10)
    return done


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        (b"", 1, "without an answer"),
        (b"garbage\n", 1, "no JSON"),
        (b'{"ok": true, "result": {"workers": []}}\n', 0, ""),
        (
            (
                b'{"ok": false, "error": {"where": "w", "what": "x", "remedy": "Do y.",'
                b'"exit_code": 5}}\n'
            ),
            5,
            "vsm: w: x. Do y.",
        ),
    ],
)
def test_every_answer_of_the_supervisor_is_understood(
    runtime_dir: Path, answer: bytes, code: int, text: str
) -> None:
    done = _answer_with(runtime_dir, answer)
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    if code == 0:
        assert json.loads(done.stdout) == {"workers": []}


def test_status_imports_nothing_slow(runtime_dir: Path) -> None:
    del runtime_dir
    probe = (
        "import sys; from vsm.cli import main; main(['status']);"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert not SLOW_IMPORTS & set(done.stdout.split())


def test_reader_that_goes_away_is_no_traceback() -> None:
    with subprocess.Popen(
        [VSM, "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr
        assert "Traceback" not in process.stderr.read()


def test_doctor_finds_a_wrong_configuration(scratch: Path) -> None:
    config = scratch / "vsm.toml"
    config.write_text('[integrations.a]\ncommand = ["no-such-command"]\n', encoding="utf-8")
    done = _vsm("doctor", "--config", str(config), "--json")
    config.unlink()
    findings = {item["check"]: item for item in json.loads(done.stdout)}
    assert done.returncode == 1
    assert findings["integration a"]["result"] == "fail"
    assert "no-such-command" in findings["integration a"]["detail"]
    assert findings["integration a"]["remedy"]
    assert findings["python"]["result"] == "ok"


def test_doctor_finds_a_working_directory_that_is_not_there(scratch: Path) -> None:
    config = scratch / "vsm.toml"
    config.write_text(
        '[integrations.a]\ncommand = ["/bin/true"]\ncwd = "./missing"\n'
        '[integrations.b]\ncommand = ["/bin/true"]\ncwd = "."\n'
    )
    done = _vsm("doctor", "--config", str(config), "--json")
    config.unlink()
    findings = {item["check"]: item for item in json.loads(done.stdout)}
    assert findings["integration a"]["result"] == "fail"
    assert "integrations.a.cwd: no folder " in findings["integration a"]["detail"]
    assert "correct the path" in findings["integration a"]["remedy"]
    assert findings["integration b"]["result"] == "ok"


def test_doctor_warns_of_grants_that_include_vsms_own_folders(
    runtime_dir: Path, scratch: Path
) -> None:
    narrow = scratch / "papers"
    narrow.mkdir()
    config = scratch / "vsm.toml"
    config.write_text(
        f'[integrations.wide]\ncommand = ["/bin/true"]\nread = ["{runtime_dir.parent}"]\n'
        f'[integrations.narrow]\ncommand = ["/bin/true"]\nread = ["{narrow}"]\n'
    )
    done = _vsm("doctor", "--config", str(config), "--json")
    config.unlink()
    narrow.rmdir()
    grants = [item for item in json.loads(done.stdout) if item["check"].startswith("grants")]
    assert {(item["check"], item["result"]) for item in grants} == {("grants wide", "warn")}
    assert len(grants) == 2  # the runtime directory and the state directory
    assert all(str(runtime_dir.parent) in item["detail"] for item in grants)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[gateway]\nhtpp = 1\n", "http"),
        ("[integrations.a]\ncommand = 'x'\n", "command"),
        ("[", "vsm.toml"),
    ],
)
def test_up_refuses_a_wrong_configuration(scratch: Path, text: str, part: str) -> None:
    config = scratch / "vsm.toml"
    config.write_text(text, encoding="utf-8")
    done = _vsm("up", "--config", str(config))
    config.unlink()
    assert done.returncode == 2
    assert done.stderr.startswith(f"vsm: {config}")
    assert part in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["0.0.0.0:8765", ":8765", "example.com:80", "here"])
def test_up_listens_on_no_address_that_vsm_toml_may_not_name(address: str) -> None:
    done = _vsm("up", "--http", address)
    assert done.returncode == 2
    assert done.stderr.startswith("vsm: --http: ")
    assert "127.0.0.1" in done.stderr


@pytest.mark.parametrize("words", [("docs", "policy"), ("docs", "--json"), ("profile", "--help")])
def test_output_that_finds_no_room_is_said_in_one_line(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [VSM, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"vsm: {words[0]}: No space left on device. ")
    assert len(done.stderr.splitlines()) == 1


def test_what_the_locale_has_no_character_for_is_escaped(scratch: Path) -> None:
    done = _vsm("docs", "policy", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xb5s" in done.stdout
    profile = scratch / os.fsdecode(b"\xff.toml")
    profile.write_text('extends = "integration"\ntier = "namespaced"\n')
    done = _vsm("profile", "check", str(profile))
    profile.unlink()
    assert (done.returncode, done.stdout) == (0, f"{scratch}/\\udcff.toml: ok\n")


@pytest.mark.parametrize("words", [("sandbox", "run", "--", "true"), ("up", "--config", "x")])
def test_a_directory_that_was_removed_is_named_as_that(
    scratch: Path, words: tuple[str, ...]
) -> None:
    gone = scratch / "gone"
    gone.mkdir()
    script = ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(gone), VSM, *words]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "the directory that it runs in was removed. `cd` to another." in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "missing"), [(("limit",), "NAME"), (("trust", "approve"), "NAME")]
)
def test_only_what_is_required_is_said_to_be(words: tuple[str, ...], missing: str) -> None:
    done = _vsm(*words)
    assert f"the following arguments are required: {missing}. `vsm" in done.stderr


@pytest.mark.parametrize(
    ("file", "what"),
    [("", "is a folder"), ("missing/x", "there is no folder"), ("file/x", "there is no folder")],
)
def test_file_that_could_not_be_written_is_refused_before_the_work(
    tmp_path: Path, file: str, what: str
) -> None:
    (tmp_path / "file").touch()
    marker = tmp_path / "ran"
    output = str(tmp_path / file)
    write = ("--write", str(tmp_path), "--", "touch", str(marker))
    done = _vsm("profile", "learn", "integration", "--output", output, *write)
    assert (done.returncode, what in done.stderr) == (2, True), done.stderr
    assert done.stderr.startswith("vsm: --output: ")
    assert not marker.exists()
    done = _vsm("sandbox", "audit", "--accepted", output, "--accept")
    assert (done.returncode, what in done.stderr) == (2, True), done.stderr


def test_links_in_a_circle_are_a_path_that_does_not_exist(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    done = _vsm("sandbox", "run", "--read", str(loop), "--", "true")
    assert done.returncode == 2
    assert done.stderr == f"vsm: sandbox run: {loop} does not exist. Correct the path.\n"
