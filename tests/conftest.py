"""Fixtures for all tests: leak checks, directories of a test's own, skips that CI forbids.

* Every test in tests/integration, tests/isolation and tests/e2e fails when it leaves a process,
  descriptor, segment, mount, cgroup or temporary file; the whole session is checked as well.
* `runtime_dir`: a fresh directory that `vsm` in this process and its children will use.
* `require(mechanism, present, reason)`: skip where the host lacks a mechanism; with
  VSM_MUST_ISOLATE=1 fail instead.
* `wait_gone(pid)`: wait until a process that is not our child has ended.
"""

import os
import select
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import leaks
import pytest
from hypothesis import HealthCheck, settings

from vsm.confinement.cgroup import detect

CHECKED_FOLDERS = {"integration", "isolation", "e2e"}
# How fast examples come says something about the machine's other work, not about the code.
settings.register_profile("vsm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vsm")

STARTED = pytest.StashKey[Path]()

Require = Callable[[str, bool, str], None]
WaitGone = Callable[..., None]


def pytest_configure(config: pytest.Config) -> None:
    """Own every orphan and every temporary file of this session."""
    leaks.become_subreaper()
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A shell has its background jobs ignore it, and so would all that tests start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # pytest's own folders are kept for a few runs by design: leave them where they were.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    scratch = leaks.make_scratch()
    config.stash[STARTED] = scratch
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the session's temporary directory."""
    shutil.rmtree(config.stash[STARTED], ignore_errors=True)


@pytest.fixture(scope="session")
def scratch(pytestconfig: pytest.Config) -> Path:
    """The TMPDIR of this session."""
    return pytestconfig.stash[STARTED]


def _is_checked(item: pytest.Item) -> bool:
    return not CHECKED_FOLDERS.isdisjoint(item.path.parts)


@pytest.fixture(autouse=True, scope="session")
def session_leaves_nothing(request: pytest.FixtureRequest, scratch: Path) -> Iterator[None]:
    """Fail the session's last test when something outlives all of them."""
    if not any(_is_checked(item) for item in request.session.items):
        yield
        return
    # A group that systemd delegated hands nothing out while we are in it: what tests start would
    # find no limits, unless a test before had moved us.
    detect()
    before = leaks.snapshot(scratch)
    yield
    lines = leaks.leaks_since(before, scratch)
    assert not lines, "left behind by the session:\n" + "\n".join(lines)


@pytest.fixture(autouse=True)
def test_leaves_nothing(
    request: pytest.FixtureRequest, session_leaves_nothing: None, scratch: Path
) -> Iterator[None]:
    """Fail a test that leaves anything; what module and session fixtures started is theirs."""
    del session_leaves_nothing
    if not _is_checked(request.node):
        yield
        return
    before = leaks.snapshot(scratch)
    yield
    lines = leaks.leaks_since(before, scratch)
    assert not lines, "left behind by the test:\n" + "\n".join(lines)


@pytest.fixture
def runtime_dir(
    test_leaves_nothing: None, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A private VSM_RUNTIME_DIR (short enough for socket paths) with a VSM_STATE_DIR beside it.

    What is still in it at the end is checked by nobody: a killed supervisor cannot unlink.
    """
    del test_leaves_nothing
    folder = Path(tempfile.mkdtemp(prefix="r", dir=scratch))
    for variable, name in (("VSM_RUNTIME_DIR", "run"), ("VSM_STATE_DIR", "state")):
        (folder / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(folder / name))
    yield folder / "run"
    shutil.rmtree(folder)


def _require(mechanism: str, present: bool, reason: str) -> None:
    if present:
        return
    text = f"{mechanism}: {reason}"
    if os.environ.get("VSM_MUST_ISOLATE") == "1":
        pytest.fail(f"{text} (VSM_MUST_ISOLATE=1 forbids to skip this)")
    pytest.skip(text)


@pytest.fixture(scope="session")
def require() -> Require:
    """`require("pid namespace", host.has_pid, "unshare gave EPERM")`: skip, or fail in CI."""
    return _require


def _wait_gone(pid: int, *, timeout_s: float = 10.0) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        readable, _, _ = select.select([pidfd], [], [], timeout_s)
    finally:
        os.close(pidfd)
    assert readable, f"process {pid} still runs after {timeout_s} s"


@pytest.fixture(scope="session")
def wait_gone() -> WaitGone:
    """`wait_gone(pid, timeout_s=10)`: wait by pidfd until the process has ended."""
    return _wait_gone
