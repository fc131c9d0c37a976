import io

import pytest

from vsm.commands import call, tools
from vsm.errors import ConfigurationError


def test_arguments_are_an_object() -> None:
    assert call._parse_arguments('{"a": [1]}') == {"a": [1]}


def test_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"a": 1}'))
    assert call._parse_arguments("-") == {"a": 1}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '"a"', "{'a': 1}"])
def test_anything_else_is_a_usage_error(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        call._parse_arguments(text)
    assert caught.value.exit_code == 2
    assert caught.value.remedy


def test_encoded_bytes_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    call.print_result({"content": [{"type": "image", "data": "A" * 500, "mimeType": "image/png"}]})
    out = capsys.readouterr().out
    assert "<500 characters>" in out
    assert "AAAA" not in out


def test_a_tools_own_error_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    call.print_result({"isError": True, "content": [{"type": "text", "text": "no\x1b[1m"}]})
    assert capsys.readouterr() == ("", "> no [1m\n")


@pytest.mark.parametrize(
    "schema", [None, 1, {"properties": []}, {"required": "x", "properties": {}}]
)
def test_odd_schemas_have_no_arguments(schema: object) -> None:
    assert tools._arguments(schema) == ""


def test_optional_arguments_stand_in_brackets() -> None:
    schema = {"properties": {"path": {}, "head\n": {}}, "required": ["path"]}
    assert tools._arguments(schema) == " path [head ]"
