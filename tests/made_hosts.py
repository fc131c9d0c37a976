"""What the trials would find on hosts that are made up."""

from vsm.confinement.cgroup import CgroupFacts
from vsm.confinement.probe import HostFacts

# An ordinary user with user namespaces, Landlock and seccomp, and no control group.
USER = HostFacts(
    kernel="6.18",
    architecture="x86_64",
    uid=1000,
    tier="namespaced",
    namespaces=dict.fromkeys(("user", "mnt", "pid", "ipc", "uts", "net", "cgroup"), True),
    user_namespaces=True,
    root_filesystem=True,
    proc_mount=True,
    landlock_abi=7,
    landlock_scopes=True,
    seccomp=True,
    seccomp_notification=True,
    cgroup=CgroupFacts(reason="nothing is delegated"),
)
