"""Secrets in what a worker prints: never a value, nor the beginning of one that was cut."""

import json

from hypothesis import given
from hypothesis import strategies as st

from vsm.core.redaction import LEAST_BYTES, JsonRedactor, Redactor

VALUES = st.text("abcdefgh0123", min_size=LEAST_BYTES, max_size=20)


def test_values_are_replaced_by_their_names() -> None:
    redactor = Redactor({"KEY": "hunter2-hunter2", "LONG": "hunter2-hunter2-more", "PIN": "1234"})
    assert redactor.line(b"is hunter2-hunter2-more or hunter2-hunter2?") == b"is [LONG] or [KEY]?"
    assert redactor.line(b"pin 1234") == b"pin 1234"  # too short to be told from text


def test_each_line_of_a_value_is_one() -> None:
    redactor = Redactor({"PEM": "-----BEGIN-----\nabcdefghij\n-----END-----\n"})
    assert redactor.line(b"abcdefghij") == b"[PEM]"


@given(
    st.dictionaries(st.sampled_from(["A", "B", "C"]), VALUES, max_size=3), st.binary(), st.binary()
)
def test_no_value_is_left_in_a_line(secrets: dict[str, str], before: bytes, after: bytes) -> None:
    redactor = Redactor(secrets)
    for value in secrets.values():
        assert value.encode() not in redactor.line(before + value.encode() + after)


@given(VALUES, st.binary(max_size=30), st.integers(LEAST_BYTES, 20))
def test_no_beginning_of_a_value_is_left_at_a_cut(value: str, before: bytes, length: int) -> None:
    part = value.encode()[:length]
    found = Redactor({"K": value}).cut(before + part)
    assert not found.endswith(part)
    assert found.endswith(b"[K]")


ODD = st.text(min_size=LEAST_BYTES, max_size=12).filter(
    lambda text: len(text.strip()) >= LEAST_BYTES and len(text.splitlines()) == 1
)
ESCAPES = {'"': ['\\"'], "\\": ["\\\\"], "/": ["/", "\\/"]}


def escaped(text: str, data: st.DataObject) -> str:
    """The inside of a JSON string, with each character escaped in any way that there is."""
    written = ""
    for char in text:
        units = char.encode("utf-16-be", "surrogatepass")
        codes = [units[at : at + 2].hex() for at in range(0, len(units), 2)]
        plain = ESCAPES.get(char, [char] if char >= " " else [])
        upper = "".join(f"\\u{code.upper()}" for code in codes)
        written += data.draw(
            st.sampled_from(
                [*plain, *(f"\\u{c}" for c in codes), upper][:3]
                if len(codes) == 1
                else [*plain, upper]
            )
        )
    return written


@given(ODD, st.text(max_size=5), st.text(max_size=5), st.data())
def test_no_value_is_left_in_json_however_it_is_escaped(
    value: str, before: str, after: str, data: st.DataObject
) -> None:
    value = value.strip()
    text = f'["{escaped(before + value + after, data)}"]'
    assert json.loads(text) == [before + value + after]
    (found,) = json.loads(JsonRedactor([("K", value)]).json(text, cut=False))
    if value not in before + "[K]" + after:
        assert value not in found
        assert "[K]" in found


@given(ODD, st.integers(0, 2), st.booleans())
def test_no_value_is_left_in_json_within_json(value: str, depth: int, ascii_only: bool) -> None:
    value = value.strip()
    text = json.dumps({"key": value}, ensure_ascii=ascii_only)
    for _ in range(depth):
        text = json.dumps({"text": text}, ensure_ascii=ascii_only)
    found = JsonRedactor([("K", value)]).json(text, cut=False)
    for _ in range(depth):
        found = json.loads(found)["text"]
    assert json.loads(found) == {"key": "[K]"}


@given(ODD, st.integers(LEAST_BYTES, 60), st.booleans())
def test_json_that_was_cut_ends_before_a_value(value: str, length: int, ascii_only: bool) -> None:
    value = value.strip()
    inside = json.dumps(value, ensure_ascii=ascii_only)[1:-1]
    found = JsonRedactor([("K", value)]).json('{"key": "' + inside[:length], cut=True)
    left = json.loads(found + '"}')["key"]
    assert left == "[K]" or len(left.encode()) < LEAST_BYTES


def test_a_value_of_several_lines_is_found_whole_and_line_by_line() -> None:
    redactor = JsonRedactor([("PEM", "-----BEGIN-----\nabcdefghij\r\n-----END-----\n")])
    whole = json.dumps("-----BEGIN-----\nabcdefghij\r\n-----END-----\n")
    assert redactor.json(whole, cut=False) == '"[PEM]\\n"'
    assert redactor.json('{"one": "abcdefghij"}', cut=False) == '{"one": "[PEM]"}'
    assert JsonRedactor([("N", "123456")]).json('{"n": 123456}', cut=False) == '{"n": [N]}'
    assert redactor.text("it is abcdefghij") == "it is [PEM]"
