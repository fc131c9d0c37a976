import contextlib
import os
import tempfile
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsm.configuration.toml_file import LIMIT_BYTES, build, read_toml
from vsm.errors import ConfigurationError


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    size: int = 0
    names: tuple[str, ...] = ()


class Source(msgspec.Struct, frozen=True, kw_only=True):
    file: str | None = None


class Outer(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    inner: Inner = Inner()
    many: dict[str, Inner] = {}
    ratio: float = 0.0
    exact: bool = False
    level: Literal["low", "high"] = "low"
    days: tuple[Literal["mon", "tue"], ...] = ()
    token: Source | None = None
    headers: dict[str, str | Source] = {}
    rows: tuple[Inner, ...] = ()


def refusal(table: dict[str, object]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        build(table, Outer, file="f.toml")
    return caught.value


def test_a_table_becomes_a_struct() -> None:
    table = {"title": "x", "inner": {"size": 3, "names": ["a"]}, "many": {"m": {"size": 1}}}
    built = build(table, Outer, file="f.toml")
    assert built.inner == Inner(size=3, names=("a",))
    assert built.many["m"].size == 1


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    error = refusal({"title": "x", "inner": {"sise": 1}})
    assert error.where == "f.toml: inner"
    assert "'sise'" in error.what
    assert "'size'" in error.remedy


def test_a_missing_key_is_named() -> None:
    assert refusal({}).where == "f.toml: title"


@pytest.mark.parametrize("value", [True, "1", 1.5, [1]])
def test_a_wrong_type_names_the_full_key_and_both_types(value: object) -> None:
    error = refusal({"title": "x", "many": {"m": {"size": value}}})
    assert error.where == "f.toml: many.m.size"
    assert "expected a whole number" in error.what


def test_a_boolean_is_no_number() -> None:
    assert refusal({"title": "x", "ratio": True}).where == "f.toml: ratio"


def test_a_wrong_item_is_named_by_its_index() -> None:
    assert "item 1" in refusal({"title": "x", "inner": {"names": ["a", 2]}}).what


def test_a_line_of_words_is_shown_as_the_array_that_it_should_be() -> None:
    error = refusal({"title": "x", "inner": {"names": "node server.js"}})
    assert error.remedy == 'Write names = ["node", "server.js"].'
    assert refusal({"title": "x", "inner": {"names": "x" * 100}}).remedy == ""


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"ratio": True}, "ratio: expected a number, found true."),
        ({"ratio": "0.5"}, "ratio: expected a number, found '0.5'. Write ratio = 0.5."),
        ({"exact": 1}, ("exact: expected true or false, found 1. "
         "Write exact = true or exact = false.")),
        ({"title": 7}, 'title: expected a text in quotes, found 7. Write title = "7".'),
        ({"title": ["x"]}, "title: expected a text in quotes, found a list in brackets."),
        ({"level": "lwo"}, "level: expected one of low, high, found 'lwo'."),
        ({"days": ["mon", "fri"]}, "days: expected one of mon, tue, found 'fri' at item 1."),
        ({"days": "mon"}, ("days: expected a list in brackets, found 'mon'. "
         'Write days = ["mon"].')),
        ({"title": 1 << 17_000}, f"title: expected a text in quotes, found 0x1{'0' * 67}."),
        ({"inner": 1}, "inner: expected a table, found an integer. Write inner = { size = … }."),
        ({"rows": {"size": 1}}, ("rows: expected a list of tables, found something else. "
         "Write [[rows]] above each.")),
    ],
)  # fmt: skip
def test_an_error_is_in_the_words_of_toml_and_says_what_to_write(
    table: dict[str, object], told: str
) -> None:
    assert str(refusal({"title": "x", **table})) == f"f.toml: {told}"


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ({"token": {"fil": "x"}}, "token"),
        ({"headers": {"X": {"fil": "x"}}}, "headers.X"),
        ({"rows": [{}, {"fil": 1}]}, "rows.2"),
    ],
)
def test_an_unknown_key_is_refused_where_a_table_is_optional_or_in_a_list(
    table: dict[str, object], where: str
) -> None:
    error = refusal({"title": "x", **table})
    assert error.where == f"f.toml: {where}"
    assert "unknown key 'fil'" in error.what


def test_a_text_in_place_of_a_secrets_source_is_not_repeated() -> None:
    error = refusal({"title": "x", "token": "the token itself"})
    assert "the token itself" not in str(error)
    assert error.remedy == "Write token = { file = … }."


def test_a_table_is_expected_where_a_string_stands() -> None:
    assert "expected a table, found a string" in refusal({"title": "x", "inner": "y"}).what


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"a = ", "end of document"),
        (b"a = 1\nb == 2", "line 2"),
        (b"a = '\xff'", "0xff at 5"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, "nested too deeply"),
        (b"a = " + b"1" * 5000, "not valid TOML"),
        (b"#" * (LIMIT_BYTES + 1), "larger than"),
        (b"a = 1\na = 2", "not valid TOML"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "f.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        read_toml(path)
    assert caught.value.where == str(path)
    assert what in caught.value.what


def test_a_missing_file_a_folder_and_a_fifo_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("absent", "fifo", "."):
        with pytest.raises(ConfigurationError):
            read_toml(tmp_path / name)


@given(st.binary())
def test_any_bytes_are_a_table_or_a_configuration_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.toml"
        path.write_bytes(content)
        with contextlib.suppress(ConfigurationError):
            assert isinstance(read_toml(path), dict)
