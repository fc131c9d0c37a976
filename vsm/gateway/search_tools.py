"""Three tools in place of hundreds: search, describe, call.

Owns their descriptions and the first two's answers; the third only renames a call, which then
goes the way of any other. What a client may not see is neither found nor called. Runs in S1's
event loop.
"""

from typing import Any, Final

from msgspec import Raw

from vsm.core.search import Index
from vsm.protocol import envelope, jsonrpc
from vsm.protocol.catalogue import Catalogue
from vsm.protocol.jsonrpc import DecodeError, Object

SEARCH: Final = "vsm__search"
DESCRIBE: Final = "vsm__describe"
CALL: Final = "vsm__call"
NAMES: Final = frozenset({SEARCH, DESCRIBE, CALL})
MAX_HITS: Final = 50
DEFAULT_HITS: Final = 10
MAX_SUMMARY_CHARS: Final = 300
MAX_DOCUMENT_CHARS: Final = 20_000
_METHOD: Final = "tools/list"


def _tool(name: str, description: str, properties: dict[str, Any], required: list[str]) -> Any:  # noqa: ANN401
    return {
        "name": name,
        "description": description,
        "inputSchema": {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        },
    }


_TOOLS: Final = [
    _tool(
        SEARCH,
        "Find tools by what they do. Returns names with short descriptions, best first; the "
        "descriptions were written by the tools' servers.",
        {
            "query": {"type": "string", "description": "words for what the tool should do"},
            "limit": {"type": "integer", "minimum": 1, "maximum": MAX_HITS},
        },
        ["query"],
    ),
    _tool(
        DESCRIBE,
        "Show one tool whole: its description and the schema of its arguments.",
        {"name": {"type": "string", "description": f"as {SEARCH} returned it"}},
        ["name"],
    ),
    _tool(
        CALL,
        f"Call a tool that {SEARCH} found, with arguments as {DESCRIBE} shows them.",
        {"name": {"type": "string"}, "arguments": {"type": "object"}},
        ["name"],
    ),
]
CATALOGUE: Final = Catalogue(pages={_METHOD: b'{"tools":%b' % jsonrpc.encode(_TOOLS)})
"""What a client sees that searches."""


class SearchTools:
    """The tools over one catalogue; made anew with it."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        names = list(catalogue.tools)
        self._items = dict(zip(names, catalogue.items.get(_METHOD, ()), strict=False))
        self._index = Index({name: _document(item) for name, item in self._items.items()})

    def search(self, arguments: Object) -> tuple[bytes, str | None]:
        """The result of a search, and the query where nothing fits it.

        Raises:
            DecodeError: the arguments do not fit the schema.
        """
        query = jsonrpc.text(arguments, "query")
        if query is None:
            raise DecodeError(jsonrpc.INVALID_PARAMS, f"{SEARCH}: query is a string")
        hits = self._index.find(query, _limit(arguments))
        found = [
            {
                "name": hit.name,
                "description": _summary(self._items[hit.name]),
                "score": round(hit.score, 3),
                "matched": list(hit.words),
            }
            for hit in hits
        ]
        return _result({"tools": found, "searched": len(self._items)}), None if hits else query

    def describe(self, arguments: Object) -> bytes:
        """The result that holds a tool as its server offers it.

        Raises:
            DecodeError: there is no such tool.
        """
        name = jsonrpc.text(arguments, "name") or ""
        item = self._items.get(name)
        if item is None:
            raise DecodeError(jsonrpc.INVALID_PARAMS, f"Unknown tool: {name[:200]}")
        return _result({"tool": item})


def rename_call(params: Object) -> None:
    """Make of a call of `vsm__call` the call that is meant.

    Raises:
        DecodeError: it does not say which.
    """
    arguments = jsonrpc.nested(params, "arguments")
    name = jsonrpc.text(arguments, "name")
    if name is None or name in NAMES:
        raise DecodeError(jsonrpc.INVALID_PARAMS, f"{CALL}: name is the name of a tool")
    params["name"] = arguments["name"]
    inner = arguments.get("arguments")
    if inner is None:
        params.pop("arguments", None)
    else:
        params["arguments"] = inner


def for_era(result: bytes, *, modern: bool) -> bytes | Raw:
    """The result as the client's era has it."""
    return envelope.result_for_modern(Raw(result), cacheable=False) if modern else result


def _limit(arguments: Object) -> int:
    limit = jsonrpc.identifier(arguments, "limit")
    return min(MAX_HITS, max(1, limit)) if isinstance(limit, int) else DEFAULT_HITS


def _document(item: Object) -> str:
    texts = [jsonrpc.text(item, key) or "" for key in ("title", "description")]
    schema = jsonrpc.nested(item, "inputSchema")
    return " ".join([*texts, *jsonrpc.nested(schema, "properties")])[:MAX_DOCUMENT_CHARS]


def _summary(item: Object) -> str:
    """The beginning of a description on one line, without what nobody sees."""
    text = (jsonrpc.text(item, "description") or "")[:MAX_SUMMARY_CHARS]
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _result(body: dict[str, Any]) -> bytes:
    raw = jsonrpc.encode(body)
    content = [{"type": "text", "text": raw.decode()}]
    return jsonrpc.encode({"content": content, "structuredContent": Raw(raw), "isError": False})
