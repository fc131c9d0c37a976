"""How an integration stands, as the gateway is told of it while its process ends."""

import pytest

from vsm.core import restart
from vsm.supervision.running_worker import availability_of


def worker(**state: object) -> restart.Worker:
    return restart.Worker(spec=restart.WorkerSpec(name="time"), **state)  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", ["draining", "stopping"])
@pytest.mark.parametrize(
    ("after", "wanted", "state"),
    [
        ("restart", True, "restarting"),
        ("crash", True, "restarting"),  # its start failed: nobody has to start it
        ("crash", False, "stopped"),
        ("stop", True, "stopped"),
        ("quarantine", True, "stopped"),
    ],
)
def test_what_ends_is_stopped_only_where_nothing_starts_it_again(
    phase: str, after: str, *, wanted: bool, state: str
) -> None:
    told = availability_of(worker(phase=phase, after=after, wanted=wanted, reason="no answer"))
    assert (told.integration, told.state, told.reason) == ("time", state, "no answer")


@pytest.mark.parametrize("phase", ["starting", "ready", "backing_off", "quarantined", "stopped"])
def test_a_worker_at_rest_stands_as_its_phase_says(phase: str) -> None:
    assert availability_of(worker(phase=phase, wanted=True)).state == phase
