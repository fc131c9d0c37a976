"""The budget of retries: a tenth of the calls, ten where there are few."""

from hypothesis import given
from hypothesis import strategies as st

from vsm.core.retry import LEAST, RATIO, WINDOW_S, Budget, spend


def test_few_calls_have_a_small_budget_that_comes_back() -> None:
    budget = Budget()
    for _ in range(LEAST):
        budget, allowed = spend(budget, 5, 1.0)
        assert allowed
    assert not spend(budget, 5, 1.0)[1]
    assert spend(budget, 5, 1.0 + WINDOW_S)[1]


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 5)), max_size=200))
def test_retries_never_exceed_their_share_of_any_window(steps: list[tuple[int, float]]) -> None:
    budget, calls, now, total = Budget(), 0, 100.0, 0
    for more, passed in steps:
        calls, now = calls + more, now + passed
        budget, allowed = spend(budget, calls, now)
        total += allowed
        assert budget.spent <= max(LEAST, (calls - budget.calls_before) * RATIO)
    windows = 1 + sum(passed for _, passed in steps) / WINDOW_S
    assert total <= calls * RATIO + LEAST * windows
