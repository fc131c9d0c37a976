"""S3*'s contract call: does a server still answer, and still offer what it offered before?

Runs in S1's event loop, over the pipes that calls use; no client sees it. Its lists are fetched
once more and compared, item by item, with what was approved and with what it told last; one that
changed without a word is asked again in the ordinary way, so that `vsm.gateway.trust` judges it.
A server without lists is only asked whether it is there.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from vsm.core import trust
from vsm.gateway.call import Inquiry
from vsm.gateway.integration import CAPABILITY_OF_LIST, Fetch, Integration, Server
from vsm.gateway.resilience_health import question_for
from vsm.gateway.trust import items_of
from vsm.gateway.upstream import Upstream
from vsm.protocol import era
from vsm.protocol.catalogue import Surface
from vsm.protocol.jsonrpc import Object

TIMEOUT_S: Final = 8.0
_MOST_FAILED: Final = 32
Hashes = Mapping[str, str]


class Kept(NamedTuple):
    """What a contract call found.

    Args:
        checked: how many answers and items. failed: item → what is wrong with it.
        unknown: why somebody was not looked at.
    """

    checked: int = 0
    failed: Mapping[str, str] = {}
    unknown: tuple[str, ...] = ()


class Contract:
    """One contract call of all servers of an integration.

    Args:
        on_done: called once with what was found, perhaps before this returns.
        on_changed: called with a server's pipes and the lists that are not as it told.
    """

    def __init__(
        self,
        integration: Integration,
        on_done: Callable[[Kept], None],
        on_changed: Callable[[Upstream, list[str]], None],
    ) -> None:
        self._integration = integration
        self._on_done = on_done
        self._on_changed = on_changed
        self._checked = 0
        self._failed: dict[str, str] = {}
        self._unknown: list[str] = []
        servers = [(one, one.upstream, one.session) for one in integration.servers]
        asked = [(s, u, p) for s, u, p in servers if u is not None and p is not None and not u.lost]
        self._waiting = len(asked)
        if not asked:
            self._unknown.append("no server of it is asked anything now")
            self._finish()
        for server, upstream, session in asked:
            self._ask(server, upstream, session)

    def _ask(self, server: Server, upstream: Upstream, session: era.PeerSession) -> None:
        wanted = [m for m, capability in CAPABILITY_OF_LIST.items() if session.offers(capability)]
        if not wanted:
            inquiry = Inquiry(
                lambda _message: self._answered(),
                lambda _code, text: self._silent(upstream, text),
                timeout_s=TIMEOUT_S,
            )
            upstream.ask(*question_for(session), inquiry)
            return

        def fetched(lists: dict[str, list[Object]]) -> None:
            told = server.surface if server.surface.lists else self._integration.surface
            # A list that it never had, and refuses as before, is no news.
            never = fetch.refused - told.lists.keys()
            failures = {m: text for m, text in fetch.failures.items() if m not in never}
            self._compare(told, upstream, session, lists, failures)

        fetch = Fetch(upstream, session, wanted, fetched, timeout_s=TIMEOUT_S)
        fetch.begin()

    def _answered(self) -> None:
        self._checked += 1
        self._one_less()

    def _silent(self, upstream: Upstream, text: str) -> None:
        """It may be at work on a call, which has its own time-out; or it is gone already."""
        if upstream.in_flight or upstream.lost:
            self._unknown.append(f"{upstream.worker}: {text}")
        else:
            self._checked += 1
            self._failed[f"{upstream.worker}: answer"] = text
        self._one_less()

    def _compare(
        self,
        told: Surface,
        upstream: Upstream,
        session: era.PeerSession,
        now: dict[str, list[Object]],
        failures: Mapping[str, str],
    ) -> None:
        for text in failures.values():
            self._waiting += 1
            self._silent(upstream, text)
        before = {m: rows for m, rows in told.lists.items() if m in now}
        offered = _hashes(now, told.prefix, session)
        self._checked += len(offered) + len(now)
        known, pins = _hashes(before, told.prefix, session), self._integration.vetting.pins
        wrong = dict(_differences(offered, known, pins))
        self._failed |= wrong
        if wrong and not upstream.lost:
            self._on_changed(upstream, sorted(now))
        self._one_less()

    def _one_less(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            self._finish()

    def _finish(self) -> None:
        few = dict(list(self._failed.items())[:_MOST_FAILED])
        self._on_done(Kept(self._checked, few, tuple(self._unknown[:_MOST_FAILED])))


def _hashes(lists: Mapping[str, list[Object]], prefix: str, session: era.PeerSession) -> Hashes:
    surface = Surface(prefix)
    surface.lists = dict(lists)
    items = dict(items_of(surface, session.instructions))
    return {key: trust.fingerprint(item) for key, item in items.items()}


def _differences(offered: Hashes, told: Hashes, pins: Hashes | None) -> Iterator[tuple[str, str]]:
    for key, value in offered.items():
        if key not in told:
            yield key, "it is new, and the server did not say so"
        elif told[key] != value:
            pinned = pins is not None and pins.get(key, value) != value
            since = "since it was approved" if pinned else "since it was told"
            yield key, f"it changed {since}, and the server did not say so"
    for key in told.keys() - offered.keys():
        yield key, "it is gone, and the server did not say so"


def check(
    integration: Integration | None,
    on_done: Callable[[Kept], None],
    on_changed: Callable[[Upstream, list[str]], None],
) -> None:
    """Call the contract of an integration; see `Contract`."""
    if integration is None:
        on_done(Kept(unknown=("there is no such integration",)))
    else:
        Contract(integration, on_done, on_changed)
