"""Who listed a resource to a client before somebody else claimed it too.

Owns, for one view, since when each integration alone has listed a URI, and until when. Turns are
counted in changes of the view's resources that anybody looked at: a client keeps the turns in
which it was listed them, and the integration that listed a URI to it then serves it still. Pure.
"""

from collections.abc import Collection
from math import inf
from typing import Final, NamedTuple

from vsm.protocol.catalogue import Catalogue

MOST_SPANS: Final = 8  # of one URI; the oldest is forgotten, and with it who listed it then


class _Span(NamedTuple):
    owner: str
    first: int
    end: float = inf


class Listings:
    """Of one view.

    Attributes:
        turn: of the catalogue that it was told last.
    """

    def __init__(self) -> None:
        self.turn = 0
        self._catalogue = Catalogue()
        self._spans: dict[str, tuple[_Span, ...]] = {}

    def see(self, catalogue: Catalogue) -> None:
        """Take the catalogue as the view has it now."""
        before, self._catalogue = self._catalogue, catalogue
        same = catalogue is before or catalogue.resources == before.resources
        if same and catalogue.contested.keys() == before.contested.keys():
            return
        self.turn += 1
        uris = (*catalogue.resources, *catalogue.contested)
        self._spans = {uri: self._continued(uri, catalogue.resources.get(uri)) for uri in uris}

    def _continued(self, uri: str, owner: str | None) -> tuple[_Span, ...]:
        spans = self._spans.get(uri, ())
        if spans and spans[-1].end == inf:
            if spans[-1].owner == owner:
                return spans
            spans = (*spans[:-1], spans[-1]._replace(end=self.turn))
        return spans if owner is None else (*spans, _Span(owner, self.turn))[-MOST_SPANS:]

    def lister(self, uri: str, claimants: Collection[str], turns: Collection[int]) -> str | None:
        """Which of its claimants alone listed `uri` last to a client that was listed in `turns`."""
        for span in reversed(self._spans.get(uri, ())):
            if any(span.first <= turn < span.end for turn in turns):
                return span.owner if span.owner in claimants else None
        return None
