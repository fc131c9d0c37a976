"""Workers started in process, in every world: what they are, what is left of them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from confined_worlds import IS_ROOT, WORLDS, ChildFailedError, host, run_confined

from vsm.configuration.profile import load_profile

pytestmark = pytest.mark.isolation
every_world = pytest.mark.parametrize(("who", "tier"), WORLDS, ids=lambda value: value)


@pytest.fixture(autouse=True)
def _world_exists(
    request: pytest.FixtureRequest, require: Callable[[str, bool, str], None]
) -> None:
    parameters = getattr(request.node, "callspec", None)
    if parameters and parameters.params.get("tier") == "namespaced":
        facts = host(parameters.params["who"])
        require("namespaces", facts.tier == "namespaced", str(facts.reasons))


@every_world
@pytest.mark.parametrize(
    ("argv", "output"),
    [
        (["/bin/true"], ""),
        (["/bin/sh", "-c", "echo $((6 * 7))"], "42\n"),
        (["/usr/bin/python3", "-c", "import ssl, asyncio; print(6 * 7)"], "42\n"),
        (["/usr/bin/node", "-e", "console.log(6 * 7)"], "42\n"),
    ],
    ids=["true", "sh", "python", "node"],
)
def test_an_unmodified_program_runs(who: str, tier: str, argv: list[str], output: str) -> None:
    if not Path(argv[0]).exists():
        pytest.skip(f"{argv[0]} is not installed")
    result = run_confined(who, tier, argv)
    assert (result["output"], result["status"], result["left"]) == (
        output,
        0,
        False if (tier == "landlocked") else "",
    )


@every_world
def test_status_and_signal_of_the_server_are_reported(who: str, tier: str) -> None:
    assert run_confined(who, tier, ["/bin/sh", "-c", "exit 7"])["status"] == 7
    killed = run_confined(who, tier, ["/bin/sh", "-c", "kill -9 $$"])
    assert (killed["status"], killed["signal"], killed["cause"]) == (None, 9, "server")


@every_world
def test_the_kernel_says_that_the_server_is_confined(who: str, tier: str) -> None:
    result = run_confined(who, tier, ["/bin/cat", "/proc/self/status"])
    fields = dict(line.split(":\t", 1) for line in result["output"].splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapAmb"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert fields["Umask"] == "0077"
    if tier == "namespaced":
        assert fields["Pid"] == "2"
        assert int(fields["CapBnd"], 16) == 0
    if who == "root":
        assert set(fields["Uid"].split()) == {str(0x7000_1234)}
    assert result["layers"]["landlock"] == result["layers"]["seccomp"] == "in force"


@every_world
def test_the_server_inherits_its_three_fds_and_no_other(who: str, tier: str) -> None:
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        code = "import os; print(sorted(os.listdir('/proc/self/fd')))"
        result = run_confined(who, tier, ["/usr/bin/python3", "-c", code])
    finally:
        os.close(leaked)
    assert result["output"] == "['0', '1', '2', '3']\n"  # 3 is the listing itself


@every_world
def test_the_environment_is_the_plans_alone(
    who: str, tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSM_TEST_SECRET", "leaks")
    result = run_confined(who, tier, ["/usr/bin/env"], env={"GIVEN": "yes"})
    assert "GIVEN=yes" in result["output"]
    assert "leaks" not in result["output"]


@every_world
def test_a_program_that_cannot_be_executed_is_named_with_the_reason(who: str, tier: str) -> None:
    with pytest.raises(ChildFailedError) as failure:
        run_confined(who, tier, ["/usr/bin/no-such-program"])
    kind, text, _ = failure.value.args
    assert kind == "LaunchError"
    assert "cannot exec /usr/bin/no-such-program: No such file" in text


@every_world
def test_a_working_directory_that_is_not_there_is_named(who: str, tier: str) -> None:
    with pytest.raises(ChildFailedError, match="cannot enter /usr/nowhere"):
        run_confined(who, tier, ["/bin/true"], cwd="/usr/nowhere")


@every_world
def test_descendants_do_not_outlive_the_server(who: str, tier: str) -> None:
    # The leak check of this folder fails when the sleepers survive.
    script = "setsid sleep 1000 & (setsid sh -c 'sleep 1001 & sleep 1002' &) ; echo started"
    result = run_confined(who, tier, ["/bin/sh", "-c", f"{{ {script}; }} </dev/null 2>&1"])
    assert (result["output"], result["status"]) == ("started\n", 0)


@every_world
def test_a_granted_folder_is_written_as_its_owner_and_nothing_else_is(who: str, tier: str) -> None:
    folder = Path("/tmp") / f"vsm-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    uid = {"root": 0x7000_1234, "user": 65534}[who] if IS_ROOT else os.geteuid()
    owner = 0 if (who, tier) == ("root", "namespaced") else uid
    try:
        (folder / "given").mkdir()
        (folder / "other").mkdir(mode=0o777)
        (folder / "other").chmod(0o777)
        if IS_ROOT:
            os.chown(folder / "given", owner, owner)
        script = f"echo x > {folder}/given/file; echo y > {folder}/other/file"
        run_confined(who, tier, ["/bin/sh", "-c", script], write=(str(folder / "given"),))
        assert (folder / "given" / "file").read_text() == "x\n"
        assert (folder / "given" / "file").stat().st_uid == owner
        assert not (folder / "other" / "file").exists()
    finally:
        shutil.rmtree(folder)


@every_world
def test_a_read_path_is_not_writable(who: str, tier: str) -> None:
    folder = Path("/tmp") / f"vsm-test-{os.getpid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    (folder / "paper").write_text("text\n")
    (folder / "paper").chmod(0o666)
    try:
        script = f"cat {folder}/paper; echo z > {folder}/paper; echo z > {folder}/new"
        result = run_confined(who, tier, ["/bin/sh", "-c", script], read=(str(folder),))
        assert result["output"].startswith("text\n")
        assert (folder / "paper").read_text() == "text\n"
        assert not (folder / "new").exists()
    finally:
        shutil.rmtree(folder)


def test_loopback_works_inside_a_network_namespace() -> None:
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "c = socket.create_connection(s.getsockname()); c.send(b'x'); print(s.accept()[0].recv(1))"
    )
    for who, tier in WORLDS:
        if tier == host(who).tier:
            result = run_confined(who, tier, ["/usr/bin/python3", "-c", code])
            assert result["output"] == "b'x'\n"


@every_world
def test_no_set_id_program_can_be_planted_on_the_host(who: str, tier: str) -> None:
    folder = Path("/tmp") / f"vsm-test-{os.getpid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    target = folder / "planted"
    uid = {"root": 0x7000_1234, "user": 65534}[who] if IS_ROOT else os.geteuid()
    if IS_ROOT and (who, tier) != ("root", "namespaced"):
        os.chown(folder, uid, uid)
    try:
        script = f"cp /bin/true {target}; chmod 4755 {target}; ls -l {target}"
        result = run_confined(who, tier, ["/bin/sh", "-c", script], write=(str(folder),))
        assert "Operation not permitted" in result["output"]
        assert target.exists()
        assert not target.stat().st_mode & 0o6000
        target.chmod(0o4755)
        assert target.stat().st_mode & 0o4000  # the control: unconfined it works
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(("who", "tier"), WORLDS[:1], ids=lambda value: value)
def test_a_program_finds_the_libraries_beside_it_without_proc(
    who: str, tier: str, tmp_path: Path
) -> None:
    # As interpreters do that may be moved: the linker asks /proc/self/exe what $ORIGIN is.
    place = tmp_path / "place"
    (place / "bin").mkdir(parents=True)
    (place / "one.c").write_text("int one(void) { return 7; }\n")
    (place / "main.c").write_text("int one(void);\nint main(void) { return one(); }\n")
    library, program = place / "libone.so", place / "bin/program"
    words = ["-Wl,-rpath,$ORIGIN/..", f"-L{place}", "-lone"]
    subprocess.run(["cc", "-shared", "-o", library, place / "one.c"], check=True)
    subprocess.run(["cc", "-o", program, place / "main.c", *words], check=True)
    path = tmp_path / "bare.toml"
    path.write_text('extends = "integration"\n[files]\nproc = false\n')
    bare = load_profile(str(path))
    ended = run_confined(who, tier, [str(program)], profile=bare, read=(str(place),))
    assert (ended["status"], ended["output"]) == (7, "")
