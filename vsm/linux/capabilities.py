"""Capabilities: giving all of them up, in every set, for good."""

import ctypes
import errno
import struct

from vsm.linux.syscall import call, prctl

# include/uapi/linux/prctl.h, capability.h, securebits.h
_CAPBSET_DROP = 24
_SET_SECUREBITS = 28
_CAP_AMBIENT = 47
_CAP_AMBIENT_CLEAR_ALL = 4
_VERSION_3 = 0x20080522
_MOST_CAPABILITIES = 64
# noroot, noroot locked, no_setuid_fixup locked (off), keep_caps locked (off),
# no_cap_ambient_raise and its lock.
_LOCKED_DOWN = 0x01 | 0x02 | 0x08 | 0x20 | 0x40 | 0x80
SETPCAP = 8


_HEADER = struct.pack("=Ii", _VERSION_3, 0)  # struct __user_cap_header_struct: this thread
# Effective, permitted, inheritable: their low words, then their high words.
_SETS = struct.Struct("=6I")


def effective() -> int:
    """The effective set as a bit mask."""
    sets = ctypes.create_string_buffer(_SETS.size)
    call("capget", _HEADER, sets)
    low, _, _, high, _, _ = _SETS.unpack(sets.raw)
    return int(low) | int(high) << 32


def clear_bounding_set() -> bool:
    """Empty the bounding set and lock uid 0's powers; False where that needs CAP_SETPCAP."""
    if not effective() >> SETPCAP & 1:
        return False
    for capability in range(_MOST_CAPABILITIES):
        try:
            prctl("PR_CAPBSET_DROP", _CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL:  # past the kernel's last one
                break
            raise
    prctl("PR_SET_SECUREBITS", _SET_SECUREBITS, _LOCKED_DOWN)
    return True


def clear() -> None:
    """Empty the ambient, effective, permitted and inheritable sets."""
    prctl("PR_CAP_AMBIENT", _CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL)
    call("capset", _HEADER, bytes(_SETS.size))
