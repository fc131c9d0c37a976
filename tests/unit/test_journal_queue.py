"""The sender's queue: bounded, in order, nothing forgotten before it is on disk."""

import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vsm.journal.queue import JournalQueue
from vsm.journal.records import MAX_RECORDS, Decision, Event


def event(number: int, severity: int = 1, size: int = 0) -> Event:
    return Event(number, number, "s", "k", None, None, severity, json.dumps("x" * size))


def sent_numbers(message: bytes) -> list[int]:
    return [row[1] for row in json.loads(message)["records"]]


class QueueMachine(RuleBasedStateMachine):
    """A journal that acknowledges, loses messages and dies, against a list of what was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = JournalQueue(capacity_records=20)
        self.taken: list[int] = []  # by sequence number
        self.on_disk: list[int] = []
        self.arrived = 0
        self.made = 0

    @rule(severity=st.integers(0, 5))
    def add(self, severity: int) -> None:
        self.made += 1
        before, dropped = self.queue.last, self.queue.dropped
        sequence = self.queue.add(event(self.made, severity))
        if self.queue.last - before == 2 or (sequence == 0 and self.queue.last > before):
            self.taken.append(self.made)  # the note about the dropped bears the newer's time
        if sequence:
            self.taken.append(self.made)
            assert sequence == len(self.taken)
        else:
            assert self.queue.dropped == dropped + 1

    @rule(arrives=st.booleans())
    def send(self, arrives: bool) -> None:
        message = self.queue.next_message()
        if message is None or not arrives:
            return
        first = json.loads(message)["first"]
        if first > self.arrived + 1:
            self.queue.rewind(self.arrived)
        else:
            self.on_disk += sent_numbers(message)[self.arrived + 1 - first :]
            self.arrived = len(self.on_disk)

    @rule()
    def acknowledge(self) -> None:
        self.queue.acknowledge(self.arrived)

    @rule()
    def journal_dies(self) -> None:
        self.queue.rewind(self.queue.acknowledged)

    @invariant()
    def what_is_on_disk_is_what_was_taken_in_order(self) -> None:
        assert self.on_disk == self.taken[: len(self.on_disk)]
        assert self.queue.acknowledged <= len(self.on_disk)
        assert self.queue.last == len(self.taken)
        assert len(self.queue) <= 21  # one more: the note about what was dropped


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_small_news_cannot_take_the_last_quarter() -> None:
    queue = JournalQueue(capacity_records=8)
    assert [queue.add(event(n)) > 0 for n in range(7)] == [True] * 6 + [False]
    assert queue.add(event(8, severity=3)) > 0
    assert queue.add(Decision(9, 9, "s", "key", "subject", "rule", "{}", "[]", "choice")) > 0
    assert queue.add(event(10, severity=5)) == 0
    assert queue.dropped == 2


def test_what_was_dropped_is_recorded_when_there_is_room() -> None:
    queue = JournalQueue(capacity_records=4)
    for number in range(1, 11):
        queue.add(event(number))
    queue.acknowledge(3)
    queue.add(event(11))
    message = queue.next_message()
    assert message is not None
    note, newest = json.loads(message)["records"]
    assert note[4] == "journal.dropped"
    assert json.loads(note[8]) == {"count": 7, "since_ns": 4}
    assert newest[1] == 11


def test_bytes_are_bounded_too() -> None:
    queue = JournalQueue(capacity_records=1000, capacity_bytes=10_000)
    kept = sum(queue.add(event(n, size=1000)) > 0 for n in range(100))
    assert 5 <= kept <= 7


def test_messages_are_bounded_in_records_and_bytes() -> None:
    queue = JournalQueue()
    for number in range(250):
        queue.add(event(number, size=20))
    first = queue.next_message()
    assert first is not None
    assert len(sent_numbers(first)) == MAX_RECORDS
    large = JournalQueue()
    for number in range(20):
        large.add(event(number, size=15_000))
    message = large.next_message()
    assert message is not None
    assert len(message) < 128 * 1024
    assert len(sent_numbers(message)) > 1


def test_a_number_that_was_never_given_is_ignored() -> None:
    queue = JournalQueue()
    queue.add(event(1))
    queue.acknowledge(99)
    assert len(queue) == 1
