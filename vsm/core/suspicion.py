"""What in a server's words should make a person look twice, each with its reason.

Pure. Rules, not a verdict: they flag invisible characters, names that look like other names,
text that gives the model orders, and parameters that ask for what no tool needs. Nothing is
blocked by them. The attacks are those published as tool poisoning and tool shadowing.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Any, Final

MAX_TEXT_CHARS: Final = 65_536
MAX_ALL_CHARS: Final = 524_288  # of one server: a second at worst, in which the caller does no more
_TEXT_COST_CHARS: Final = 16  # what a text costs however short it is
LONG_CHARS: Final = 4096
MAX_DEPTH: Final = 32
MAX_FLAGS: Final = 200
_EXCERPT_CHARS: Final = 80

_ORDERS: Final = (
    (
        re.compile(
            r"\b(?:ignore|disregard|forget|override)\b.{0,40}"
            r"\b(?:previous|prior|above|earlier|other|all|any|your)\b.{0,20}"
            r"\b(?:instruction|prompt|rule|message|guideline)s?\b",
            re.IGNORECASE,
        ),
        "tells the model to ignore its instructions",
    ),
    (
        re.compile(
            r"\b(?:do not|don't|never|without)\b.{0,20}"
            r"\b(?:tell|inform|mention|reveal|show|notify|telling|informing|mentioning)\b"
            r".{0,30}\b(?:user|human|anyone|person|operator)\b",
            re.IGNORECASE,
        ),
        "tells the model to hide something from the user",
    ),
    (
        re.compile(r"<\s*/?\s*(?:important|system|instructions?|secret|admin)\b", re.IGNORECASE),
        "imitates the markup of instructions",
    ),
    (
        re.compile(
            r"\b(?:before|after|instead of|whenever|when)\b.{0,20}"
            r"\b(?:us(?:e|ing)|call(?:ing)?|invok(?:e|ing)|run(?:ning)?)\b.{0,20}"
            r"\b(?:any|other|another|every|all)\b.{0,20}\btools?\b",
            re.IGNORECASE,
        ),
        "says how other tools are to be used",
    ),
    (
        re.compile(
            r"\b(?:send|forward|upload|post|include|append|pass)\b.{0,60}"
            r"\b(?:conversation|chat history|system prompt|credentials?|passwords?|api keys?"
            r"|private keys?|secrets?)\b",
            re.IGNORECASE,
        ),
        "asks for the conversation or for secrets",
    ),
    (
        re.compile(
            r"\.ssh/|\.aws/|\.gnupg/|\.kube/|\bid_rsa\b|\bid_ed25519\b|/etc/(?:passwd|shadow)\b"
            r"|\.netrc\b|\.npmrc\b|\.pypirc\b|\bmcp\.json\b|claude_desktop_config",
        ),
        "names a file that holds secrets",
    ),
    (
        re.compile(r"!\[[^\]\n]{0,80}\]\(\s*https?:", re.IGNORECASE),
        "holds an image link, by which a model leaks what it puts into the address",
    ),
)
_GREEDY_PARAMETERS: Final = re.compile(
    r"(?:system_?prompt|chat_?history|conversation(?:_?history)?|previous_?messages|"
    r"all_?messages|tools?_?list|chain_?of_?thought|model_?reasoning)",
    re.IGNORECASE,
)
# Letters of other scripts that are drawn like Latin ones, after case folding (Unicode TR 39).
_LOOKS_LIKE: Final = str.maketrans(
    {
        "\u0430": "a", "\u03b1": "a", "\u0251": "a", "\u03b2": "b", "\u0441": "c", "\u0501": "d",
        "\u0435": "e", "\u03b5": "e", "\u0261": "g", "\u04bb": "h", "\u0456": "i", "\u03b9": "i",
        "\u0131": "i", "\u0269": "i", "\u0458": "j", "\u03ba": "k", "\u04cf": "l", "\u0578": "n",
        "\u03bf": "o", "\u043e": "o", "\u0585": "o", "\u03c1": "p", "\u0440": "p", "\u051b": "q",
        "\u0433": "r", "\u0455": "s", "\u03c4": "t", "\u03c5": "u", "\u03bd": "v", "\u03c9": "w",
        "\u0445": "x", "\u0443": "y", "0": "o", "1": "l", "|": "l",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Flag:
    """One thing to look at.

    Args:
        key: the item. where: the member in it. why: the rule, in words.
        excerpt: what was found, printable.
    """

    key: str
    where: str
    why: str
    excerpt: str


def flags(items: Mapping[str, Any], *, others: Iterable[str] = ()) -> list[Flag]:
    """What is suspicious in a server's items (key → decoded item), bounded.

    Args:
        items: a key is a kind and a name, such as "tool echo".
        others: names that other servers' tools have for clients.
    """
    found: list[Flag] = []
    tools: list[str] = []
    budget, of_names = _Budget(), _Budget()
    for key, item in items.items():
        if key.startswith("tool ") and budget.takes(key):
            tools.append(key)
        found += _of_item(key, item, budget)
        if budget.left <= 0:
            found = [Flag(key, "", "more text in all than is looked at, from here on", ""), *found]
            break
        if len(found) >= MAX_FLAGS:
            return found[:MAX_FLAGS]
    found += _look_alikes(tools, takewhile(of_names.takes, others))
    return found[:MAX_FLAGS]


class _Budget:
    """How much text is looked at still."""

    def __init__(self) -> None:
        self.left = MAX_ALL_CHARS

    def takes(self, text: str) -> bool:
        """Whether this one is looked at, too."""
        self.left -= min(len(text), MAX_TEXT_CHARS) + _TEXT_COST_CHARS
        return self.left > 0


def _of_item(key: str, item: Any, budget: _Budget) -> Iterator[Flag]:  # noqa: ANN401 - decoded JSON
    name = key.partition(" ")[2]
    if name and not name.isascii() and key.startswith(("tool ", "prompt ")):
        yield Flag(key, "name", "a name with letters that may look like others", _shown(name))
    for where, text in _texts(item, "", 0):
        if not budget.takes(text):
            return
        yield from _of_text(key, where, text)
    if isinstance(item, dict):
        yield from _of_annotations(key, item)


def _of_text(key: str, where: str, text: str) -> Iterator[Flag]:
    if where.endswith("{}"):
        if _GREEDY_PARAMETERS.fullmatch(text):
            yield Flag(key, where, "a parameter that asks for what no tool needs", _shown(text))
        return
    if len(text) > LONG_CHARS:
        yield Flag(key, where, f"{len(text)} characters of text", _shown(text))
        text = text[:MAX_TEXT_CHARS]
    hidden = sorted({char for char in text if _is_hidden(char)})
    if hidden:
        names = ", ".join(f"U+{ord(char):04X}" for char in hidden[:6])
        yield Flag(key, where, "characters that nobody sees", names)
    plain = " ".join("".join(char for char in text if not _is_hidden(char)).split())
    for pattern, why in _ORDERS:
        match = pattern.search(plain)
        if match:
            yield Flag(key, where, why, _shown(match.group()))


def _of_annotations(key: str, item: Mapping[str, Any]) -> Iterator[Flag]:
    hints = item.get("annotations")
    if isinstance(hints, dict) and hints.get("readOnlyHint") and hints.get("destructiveHint"):
        yield Flag(key, "annotations", "says that it only reads, and that it destroys", "")


def _texts(value: Any, where: str, depth: int) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Every text with its place; names of parameters end in {}."""
    if isinstance(value, str):
        yield where, value
    elif depth >= MAX_DEPTH:
        return
    elif isinstance(value, dict):
        for name, inner in value.items():
            below = f"{where}.{name}" if where else str(name)
            if where.endswith("properties"):
                yield f"{where}.{{}}", str(name)
            yield from _texts(inner, below[:200], depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, where, depth + 1)


def _is_hidden(char: str) -> bool:
    """Format characters, tags and variation selectors, controls; not line ends and tabs."""
    if char in "\n\r\t":
        return False
    kind = unicodedata.category(char)
    return kind in {"Cf", "Cc", "Co", "Cn", "Cs"} or 0xE0100 <= ord(char) <= 0xE01EF  # noqa: PLR2004


def skeleton(name: str) -> str:
    """What a name looks like: names with one skeleton are easily taken for one another."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    seen = "".join(char for char in folded if not _is_hidden(char)).translate(_LOOKS_LIKE)
    return re.sub(r"[\s_.-]", "", seen).replace("rn", "m").replace("vv", "w")


def _look_alikes(keys: Iterable[str], others: Iterable[str]) -> Iterator[Flag]:
    """Names of this server that look like one another or like those of another."""
    own = sorted((skeleton(key.partition(" ")[2]), key) for key in keys)
    for (one, first), (two, second) in pairwise(own):
        if one == two:
            yield Flag(second, "name", "looks like another name", _shown(first))
    taken = {skeleton(name): name for name in others}
    for shape, key in own:
        if shape in taken:
            yield Flag(key, "name", "looks like another server's tool", _shown(taken[shape]))


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:_EXCERPT_CHARS])
