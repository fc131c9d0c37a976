"""What a failed test of a whole vsm would leave running."""

from collections.abc import Iterator

import pytest
import supervised


@pytest.fixture(autouse=True)
def no_supervisor_outlives_its_test(test_leaves_nothing: None) -> Iterator[None]:
    """Kill what `supervised.Started` started and the test did not end."""
    del test_leaves_nothing
    yield
    while supervised.STARTED:
        process = supervised.STARTED.pop().process
        if process.poll() is None:
            process.kill()
            process.wait()
