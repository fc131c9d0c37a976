"""`vsm service` into an image, and what a service manager sees of `vsm up`."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import VSM, Running, running

from vsm.service import apparmor

BOUND_S = 30.0
UNITS = {"vsm.service", "vsm.socket"}
CONFIG = '[integrations.a]\ncommand = ["/bin/true"]\nenabled = false\n'


@pytest.fixture
def image(test_leaves_nothing: None, tmp_path: Path) -> Path:
    del test_leaves_nothing
    if os.geteuid() != 0:
        pytest.skip("the system's units are root's, in an image as well")
    (tmp_path / "etc/vsm").mkdir(parents=True)
    (tmp_path / "etc/vsm/vsm.toml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


def service(image: Path, action: str, *more: str, code: int = 0) -> str:
    config = ["--config", str(image / "etc/vsm/vsm.toml")] if action == "install" else []
    command = [VSM, "service", action, "--root", str(image), *config, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BOUND_S)
    assert done.returncode == code, done
    return done.stdout + done.stderr


def listing(image: Path) -> set[str]:
    return {str(path.relative_to(image)) for path in image.rglob("*") if not path.is_dir()}


@pytest.fixture
def systemctl() -> None:
    if shutil.which("systemctl") is None:
        pytest.skip("systemctl: not installed")


@pytest.mark.usefixtures("systemctl")
def test_install_is_idempotent_and_uninstall_leaves_nothing(image: Path) -> None:
    before = listing(image)
    service(image, "install")
    installed = listing(image) - before
    assert {Path(path).name for path in installed} == UNITS
    assert "etc/systemd/system/multi-user.target.wants/vsm.service" in installed
    assert "etc/systemd/system/sockets.target.wants/vsm.socket" in installed
    assert "nothing to do" in service(image, "install")
    service(image, "uninstall")
    assert listing(image) == before
    assert "nothing to do" in service(image, "uninstall")


@pytest.mark.usefixtures("systemctl")
def test_systemd_finds_no_fault_with_the_units(image: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze: not installed")
    service(image, "install")
    units = [str(image / "etc/systemd/system" / name) for name in sorted(UNITS)]
    command = ["systemd-analyze", "verify", "--man=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BOUND_S)
    assert "vsm." not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_dry_run_shows_both_units_and_writes_nothing(image: Path) -> None:
    before = listing(image)
    said = service(image, "install", "--dry-run")
    assert "WatchdogSec=" in said
    assert "ListenStream=" in said
    assert listing(image) == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[integrations.a]\ncomand = []\n", "comand"),
        ('[integrations.a]\ncommand = ["x"]\nprofile = "nope"\n', "nope"),
        (None, "there is no such file"),
    ],
)
def test_what_could_not_start_is_not_installed(image: Path, text: str | None, says: str) -> None:
    path = image / "etc/vsm/vsm.toml"
    path.unlink() if text is None else path.write_text(text, encoding="utf-8")
    before = listing(image)
    assert says in service(image, "install", code=2)
    assert listing(image) == before


@pytest.mark.usefixtures("systemctl")
def test_a_missing_credential_is_named_until_it_is_there(image: Path) -> None:
    secret = 'secrets = { KEY = { credential = "a-key" } }\n'
    integration = CONFIG.replace("enabled = false\n", secret)
    (image / "etc/vsm/vsm.toml").write_text(integration, encoding="utf-8")
    assert "credential a-key is missing" in service(image, "install")
    (image / "etc/credstore").mkdir()
    (image / "etc/credstore/a-key").touch()
    assert "credential" not in service(image, "install")


def test_a_unit_of_somebody_else_is_not_touched(image: Path) -> None:
    folder = image / "etc/systemd/system"
    folder.mkdir(parents=True)
    (folder / "vsm.socket").write_text("[Socket]\n", encoding="utf-8")
    before = listing(image)
    for action in ("install", "uninstall"):
        assert "was not written by vsm" in service(image, action, code=1)
    assert listing(image) == before


def test_the_apparmor_profile_is_written_once_and_removed(image: Path) -> None:
    before = listing(image)
    said = service(image, "apparmor", "--dry-run")
    assert "  userns,\n" in said
    assert listing(image) == before
    service(image, "apparmor")
    assert listing(image) - before == {"etc/apparmor.d/vsm"}
    text = (image / "etc/apparmor.d/vsm").read_text(encoding="utf-8")
    assert f'profile vsm "{VSM}" flags=(unconfined)' in text
    assert "nothing to do" in service(image, "apparmor")
    service(image, "apparmor", "--remove")
    assert listing(image) == before


def test_a_profile_of_somebody_else_is_not_touched(image: Path) -> None:
    path = image / "etc/apparmor.d/vsm"
    path.parent.mkdir()
    path.write_text("profile vsm {}\n", encoding="utf-8")
    for words in ((), ("--remove",)):
        assert "was not written by vsm" in service(image, "apparmor", *words, code=1)
    assert path.read_text(encoding="utf-8") == "profile vsm {}\n"


def test_where_nothing_is_restricted_no_profile_is_written() -> None:
    path = Path("/etc/apparmor.d/vsm")
    if apparmor.may_restrict() or path.exists() or os.geteuid() != 0:
        pytest.skip("apparmor: this host may restrict user namespaces, or a user runs this")
    done = subprocess.run(
        [VSM, "service", "apparmor"], capture_output=True, text=True, check=False, timeout=BOUND_S
    )
    assert (done.returncode, path.exists()) == (0, False)
    assert "does not restrict" in done.stderr


# ---- what the manager sees -----------------------------------------------------------------------


# As sd_listen_fds(3) wants it: descriptors from 3 on, for this process.
HAND_OVER = """
import json, os, sys
given = json.loads(sys.argv[1])
for number, (_, fd) in enumerate(given):
    os.dup2(fd, 100 + number, inheritable=False)
for number in range(len(given)):
    os.dup2(100 + number, 3 + number, inheritable=True)
if given:
    names = ":".join(name for name, _ in given)
    os.environ.update(LISTEN_FDS=str(len(given)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=names)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """A `vsm up` under a service manager that is this test."""

    def __init__(self, folder: Path, config: Path, **environment: str) -> None:
        self.folder = folder
        self.heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.heard.bind(str(folder / "n"))
        self.heard.settimeout(BOUND_S)
        self.listening: list[socket.socket] = []
        self.stored: list[tuple[str, int]] = []
        self.config = config
        self.environment = os.environ | {
            "VSM_RUNTIME_DIR": str(folder / "run"),
            "VSM_STATE_DIR": str(folder / "state"),
            "NOTIFY_SOCKET": str(folder / "n"),
            **environment,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, http: str) -> "subprocess.Popen[bytes]":
        """Exec it, with the sockets as descriptors 3 and on."""
        given = [("vsm.socket", sock.fileno()) for sock in self.listening] + self.stored
        words = [VSM, "up", "--http", http, "--config", str(self.config)]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", HAND_OVER, json.dumps(given), *words],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=[fd for _, fd in given],
            )  # fmt: skip
        return self.process

    def wait(self, line: str) -> list[str]:
        """Everything up to a datagram that holds the line."""
        got: list[str] = []
        end = time.monotonic() + BOUND_S
        while not any(one.startswith(line) for one in got[-8:]):
            assert time.monotonic() < end, (got, self.log())
            got += self.hear()
        return got

    def hear(self) -> list[str]:
        """The lines of one datagram; what it stores or takes out of the store is done."""
        said, fds, _, _ = socket.recv_fds(self.heard, 4096, 64)
        lines = said.decode().split("\n")
        name = next((line[7:] for line in lines if line.startswith("FDNAME=")), "")
        if "FDSTORE=1" in lines:
            self.stored += [(name, fd) for fd in fds]
        elif "FDSTOREREMOVE=1" in lines:
            for gone in [one for one in self.stored if one[0] == name]:
                self.stored.remove(gone)
                os.close(gone[1])
        return lines

    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        for sock in (self.heard, *self.listening):
            sock.close()
        for _, fd in self.stored:
            os.close(fd)
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def manager(test_leaves_nothing: None, runtime_dir: Path, image: Path) -> Iterator[Manager]:
    del test_leaves_nothing
    manager = Manager(
        runtime_dir.parent, image / "etc/vsm/vsm.toml", WATCHDOG_USEC="400000", LANG="C"
    )
    yield manager
    manager.close()


def test_the_manager_hears_ready_status_watchdog_reload_and_stop(manager: Manager) -> None:
    process = manager.start("")
    manager.wait("READY=1")
    manager.wait("WATCHDOG=1")
    process.send_signal(signal.SIGHUP)
    said = manager.wait("RELOADING=1")
    assert any(line.startswith("MONOTONIC_USEC=") for line in said)
    manager.wait("READY=1")
    process.send_signal(signal.SIGTERM)
    manager.wait("STOPPING=1")
    assert process.wait(BOUND_S) == 0


def test_a_supervisor_that_does_not_turn_does_not_feed_the_watchdog(manager: Manager) -> None:
    process = manager.start("")
    manager.wait("READY=1")
    manager.wait("WATCHDOG=1")
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    manager.heard.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while manager.heard.recv(4096):  # what was sent before
            pass
    manager.heard.settimeout(0.6)
    with pytest.raises(TimeoutError):
        manager.heard.recv(4096)
    process.send_signal(signal.SIGCONT)
    manager.heard.settimeout(BOUND_S)
    manager.wait("WATCHDOG=1")
    process.send_signal(signal.SIGTERM)
    assert process.wait(BOUND_S) == 0


def test_listeners_of_the_manager_are_served_and_left_to_it(manager: Manager) -> None:
    run = manager.folder / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    http = socket.create_server(("127.0.0.1", 0))
    local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    local.bind(str(run / "mcp.sock"))
    local.listen()
    manager.listening = [http, local]
    address = f"127.0.0.1:{http.getsockname()[1]}"
    process = manager.start(address)
    manager.wait("READY=1")
    done = subprocess.run(
        [VSM, "tools", "--json"], env=manager.environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with socket.create_connection(http.getsockname(), BOUND_S) as client:
        client.sendall(f"GET /mcp HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        assert b"401" in client.recv(4096)
    process.send_signal(signal.SIGTERM)
    assert process.wait(BOUND_S) == 0
    assert (run / "mcp.sock").is_socket()
    socket.create_connection(http.getsockname(), BOUND_S).close()  # it still listens


def test_counts_and_listeners_survive_a_kill_of_the_supervisor(manager: Manager) -> None:
    http = socket.create_server(("127.0.0.1", 0))
    manager.listening = [http]
    address = f"127.0.0.1:{http.getsockname()[1]}"
    process = manager.start(address)
    manager.wait("READY=1")
    ask_for_nothing(manager, times=3)
    assert counted(manager) == 3
    process.kill()
    process.wait()
    manager.heard.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while manager.hear():
            pass
    manager.heard.settimeout(BOUND_S)
    (first,) = {name for name, _ in manager.stored}
    process = manager.start(address)  # the listener and the store, in one row
    manager.wait("READY=1")
    while first in {name for name, _ in manager.stored}:  # until the successor's board is there
        manager.hear()
    ask_for_nothing(manager, times=1)
    assert counted(manager) == 4, manager.log()
    assert len({name for name, _ in manager.stored}) == 1
    assert "counts kept" in manager.log()
    process.send_signal(signal.SIGTERM)
    assert process.wait(BOUND_S) == 0


def ask_for_nothing(manager: Manager, *, times: int) -> None:
    """Call what nobody offers: it is counted, and no server has to run."""
    client = {"name": "test", "version": "1"}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}
    asked = [("initialize", hello)] + [("tools/call", {"name": "no", "arguments": {}})] * times
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(BOUND_S)
        sock.connect(str(manager.folder / "run/mcp.sock"))
        with sock.makefile("rwb") as lines:
            for number, (method, params) in enumerate(asked):
                frame = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
                lines.write(json.dumps(frame).encode() + b"\n")
                lines.flush()
                assert json.loads(lines.readline())["id"] == number


def counted(manager: Manager) -> int:
    """What `vsm variety` knows of, read through S4."""
    done = subprocess.run(
        [VSM, "variety", "--json"], env=manager.environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    events: int = json.loads(done.stdout)["since_start"]["events"]
    return events


def test_a_listener_that_belongs_elsewhere_is_refused(manager: Manager) -> None:
    manager.listening = [socket.create_server(("127.0.0.1", 0))]
    assert manager.start("").wait(BOUND_S) == 2
    assert "vsm service install" in manager.log()


# ---- what goes wrong around it -------------------------------------------------------------------


def journal_trouble(vsm: Running) -> None:
    end = time.monotonic() + BOUND_S
    while "journal: cannot write" not in vsm.log():
        assert time.monotonic() < end, vsm.log()
        time.sleep(0.02)
    assert json.loads(vsm.vsm("status", "--json").stdout)["ready"]


def test_a_state_directory_that_cannot_be_used_stops_no_service(
    test_leaves_nothing: None, tmp_path: Path
) -> None:
    del test_leaves_nothing
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "state").mkdir()
    (folder / "state").chmod(0o777)
    with running(None, again=folder) as vsm:
        journal_trouble(vsm)
        assert vsm.stop() == 0


def test_a_full_disk_stops_no_service(
    test_leaves_nothing: None, tmp_path: Path, require: Callable[[str, bool, str], None]
) -> None:
    del test_leaves_nothing
    folder = tmp_path / "f"
    (folder / "state").mkdir(parents=True)
    require("tmpfs", os.geteuid() == 0, "only root can mount a small one")
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", str(folder / "state")]
    subprocess.run(mount, check=True)
    try:
        fill(folder / "state/filler")
        with running(None, again=folder) as vsm:
            journal_trouble(vsm)
            (folder / "state/filler").unlink()
            wait_recorded(vsm, "vsm.started", "journal.trouble_over")  # what waited, too
            assert vsm.stop() == 0
    finally:
        subprocess.run(["umount", "-l", str(folder / "state")], check=True)


def wait_recorded(vsm: Running, *kinds: str) -> None:
    """Until there are events of each kind."""
    end = time.monotonic() + BOUND_S
    while True:
        done = vsm.vsm("events", "--json")
        found = {row["kind"] for row in json.loads(done.stdout)} if done.returncode == 0 else set()
        if found.issuperset(kinds):
            return
        assert time.monotonic() < end, f"{found} {done.stderr}\n{vsm.log()}"


def fill(path: Path) -> None:
    """Write until nothing fits."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


def test_what_can_never_serve_ends_with_the_reason(
    test_leaves_nothing: None, runtime_dir: Path, image: Path
) -> None:
    del test_leaves_nothing
    (image / "broken.toml").write_text('extends = "system4"\nnope = 1\n', encoding="utf-8")
    config = image / "etc/vsm/vsm.toml"
    config.write_text(f'[systems]\nsystem4 = "{image}/broken.toml"\n', encoding="utf-8")
    command = [VSM, "up", "--http", "", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BOUND_S)
    assert done.returncode == 1
    assert "vsm: system4: cannot run here" in done.stderr
    assert "nope" in done.stderr.splitlines()[-1]
    assert not (runtime_dir / "control.sock").exists()


# ---- a kernel without a layer --------------------------------------------------------------------

# Has the kernel answer ENOSYS to some calls, as one that never had them, and goes on as vsm.
LACKING = """
import ctypes, errno, json, os, struct, sys
numbers = json.loads(sys.argv[1])
row = struct.Struct("=HBBI").pack
rows = [row(0x20, 0, 0, 0)]
rows += [row(0x15, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
rows += [row(0x06, 0, 0, 0x7FFF0000), row(0x06, 0, 0, 0x50000 | errno.ENOSYS)]
code = ctypes.create_string_buffer(b"".join(rows))
program = struct.pack("=HxxxxxxQ", len(rows), ctypes.addressof(code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
os.execv(sys.argv[2], sys.argv[2:])
"""
LANDLOCK, MOUNTING = [444, 445, 446], [428, 429, 430, 431, 432, 442]


def lacking(calls: list[int], *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", LACKING, json.dumps(calls), VSM, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=BOUND_S)


@pytest.mark.parametrize(
    ("calls", "layer", "remedy"),
    [
        (LANDLOCK, "landlock", "Boot a kernel with Landlock"),
        (MOUNTING, "root_filesystem", "Run vsm as root"),
    ],
)
def test_a_kernel_without_a_layer_is_described_with_the_remedy(
    calls: list[int], layer: str, remedy: str
) -> None:
    rows = json.loads(lacking(calls, "sandbox", "probe", "--json").stdout)["layers"]
    (row,) = [row for row in rows if row["layer"] == layer]
    assert row["state"] != "works"
    assert remedy in row["remedy"]


def test_vsm_does_not_serve_where_a_required_layer_is_missing(
    test_leaves_nothing: None, runtime_dir: Path
) -> None:
    del test_leaves_nothing
    done = lacking(LANDLOCK, "up", "--http", "")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "cannot run here: the layer landlock cannot be applied. Boot with landlock" in last
    assert ".." not in last
    assert "Traceback" not in done.stderr
    assert os.listdir(runtime_dir) == []
