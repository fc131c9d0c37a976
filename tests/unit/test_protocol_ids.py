from hypothesis import given
from hypothesis import strategies as st

from vsm.protocol.ids import COUNTER_BITS, InFlight, Stray


@given(st.integers(0, 2**40), st.lists(st.booleans(), max_size=50))
def test_every_request_is_answered_once(epoch: int, order: list[bool]) -> None:
    flights: InFlight[int] = InFlight(epoch)
    waiting: list[tuple[int, int]] = []
    for number, adds in enumerate(order):
        if adds:
            request_id = flights.add(number)
            assert 0 < request_id < 2**53
            waiting.append((request_id, number))
        elif waiting:
            request_id, item = waiting.pop(number % len(waiting))
            assert flights.take(request_id) == item
            assert flights.take(request_id) is None
            assert flights.stray(request_id) is Stray.LATE
    assert [item for _, item in waiting] == list(flights.drain())


@given(st.one_of(st.integers(), st.text(), st.none(), st.floats(), st.booleans()))
def test_no_foreign_id_is_taken_for_ours(foreign: object) -> None:
    flights: InFlight[str] = InFlight(3)
    mine = flights.add("mine")
    if foreign != mine or isinstance(foreign, (bool, float)):
        assert flights.take(foreign) is None
        assert isinstance(flights.stray(foreign), Stray)


def test_an_answer_to_a_dead_predecessor_is_recognised() -> None:
    earlier: InFlight[str] = InFlight(4)
    now: InFlight[str] = InFlight(5)
    old_id = earlier.add("old")
    now.add("new")
    assert now.take(old_id) is None
    assert now.stray(old_id) is Stray.PREDECESSOR
    assert now.stray((5 << COUNTER_BITS) | 99) is Stray.UNKNOWN
    assert now.stray(-1) is Stray.UNKNOWN
