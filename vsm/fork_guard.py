"""Forked children that never exec must not outlive the supervisor, nor keep its lock and sockets.

Runs in the supervisor. Trials fork: one that waits while the supervisor is killed would hold the
runtime directory's lock for ever. Children that exec are not concerned: they have their own ways.
"""

import os
import signal

from vsm.linux.prctl import set_death_signal

_parent = 0
_installed = False


def die_with_parent() -> None:
    """From now on a forked child is killed when this process, or whoever forked it, ends."""
    global _installed  # noqa: PLW0603 - hooks can be registered but never removed: once is enough
    if not _installed:
        os.register_at_fork(before=_remember, after_in_child=_follow)
        _installed = True


def _remember() -> None:
    global _parent  # noqa: PLW0603 - what the child reads after the fork
    _parent = os.getpid()


def _follow() -> None:
    set_death_signal(signal.SIGKILL)
    if os.getppid() not in {_parent, 0}:  # 0: in a new pid namespace; else it has died already
        os._exit(1)
