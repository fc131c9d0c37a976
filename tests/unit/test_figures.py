"""Numbers for people."""

import pytest

from vsm.core.figures import figure


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 3, "0"),
        (0.012345, 3, "0.0123"),
        (1.5, 3, "1.5"),
        (99.96, 3, "100"),
        (134.2, 2, "134"),
        (8589.9, 2, "8590"),
        (4096.0, 3, "4096"),
        (3600.0, 3, "3600"),
        (-1284.6, 3, "-1285"),
        (9.96, 2, "10"),
    ],
)
def test_figures_have_no_power_of_ten(value: float, digits: int, text: str) -> None:
    assert figure(value, digits) == text
