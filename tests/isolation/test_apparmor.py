"""An AppArmor that forbids user namespaces: what vsm says, and that its own profile is the remedy.

Ubuntu's switch is not in other kernels, but what it does can be had from a profile: a session under
one that allows all but `userns` hands it on to every program without a profile of its own.
`scripts/kernel-proof` runs this on a stock kernel.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vsm.service import apparmor

pytestmark = pytest.mark.isolation
VSM = str(Path(sys.executable).with_name("vsm"))
NOBODY, BOUND_S = 65534, 300.0
OURS = Path("/", apparmor.FOLDER, apparmor.NAME)
SESSION = "vsm-test-session"
RESTRICTED = f"""abi <abi/4.0>,
profile {SESSION} flags=(attach_disconnected, mediate_deleted) {{
  capability, network, mount, umount, pivot_root, ptrace, signal, unix, mqueue, io_uring,
  / rw,
  /** mrwlkpix,
}}
"""
TRUE = (VSM, "sandbox", "run", "--profile", "integration", "--tier", "namespaced", "--", "true")


def call(
    *command: str, given: str = "", uid: int | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, input=given, capture_output=True, text=True, check=False, timeout=BOUND_S,
        user=uid, group=uid, extra_groups=None if uid is None else [], cwd="/",
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"},
    )  # fmt: skip


def in_session(*command: str) -> "subprocess.CompletedProcess[str]":
    """As an ordinary user under the restriction; the shell is why an attachment counts."""
    shell = ("/bin/sh", "-c", 'exec "$@"', "sh")
    return call("aa-exec", "-p", SESSION, "--", *shell, *command, uid=NOBODY)


@pytest.fixture
def session(test_leaves_nothing: None) -> Iterator[None]:
    """The restriction, until the end of the test."""
    del test_leaves_nothing
    if os.geteuid() != 0 or not apparmor.may_restrict() or not shutil.which("aa-exec"):
        pytest.skip("apparmor: needs root, a kernel that mediates user namespaces, and aa-exec")
    if OURS.exists() or call(VSM, "--version", uid=NOBODY).returncode:
        pytest.skip(f"apparmor: {OURS} is in use, or an ordinary user cannot run {VSM}")
    loaded = call("apparmor_parser", "--replace", "--skip-cache", given=RESTRICTED)
    assert loaded.returncode == 0, loaded.stderr
    yield
    call(VSM, "service", "apparmor", "--remove")
    assert call("apparmor_parser", "--remove", given=RESTRICTED).returncode == 0


@pytest.mark.usefixtures("session")
def test_a_user_without_user_namespaces_gets_them_by_the_shipped_profile_for_vsm_alone() -> None:
    assert in_session("unshare", "--user", "true").returncode != 0
    refused = in_session(*TRUE)
    assert refused.returncode == 3, refused
    assert "namespaces do not work for this user" in refused.stderr
    assert "vsm service apparmor" in remedy()

    written = call(VSM, "service", "apparmor")
    assert written.returncode == 0, written.stderr
    allowed = in_session(*TRUE)
    assert allowed.returncode == 0, allowed.stderr
    assert remedy() == ""
    assert in_session("unshare", "--user", "true").returncode != 0

    assert call(VSM, "service", "apparmor", "--remove").returncode == 0
    assert in_session(*TRUE).returncode == 3


def remedy() -> str:
    rows = json.loads(in_session(VSM, "sandbox", "probe", "--json").stdout)["layers"]
    (row,) = [row for row in rows if row["layer"] == "namespaces"]
    return str(row["remedy"])
