"""The kernel layer's own tables and refusals; what it does to a process is tested in children."""

import errno
import subprocess
import sys

import pytest

from vsm.linux import landlock, namespaces, seccomp, syscall


@pytest.mark.parametrize(
    ("abi", "has", "lacks"),
    [
        (1, landlock.MAKE_SYM, landlock.REFER),
        (2, landlock.REFER, landlock.TRUNCATE),
        (3, landlock.TRUNCATE, landlock.IOCTL_DEV),
        (4, landlock.TRUNCATE, landlock.IOCTL_DEV),
        (5, landlock.IOCTL_DEV, 1 << 16),
    ],
)
def test_each_landlock_abi_handles_the_rights_it_brought(abi: int, has: int, lacks: int) -> None:
    assert landlock.file_rights(abi) & has
    assert not landlock.file_rights(abi) & lacks


def test_what_an_old_landlock_lacks_is_said_and_a_new_one_still_lacks_some() -> None:
    assert {"TCP", "scopes", "truncate"} <= set(landlock.missing(2))
    assert "TCP" not in landlock.missing(4)
    assert "chmod" in landlock.missing(landlock.KNOWN_ABI)


def test_no_right_to_make_devices_is_ever_granted() -> None:
    assert not landlock.CHANGE & (landlock.MAKE_CHAR | landlock.MAKE_BLOCK)


def test_namespace_flags_are_named() -> None:
    assert namespaces.describe(namespaces.NEWPID | namespaces.NEWNET) == "pid, net"
    assert namespaces.describe(0) == ""


@pytest.mark.parametrize("length", [0, 7, 8 * 4097])
def test_a_malformed_filter_is_refused_before_the_kernel_sees_it(length: int) -> None:
    with pytest.raises(ValueError, match="BPF"):
        seccomp.install(bytes(length))


def test_a_failing_call_names_itself_the_reason_and_the_path() -> None:
    with pytest.raises(OSError, match="open_tree: Bad file descriptor") as failure:
        syscall.call("open_tree", -1, b"", 0x1000, path="/somewhere")
    assert failure.value.errno == errno.EBADF
    assert failure.value.filename == "/somewhere"


def test_a_machine_that_nobody_tested_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = type("Uname", (), {"machine": "sparc"})
    monkeypatch.setattr(syscall.os, "uname", lambda: machine)
    with pytest.raises(OSError, match="unknown machine sparc"):
        syscall.number("clone")


def test_soft_limit_is_widened_within_the_hard_one_and_never_narrowed() -> None:
    code = (
        "import resource; from vsm.linux import rlimits\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))\n"
        "print(*(rlimits.widen('open_files', most) for most in (100, 10, 1000)))\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "100 100 256\n256 256\n"
