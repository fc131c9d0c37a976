"""What waits for a server: nothing is lost, nothing beyond the bounds, everybody in turn."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vsm.core.fair_queue import UNIT_BYTES, FairQueue


def test_a_flood_of_one_costs_another_one_turn() -> None:
    queue: FairQueue[str, str] = FairQueue(100, 10**9)
    for number in range(50):
        assert queue.add("flood", f"f{number}", 10) == []
    assert queue.add("quiet", "q", 10) == []
    assert "q" in [queue.pop(), queue.pop()]


def test_a_full_queue_makes_room_at_the_cost_of_whoever_holds_most() -> None:
    queue: FairQueue[str, str] = FairQueue(10, 10**9)
    for number in range(10):
        queue.add("flood", f"f{number}", 10)
    assert queue.add("flood", "f10", 10) == ["f10"]
    assert queue.add("quiet", "q0", 10) == ["f9"]
    for number in range(1, 5):
        assert queue.add("quiet", f"q{number}", 10) == [f"f{9 - number}"]
    assert queue.add("quiet", "q5", 10) == ["q5"]
    assert (queue.waiting("flood"), queue.waiting("quiet")) == (5, 5)


def test_bytes_are_bounded_too_and_the_largest_give_way() -> None:
    queue: FairQueue[str, str] = FairQueue(100, 1000)
    queue.add("large", "l0", 500)
    queue.add("large", "l1", 500)
    assert queue.add("small", "s", 10) == ["l1"]
    assert queue.add("huge", "h", 1001) == ["h"]


def test_large_calls_wait_until_their_client_has_saved_for_them() -> None:
    queue: FairQueue[str, str] = FairQueue(100, 10**9)
    queue.add("large", "l", 3 * UNIT_BYTES)
    for number in range(10):
        queue.add("small", f"s{number}", 10)
    assert [queue.pop() for _ in range(5)] == ["s0", "s1", "s2", "l", "s3"]


def test_alone_a_large_call_does_not_wait() -> None:
    queue: FairQueue[str, str] = FairQueue(100, 10**9)
    queue.add("large", "l", 100 * UNIT_BYTES)
    assert queue.pop() == "l"


def test_who_may_not_send_is_passed_over_and_keeps_its_turn_in_line() -> None:
    queue: FairQueue[str, str] = FairQueue(100, 10**9)
    queue.add("a", "a", 1)
    queue.add("b", "b", 1)
    assert queue.pop(lambda key: key != "a") == "b"
    assert queue.pop(lambda key: key != "a") is None
    assert queue.pop() == "a"


actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 4), st.integers(0, 4 * UNIT_BYTES)),
        st.tuples(st.just("pop"), st.integers(0, 4), st.just(0)),
        st.tuples(st.just("remove"), st.integers(0, 40), st.just(0)),
    ),
    max_size=60,
)


@given(actions, st.integers(0, 8))
def test_every_entry_leaves_exactly_once_and_the_bounds_hold(
    history: list[tuple[str, int, int]], limit: int
) -> None:
    limit_bytes = 8 * UNIT_BYTES
    queue: FairQueue[int, int] = FairQueue(limit, limit_bytes)
    inside: dict[int, tuple[int, int]] = {}
    for number, (action, which, size) in enumerate(history):
        if action == "add":
            inside[number] = (which, size)
            for gone in queue.add(which, number, size):
                del inside[gone]
        elif action == "pop":
            item = queue.pop()
            assert (item is None) == (not inside)
            if item is not None:
                key, _ = inside.pop(item)
                assert item < min((n for n, (k, _) in inside.items() if k == key), default=10**9)
        elif which in inside:
            assert queue.remove(inside.pop(which)[0], which)
        assert len(queue) == len(inside) <= limit
        assert sum(size for _, size in inside.values()) <= limit_bytes
        assert sorted(queue) == sorted(inside)
    assert sorted(queue.drain()) == sorted(inside)


@given(st.lists(st.integers(1, 30), min_size=2, max_size=6))
def test_clients_that_wait_are_served_alike(backlogs: list[int]) -> None:
    queue: FairQueue[int, tuple[int, int]] = FairQueue(1000, 10**9)
    for client, backlog in enumerate(backlogs):
        for number in range(backlog):
            queue.add(client, (client, number), 10)
    served: Counter[int] = Counter()
    while (item := queue.pop()) is not None:
        served[item[0]] += 1
        waiting = [c for c in range(len(backlogs)) if queue.waiting(c)]
        counts = [served[c] for c in waiting]
        assert not counts or max(counts) - min(counts) <= 1


def test_each_turn_is_worth_what_a_client_weighs() -> None:
    weights = {"heavy": 3}
    queue: FairQueue[str, str] = FairQueue(100, 10**9, lambda key: weights.get(key, 1))
    for number in range(12):
        queue.add("heavy", "h", 10)
        if number < 4:
            queue.add("light", "l", 10)
    assert "".join(str(queue.pop()) for _ in range(16)) == "hhhl" * 4
