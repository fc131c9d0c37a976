"""The C library and raw system calls: numbers, argument conversion, errors.

Owns every way into the kernel that Python's standard library lacks; the other modules here are
thin typed wrappers over `call`. Loaded in every process that confines or supervises.
"""

import ctypes
import os

# name → (x86_64, aarch64); x86_64 from syscall_64.tbl, aarch64 from asm-generic/unistd.h.
_NUMBERS: dict[str, tuple[int, int]] = {
    "clone": (56, 220),
    "rt_sigprocmask": (14, 135),
    "signalfd4": (289, 74),
    "capget": (125, 90),
    "capset": (126, 91),
    "pivot_root": (155, 41),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "setns": (308, 268),
    "seccomp": (317, 277),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "openat2": (437, 437),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
_COLUMN = {"x86_64": 0, "aarch64": 1}

# PyDLL keeps the interpreter lock: `clone` must return in the child with the lock still held.
_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_prctl = _libc.prctl
_prctl.restype = ctypes.c_int

_INT_END = 1 << 31
Argument = int | bytes | None | ctypes.Structure | ctypes.Array[ctypes.c_char]


def number(name: str) -> int:
    """The number of a system call here; OSError(ENOSYS) on a machine that vsm does not know."""
    column = _COLUMN.get(os.uname().machine)
    if column is None:
        raise OSError(38, f"{name}: unknown machine {os.uname().machine}")
    return _NUMBERS[name][column]


_numbers: dict[str, int] = {}


def call(name: str, *arguments: Argument, path: str = "") -> int:
    """Make a system call.

    Args:
        name: a key of the table above.
        arguments: integers, bytes (NUL-terminated), None for NULL, structures by reference.
        path: what the error message names.

    Raises:
        OSError: names the call, the errno's reason and the path.
    """
    nr = _numbers.get(name)
    if nr is None:
        nr = _numbers[name] = number(name)
    result = int(_syscall(nr, *map(_convert, arguments)))
    if result < 0:
        raise _error(name, path)
    return result


def prctl(name: str, option: int, argument: int = 0) -> int:
    """Change a process attribute; an error calls the call `name`."""
    word = argument if argument < _INT_END else ctypes.c_ulong(argument)
    result: int = _prctl(option, word, 0, 0, 0)
    if result < 0:
        raise _error(f"prctl({name})", "")
    return result


def _convert(argument: Argument) -> object:
    if isinstance(argument, int):
        # A plain one goes as a C int, which libffi sign-extends, in half the time.
        return argument if -_INT_END <= argument < _INT_END else ctypes.c_long(argument)
    if isinstance(argument, ctypes.Structure):
        return ctypes.byref(argument)
    return argument


def _error(name: str, path: str) -> OSError:
    code = ctypes.get_errno()
    text = f"{name}: {os.strerror(code)}"
    return OSError(code, text, path) if path else OSError(code, text)
