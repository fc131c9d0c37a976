"""How the end of a worker is put into words."""

import signal

from vsm.configuration.profile import LimitsDocument, compile_limits
from vsm.library.result import judge
from vsm.processes.launch import ExitReport
from vsm.processes.template_process import describe_status
from vsm.supervision.last_words import words


def test_death_by_any_signal_has_words() -> None:
    """A server may kill itself by those of real time, too, most of which have no name."""
    limits = compile_limits(LimitsDocument(), "test")
    for signo in range(1, signal.NSIG):
        said = words(ExitReport(None, signo), None, limits)
        assert said == describe_status(-signo)
        ended = {"status": None, "signal": signo, "oom_kills": 0, "limit": ""}
        if signo != signal.SIGSYS:
            assert judge(ended, None, "", expects_value=True, late=False)[1] == f"it was {said}"
    assert words(ExitReport(None, 40), None, limits) == "killed by signal 40"
    assert words(ExitReport(None, signal.SIGTERM), None, limits) == "killed by SIGTERM"
