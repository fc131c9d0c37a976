"""Rates and weights at S1, as S2 published them: a token bucket for each client and integration.

Runs in S1's event loop, for every call of an integration that has a rate; one that has none has
no gate. A call that may wait for its turn is held; one that would wait longer is refused and
says when to come again.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from fnmatch import fnmatchcase
from time import monotonic
from typing import Any, Final, NamedTuple

from vsm.core.figures import figure
from vsm.core.rates import Bucket, Rate
from vsm.gateway.call import Call, Go
from vsm.gateway.client import Client
from vsm.gateway.finder import RequestError
from vsm.gateway.integration import Integration
from vsm.protocol import jsonrpc

MOST_BUCKETS: Final = 4096
MOST_HELD: Final = 1024
"""Of one integration; who comes then is refused, whatever he may wait."""


class Rule(NamedTuple):
    """Who may call what how fast; the first that matches counts."""

    client: str
    calls_itself: str
    integration: str
    rate: Rate | None
    weight: int = 1


def rules_of(snapshot: dict[str, Any]) -> tuple[Rule, ...]:
    """What S2's snapshot says.

    Raises:
        KeyError, TypeError, ValueError: it is no such snapshot.
    """
    return tuple(
        Rule(
            str(row["client"]),
            str(row["calls_itself"]),
            str(row["integration"]),
            _rate(row),
            int(row["weight"]),
        )
        for row in snapshot["rates"]
    )


def _rate(row: dict[str, Any]) -> Rate | None:
    per_second = float(row["per_second"])
    return Rate(per_second, int(row["burst"]), float(row["wait_s"])) if per_second > 0 else None


class RateGate:
    """The buckets of one integration.

    Args:
        name: the integration's. rules: those that may concern it, in order.
    """

    def __init__(self, name: str, rules: tuple[Rule, ...]) -> None:
        self.name = name
        self.rules = rules
        self.held = 0
        self.refused = 0
        self._buckets: OrderedDict[object, Bucket | None] = OrderedDict()
        self._loop = asyncio.get_running_loop()

    def admit(self, call: Call, go: Go, /) -> bool:
        """Whether the call's bucket lets it go now; False: later.

        Raises:
            RequestError: its turn would come too late.
        """
        client = call.client
        key: object = client if client.lasts else (client.identity, client.calls_itself)
        try:
            bucket = self._buckets[key]
        except KeyError:
            bucket = self._new(key, client)
        if bucket is None:
            return True
        wait_s = bucket.take(monotonic())
        return not wait_s or self._hold(call, go, bucket, wait_s)

    def _hold(self, call: Call, go: Go, bucket: Bucket, wait_s: float) -> bool:
        if wait_s > 0 and self.held >= MOST_HELD:
            bucket.give_back()
            wait_s = -wait_s
        if wait_s < 0:
            self.refused += 1
            raise self._refusal(bucket.rate, -wait_s)
        self.held += 1
        self._loop.call_later(wait_s, self._release, call, go)
        return False

    def _release(self, call: Call, go: Go) -> None:
        self.held -= 1
        go(call)

    def _new(self, key: object, client: Client) -> Bucket | None:
        if len(self._buckets) >= MOST_BUCKETS:
            self._forget()
        rule = _first(self.rules, client)
        rate = rule.rate if rule is not None else None
        bucket = self._buckets[key] = None if rate is None else Bucket(rate)
        return bucket

    def _forget(self) -> None:
        """Sessions that ended and buckets that are full anyway, then the oldest."""
        now_s = monotonic()
        for key, bucket in list(self._buckets.items()):
            gone = isinstance(key, Client) and key.closed
            if gone or bucket is None or bucket.full_at_s <= now_s:
                del self._buckets[key]
        while len(self._buckets) >= MOST_BUCKETS:
            self._buckets.popitem(last=False)

    def _refusal(self, rate: Rate, after_s: float) -> RequestError:
        text = (
            f"{self.name}: this client may call it {rate.per_second:g} times a second, "
            f"{rate.burst} at once. Try again in {figure(after_s, 2)} s."
        )
        data = {"integration": self.name, "retryAfterS": round(after_s, 3)}
        return RequestError(jsonrpc.UNAVAILABLE, text, data, unserved=True)


class Weights:
    """How much each client weighs in the queue of one integration."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self._known: dict[tuple[str, str], int] = {}

    def __call__(self, lane: object) -> int:
        """The weight of a client; of those who share a lane, one."""
        if not isinstance(lane, Client):
            return 1
        key = lane.identity, lane.calls_itself
        if key not in self._known:
            rule = _first(self._rules, lane)
            if len(self._known) >= MOST_BUCKETS:
                self._known.clear()
            self._known[key] = rule.weight if rule is not None else 1
        return self._known[key]


def gate_maker(rules: tuple[Rule, ...]) -> "Callable[[Integration], RateGate | None]":
    """Makes the gate of an integration, or none where no rate concerns it; tells its queue."""

    def make(integration: Integration) -> RateGate | None:
        name = integration.settings.name
        own = tuple(rule for rule in rules if fnmatchcase(name, rule.integration))
        integration.guard.weigh = Weights(own)
        return RateGate(name, own) if any(rule.rate for rule in own) else None

    return make


def _first(rules: tuple[Rule, ...], client: Client) -> Rule | None:
    return next((rule for rule in rules if _concerns(rule, client)), None)


def _concerns(rule: Rule, client: Client) -> bool:
    by_transport = fnmatchcase(client.identity, rule.client)
    return by_transport and fnmatchcase(client.calls_itself, rule.calls_itself)
