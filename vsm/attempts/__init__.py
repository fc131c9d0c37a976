"""What an attacker tries from inside: one table of attempts, run confined and, as control, not.

Used by `vsm sandbox audit` and by the isolation tests. Runs inside the sandbox as the worker, so
it needs the standard library only:
`python3 -SI -c "import sys; sys.path.insert(0, FOLDER); from attempts.base import main; main()"
WORLD [NAME…]` prints {"NAME": {"outcome", "detail"}} where the outcome is "possible", "refused"
or "unavailable" (the attempt makes no sense on this machine).

Harmless by construction: files, sockets and processes are those of `vsm.audit.world`; files
elsewhere are only opened; a system call that would change the machine gets a wrong magic number
or a bad pointer, so that "permitted" shows as EFAULT or EINVAL and "blocked" as EPERM or ENOSYS;
bombs are bounded.
"""

from . import calls, exhaustion, files, kernel_files, network, privileges, processes
from .base import ATTEMPTS, Attempt, outcome_of

__all__ = [
    "ATTEMPTS",
    "Attempt",
    "calls",
    "exhaustion",
    "files",
    "kernel_files",
    "network",
    "outcome_of",
    "privileges",
    "processes",
]
