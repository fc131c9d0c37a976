"""What one client sees: some integrations, some tools, or three tools by which it finds the rest.

Owns the views of the configuration and who has which. A view is enforced where names are looked
up, so what is hidden cannot be called either. Runs in S1's event loop.
"""

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Final

from vsm.gateway.search_tools import SearchTools
from vsm.protocol.catalogue import Catalogue

DEFAULT: Final = "default"
"""The view of whoever comes without a name of its own."""


@dataclass(eq=False)
class View:
    """One client's part of the whole.

    Args:
        integrations: those that it sees; None is all, vsm's own tools included.
        tools: patterns of names as clients see them; the last that matches decides, one that
            begins with "!" hides. () is all.
        search: whether it lists three tools (search, describe, call) in place of all.
        token: the bearer that HTTP clients of this view show; "" for none.
    """

    name: str
    integrations: frozenset[str] | None = None
    tools: tuple[str, ...] = ()
    search: bool = False
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        self._patterns = [
            (not one.startswith("!"), re.compile(translate(one.removeprefix("!"))))
            for one in self.tools
        ]
        self._whole: Catalogue | None = None
        self._seen = Catalogue()
        self._search: SearchTools | None = None

    def serves(self, integration: str) -> bool:
        """Whether it sees an integration at all."""
        return self.integrations is None or integration in self.integrations

    def offers(self, tool: str) -> bool:
        """Whether it sees a tool, by the name that clients see."""
        # Patterns that begin by hiding start from everything, others from nothing.
        seen = not self._patterns or not self._patterns[0][0]
        for shows, pattern in self._patterns:
            if pattern.match(tool):
                seen = shows
        return seen

    def of(self, whole: Catalogue) -> Catalogue:
        """Its part of the catalogue, made anew only when the catalogue is."""
        if whole is not self._whole:
            self._seen = whole.restricted(self.serves, self.offers)
            self._whole = whole
        return self._seen

    def search_tools(self, whole: Catalogue) -> SearchTools:
        """The three tools over its part of the catalogue."""
        seen = self.of(whole)
        if self._search is None or self._search.catalogue is not seen:
            self._search = SearchTools(seen)
        return self._search


class Views:
    """All views, and who has which.

    Args:
        views: as configured; names are unique.
    """

    def __init__(self, views: Iterable[View] = ()) -> None:
        self._views = {view.name: view for view in views}

    @property
    def default(self) -> View | None:
        """The view of whoever comes without a name of its own; None is everything."""
        return self._views.get(DEFAULT)

    def named(self, name: str) -> View | None:
        """The view of that name."""
        return self._views.get(name)

    def by_token(self, shown: bytes) -> View | None:
        """The view whose bearer token this is; as long for a wrong one as for a right one."""
        found = None
        for view in self._views.values():
            if view.token and hmac.compare_digest(shown, view.token.encode()):
                found = view
        return found
