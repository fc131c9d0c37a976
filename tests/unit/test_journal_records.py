"""What may travel to the journal: bounds, checks, and that nothing unrepresentable is lost."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.journal import records
from vsm.journal.records import Committed, Decision, Event, Hello, Outcome, Ready, Records

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
NUMBERS = st.integers(0, records.MAX_INTEGER)
NAMES = st.text(max_size=400).map(records.short)
EVENTS = st.builds(
    Event,
    at_ns=NUMBERS,
    monotonic_ns=NUMBERS,
    source=NAMES,
    kind=NAMES,
    worker=st.none() | NAMES,
    integration=st.none() | NAMES,
    severity=st.integers(0, len(records.SEVERITIES) - 1),
    detail=JSON.map(records.json_text),
)
DECISIONS = st.builds(
    Decision,
    at_ns=NUMBERS,
    monotonic_ns=NUMBERS,
    source=NAMES,
    key=NAMES,
    subject=NAMES,
    rule=NAMES,
    inputs=JSON.map(records.json_text),
    alternatives=JSON.map(records.json_text),
    choice=NAMES,
)
OUTCOMES = st.builds(Outcome, at_ns=NUMBERS, key=NAMES, outcome=JSON.map(records.json_text))


@given(
    st.lists(EVENTS | DECISIONS | OUTCOMES, max_size=5),
    st.integers(0, records.MAX_INTEGER - 5),
)
def test_records_survive_the_link(kept: list[records.Record], first: int) -> None:
    payload = records.records_message(first, map(records.encode, kept))
    assert records.parse_to_journal(payload) == Records(first, kept)


@given(JSON)
def test_a_detail_is_always_json_within_its_bound(value: object) -> None:
    text = records.json_text(value)
    json.loads(text)
    assert text.isascii()
    assert len(text) <= records.MAX_JSON_BYTES


@pytest.mark.parametrize("value", ["x" * 100_000, '"' * 100_000, {"a": ["\0"] * 50_000}])
def test_a_long_detail_is_cut_and_says_so(value: object) -> None:
    text = records.json_text(value)
    assert len(text) <= records.MAX_JSON_BYTES
    assert json.loads(text)["length"] > records.MAX_JSON_BYTES


def test_what_json_does_not_know_is_kept_as_text() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert "unrepresentable" in records.json_text(loop)
    assert json.loads(records.json_text({"path": b"\xff"})) == {"path": "b'\\xff'"}
    assert "unrepresentable" in records.json_text(float("nan"))


@given(st.binary(max_size=200))
def test_garbage_is_a_value_error(payload: bytes) -> None:
    for parse in (records.parse_to_journal, records.parse_from_journal):
        with pytest.raises(ValueError):  # noqa: PT011 - the contract of a link's parser
            parse(payload)


@given(st.lists(JSON, max_size=11))
def test_a_bad_record_becomes_an_event_about_it(row: list[object]) -> None:
    payload = json.dumps({"kind": "records", "first": 1, "records": [["e", *row]]}).encode()
    parsed = records.parse_to_journal(payload)
    assert isinstance(parsed, Records)
    assert len(parsed.records) == 1  # the numbers of the others stay right
    assert isinstance(parsed.records[0], Event)


@pytest.mark.parametrize(
    "row",
    [
        ["e", 1, 2, "s", "k", None, None, 6, "{}"],  # no such severity
        ["e", True, 2, "s", "k", None, None, 1, "{}"],  # a bool is no number
        ["e", 2**63, 2, "s", "k", None, None, 1, "{}"],  # more than SQLite holds
        ["e", 1, 2, None, "k", None, None, 1, "{}"],  # a source is required
        ["e", 1, 2, "s", "k\0", None, None, 1, "{}"],
        ["e", 1, 2, "s", "\ud800", None, None, 1, "{}"],  # no UTF-8
        ["e", 1, 2, "s", "k" * 257, None, None, 1, "{}"],
        ["e", 1, 2, "s", "k", None, None, 1],
        ["x", 1],
        {},
        [],
        [[]],
    ],
)
def test_a_record_out_of_bounds_is_refused(row: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - as above
        records.decode(row)


@pytest.mark.parametrize(
    "answer",
    [
        records.Confined("[]"),
        Ready(7, 1),
        Committed(9),
        records.Resend(3),
        records.Trouble("full"),
        records.Refused("no"),
    ],
)
def test_answers_survive_the_link(answer: records.FromJournal) -> None:
    assert records.parse_from_journal(records.answer_message(answer)) == answer


def test_hello_survives_the_link() -> None:
    assert records.parse_to_journal(records.hello_message("me", 5)) == Hello("me", 5)


def test_an_unknown_severity_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="debug, info, notice, warning, error, critical"):
        records.severity_index("loud")
