"""The Debian roots of the proofs: a step that takes too long is said as one that failed."""

import sys

import debian_root
import pytest


def test_a_step_that_does_not_end_is_named_with_its_bound() -> None:
    forever = (sys.executable, "-SIc", "import time; time.sleep(60)")
    with pytest.raises(debian_root.FailedError, match=r"time\.sleep.*: not done within 0\.1 s"):
        debian_root.run(*forever, timeout_s=0.1)
