"""Files by which the kernel and the host's services are read or changed: only opened, never used.

The path is the whole attempt, so this is a table. An absent file refuses inside and makes the
control unavailable.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from .base import ATTEMPTS, BUILD_GAP, Attempt, Unavailable, World, attempt

READ, WRITE, LIST = os.O_RDONLY | os.O_NONBLOCK, os.O_WRONLY | os.O_NONBLOCK, os.O_DIRECTORY

# name → (path, how it is opened); all of them are root's
FILES: dict[str, tuple[str, int]] = {
    "physical_memory": ("/dev/mem", READ),
    "io_ports": ("/dev/port", READ),
    "fuse": ("/dev/fuse", os.O_RDWR),
    "tunnel_device": ("/dev/net/tun", os.O_RDWR),
    "loop_control": ("/dev/loop-control", os.O_RDWR),
    "device_mapper": ("/dev/mapper/control", os.O_RDWR),
    "virtual_machines": ("/dev/kvm", os.O_RDWR),
    "vhost_network": ("/dev/vhost-net", os.O_RDWR),
    "vhost_vsock": ("/dev/vhost-vsock", os.O_RDWR),
    "input_injection": ("/dev/uinput", WRITE),
    "console_device": ("/dev/console", WRITE | os.O_NOCTTY),
    "first_terminal": ("/dev/tty1", WRITE | os.O_NOCTTY),
    "dma_latency": ("/dev/cpu_dma_latency", READ),
    "user_io": ("/dev/uio0", READ),
    "device_io": ("/dev/vfio/vfio", os.O_RDWR),
    "graphics": ("/dev/dri/card0", os.O_RDWR),
    "page_fault_device": ("/dev/userfaultfd", os.O_RDWR),
    "serial_console": ("/dev/ttyS0", READ | os.O_NOCTTY),
    "hibernation": ("/dev/snapshot", READ),
    "automounter": ("/dev/autofs", os.O_RDWR),
    "point_to_point_device": ("/dev/ppp", os.O_RDWR),
    "volume_control": ("/dev/btrfs-control", os.O_RDWR),
    "machine_registers": ("/dev/cpu/0/msr", READ),
    "battery_backed_memory": ("/dev/nvram", READ),
    "hardware_clock": ("/dev/rtc0", READ),
    "kernel_core": ("/proc/kcore", READ),
    "kernel_messages": ("/proc/kmsg", READ),
    "kernel_timers": ("/proc/timer_list", READ),
    "kernel_slabs": ("/proc/slabinfo", READ),
    "kernel_allocations": ("/proc/vmallocinfo", READ),
    "page_counts": ("/proc/kpagecount", READ),
    "page_flags": ("/proc/kpageflags", READ),
    "memory_groups_of_pages": ("/proc/kpagecgroup", READ),
    "free_pages": ("/proc/pagetypeinfo", READ),
    "mount_helper_setting": ("/proc/sys/kernel/modprobe", WRITE),
    "address_randomisation_setting": ("/proc/sys/kernel/randomize_va_space", WRITE),
    "overcommit_setting": ("/proc/sys/vm/overcommit_memory", WRITE),
    "forwarding_setting": ("/proc/sys/net/ipv4/ip_forward", WRITE),
    "last_pid_setting": ("/proc/sys/kernel/ns_last_pid", WRITE),
    "namespace_limit_setting": ("/proc/sys/user/max_user_namespaces", WRITE),
    "panic_setting": ("/proc/sys/kernel/panic", WRITE),
    "binary_formats": ("/proc/sys/fs/binfmt_misc/register", WRITE),
    "interrupt_affinity": ("/proc/irq/default_smp_affinity", WRITE),
    "scheduler_of_the_first_process": ("/proc/1/sched", WRITE),
    "score_of_the_first_process": ("/proc/1/oom_score_adj", WRITE),
    "environment_of_the_first_process": ("/proc/1/environ", READ),
    "root_of_the_first_process": ("/proc/1/root/etc/shadow", READ),
    "uevent_helper": ("/sys/kernel/uevent_helper", WRITE),
    "power_state": ("/sys/power/state", WRITE),
    "huge_pages_setting": ("/sys/kernel/mm/transparent_hugepage/enabled", WRITE),
    "security_file_system": ("/sys/kernel/security/lsm", READ),
    "tracing": ("/sys/kernel/tracing", LIST),
    "debugging": ("/sys/kernel/debug", LIST),
    "bpf_file_system": ("/sys/fs/bpf", LIST),
    "network_interfaces": ("/sys/class/net", LIST),
    "block_devices": ("/sys/block", LIST),
    "profiling": ("/sys/kernel/profiling", WRITE),
    "page_sharing": ("/sys/kernel/mm/ksm/run", WRITE),
    "firmware": ("/sys/firmware", LIST),
    "crash_records": ("/sys/fs/pstore", LIST),
    "kernel_objects": ("/sys/kernel/config", LIST),
    "module_parameters": ("/sys/module", LIST),
    "control_groups": ("/sys/fs/cgroup", LIST),
    "password_hashes": ("/etc/shadow", READ),
    "host_keys": ("/etc/ssh", LIST),
    "homes": ("/home", LIST),
    "logs": ("/var/log", LIST),
    "package_database": ("/var/lib/dpkg/status", READ),
    "private_keys": ("/etc/ssl/private", LIST),
    "scheduled_jobs": ("/etc/crontab", WRITE),
    "linker_preload": ("/etc/ld.so.preload", WRITE),
    "boot_folder": ("/boot", LIST),
    "run_folder": ("/run", LIST),
}


def _opening(path: str, flags: int) -> Callable[[World], None]:
    def action(w: World) -> None:
        try:
            fd = os.open(path, flags)
        except FileNotFoundError:
            if w.get("is_control"):
                raise Unavailable(f"this host has no {path}") from None
            raise
        os.close(fd)

    return action


for _name, (_path, _flags) in FILES.items():
    ATTEMPTS[f"open_{_name}"] = Attempt(
        f"open_{_name}",
        "kernel files",
        _opening(_path, _flags),
        ("root_filesystem", "landlock"),
        control="root",
    )


def open_a_block_device(w: World) -> None:
    """The first one that the host has."""
    if not w["block_device"]:
        raise Unavailable("this host shows no block device")
    os.close(os.open(w["block_device"], READ))


ATTEMPTS["open_a_block_device"] = Attempt(
    "open_a_block_device",
    "kernel files",
    open_a_block_device,
    ("root_filesystem", "landlock"),
    control="root",
)


MOST_SETTINGS = 20_000


def _open_any_below(root: str) -> None:
    """Open whatever can be opened for writing; write nothing. The first one found is enough."""
    seen, error = 0, OSError(errno.ENOENT, "nothing is there")
    for folder, _, names in os.walk(root):
        for name in names:
            path = f"{folder}/{name}"
            seen += 1
            if seen > MOST_SETTINGS or os.path.islink(path):
                continue
            try:
                os.close(os.open(path, WRITE | os.O_NOFOLLOW))
            except OSError as refusal:
                error = refusal
            else:
                os.write(2, f"opened for writing: {path}\n".encode())
                return
    raise error


@attempt("kernel files", "root_filesystem", "landlock", control="root")
def open_any_kernel_setting_for_writing(_w: World) -> None:
    _open_any_below("/proc/sys")


@attempt("kernel files", "root_filesystem", "landlock", control="root")
def open_any_device_setting_for_writing(_w: World) -> None:
    _open_any_below("/sys")


@attempt("kernel files", "privileges", control="root")
def read_kernel_addresses(_w: World) -> None:
    """Without privileges every address reads as zero."""
    for path in ("/proc/kallsyms", "/proc/iomem"):
        with open(path, encoding="ascii") as table:
            if any(line.split(" ")[0].strip("0- ") for line in table.readlines()[:200]):
                return
    raise PermissionError(errno.EPERM, "all zero")


@attempt("kernel files", "none", weaker=dict.fromkeys(("namespaced", "landlocked"), BUILD_GAP))
def read_how_the_kernel_was_built(_w: World) -> None:
    """Or which modules it has, or which keys this user sees."""
    for path in ("/proc/config.gz", "/proc/modules", "/proc/keys"):
        try:
            os.close(os.open(path, os.O_RDONLY))
        except OSError:
            continue
        return
    raise PermissionError(errno.EPERM, "none of them")
