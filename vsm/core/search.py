"""Which of many tools fits a few words: ranked by BM25 over names, descriptions, parameters.

Pure. The weights are those of Robertson and Zaragoza, "The Probabilistic Relevance Framework"
(2009), with words of a name counted three times.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

K1: Final = 1.2
B: Final = 0.75
NAME_WEIGHT: Final = 3
MAX_QUERY_WORDS: Final = 32
MAX_WORDS: Final = 2000
_WORD = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass(frozen=True)
class Hit:
    """A tool that fits.

    Args:
        score: higher fits better; comparable within one search only.
        words: those of the query that it has.
    """

    name: str
    score: float
    words: tuple[str, ...]


def words(text: str) -> list[str]:
    """The words of a text, folded and stripped of plural; "readFile" and "read_file" are two."""
    found = _WORD.findall(_HUMP.sub(" ", text))
    return [_stem(word.casefold()) for word in found[:MAX_WORDS]]


def _stem(word: str) -> str:
    for end in ("ies", "es", "s"):
        if word.endswith(end) and len(word) > len(end) + 2 and not word.endswith("ss"):
            return word[: -len(end)] + ("y" if end == "ies" else "")
    return word.removesuffix("e") if len(word) > 3 else word  # noqa: PLR2004 - "file" is "files"


class Index:
    """Documents by name: what is ranked.

    Args:
        documents: the text of each, by its name; the name is searched too.
    """

    def __init__(self, documents: Mapping[str, str]) -> None:
        self._counts = {
            name: Counter(words(name) * NAME_WEIGHT + words(text))
            for name, text in documents.items()
        }
        self._lengths = {name: counts.total() for name, counts in self._counts.items()}
        self._mean = sum(self._lengths.values()) / max(1, len(self._lengths))
        self._having = Counter(word for counts in self._counts.values() for word in counts)

    def find(self, query: str, limit: int) -> list[Hit]:
        """The best `limit`, best first, equal ones by name; what has no word of it is no hit."""
        wanted = list(dict.fromkeys(words(query)[:MAX_QUERY_WORDS]))
        hits = [self._judge(name, counts, wanted) for name, counts in self._counts.items()]
        found = [hit for hit in hits if hit.words]
        return sorted(found, key=lambda hit: (-hit.score, hit.name))[:limit]

    def _judge(self, name: str, counts: Counter[str], wanted: Sequence[str]) -> Hit:
        has = tuple(word for word in wanted if counts[word])
        length = 1 - B + B * self._lengths[name] / max(1.0, self._mean)
        score = sum(
            self._rarity(word) * counts[word] * (K1 + 1) / (counts[word] + K1 * length)
            for word in has
        )
        return Hit(name, score, has)

    def _rarity(self, word: str) -> float:
        having = self._having[word]
        return math.log(1 + (len(self._counts) - having + 0.5) / (having + 0.5))
