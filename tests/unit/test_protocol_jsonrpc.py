import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp_types.jsonrpc import jsonrpc_message_adapter

from vsm.protocol import jsonrpc
from vsm.protocol.jsonrpc import DecodeError

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
ids = st.integers(0, 2**53) | st.text(min_size=1, max_size=30)


@given(ids, st.text(min_size=1, max_size=20), st.dictionaries(st.text(max_size=5), values))
def test_a_request_passes_through_unchanged(
    request_id: int | str, method: str, params: dict[str, Any]
) -> None:
    sent = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    message = jsonrpc.decode(json.dumps(sent, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    again = jsonrpc.request(message.id, message.method, message.params)  # type: ignore[arg-type]
    assert json.loads(again) == sent


@given(ids, st.dictionaries(st.text(max_size=5), values))
def test_an_answer_gets_the_clients_id_and_nothing_else_changes(
    request_id: int | str, result: dict[str, Any]
) -> None:
    frame = json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode()
    try:
        message = jsonrpc.decode(frame)
    except DecodeError:
        return  # lone surrogates: valid to json, refused here
    answer = jsonrpc.answer(jsonrpc.encode(request_id), message.result)  # type: ignore[arg-type]
    assert json.loads(answer) == {"jsonrpc": "2.0", "id": request_id, "result": result}


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_decode_errors(data: bytes) -> None:
    try:
        jsonrpc.decode(data)
    except DecodeError as error:
        if error.code not in (jsonrpc.PARSE_ERROR, jsonrpc.INVALID_REQUEST):
            raise


@given(values)
def test_whatever_is_accepted_the_sdk_accepts_too(value: Any) -> None:
    frame = json.dumps({"jsonrpc": "2.0", **(value if isinstance(value, dict) else {})}).encode()
    try:
        jsonrpc.decode(frame)
    except DecodeError:
        return
    jsonrpc_message_adapter.validate_json(frame)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b'{"jsonrpc":"2.0","id":1,"result":{"x":"\xff"}}', jsonrpc.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":1,"result":{"x":tru}}', jsonrpc.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":1,"result":{}} {}', jsonrpc.PARSE_ERROR),
        (b'{"jsonrpc":"2.0","id":1,"result":' + b"[" * 99999 + b"]" * 99999 + b"}", -32700),
        (b"Warning: no JSON", jsonrpc.PARSE_ERROR),
        (b"[]", jsonrpc.INVALID_REQUEST),
        (b"5", jsonrpc.INVALID_REQUEST),
        (b'{"id":1,"method":"x"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"1.0","id":1,"method":"x"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":null,"method":"x"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":true,"method":"x"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"x"}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","result":{}}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","result":{}}', jsonrpc.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","id":' + b"9" * 40 + b',"method":"x"}', jsonrpc.INVALID_REQUEST),
    ],
)
def test_an_invalid_frame_is_a_typed_error(frame: bytes, code: int) -> None:
    with pytest.raises(DecodeError) as caught:
        jsonrpc.decode(frame)
    assert caught.value.code == code


def test_a_body_over_several_lines_becomes_one_line() -> None:
    body = b'{\r\n "a": "x\\ny",\n "b": [1,\r2]\n}'
    assert jsonrpc.compact(body) == b'{"a":"x\\ny","b":[1,2]}'
    assert msgspec.json.decode(jsonrpc.compact(body)) == json.loads(body)
