"""What the rest of the supervisor does for the group of integrations.

Owns no state; `vsm.supervision.supervisor` makes one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vsm.configuration.config import Integration
from vsm.core import restart
from vsm.errors import VsmError
from vsm.messages import Message
from vsm.output import OutputRing
from vsm.processes.launcher_link import Order
from vsm.supervision import provision
from vsm.supervision.egress_actor import Refused
from vsm.supervision.refused_calls import Said


@dataclass(frozen=True)
class IntegrationHooks:
    """What the rest of the supervisor does for this group.

    Args:
        tell_operations: send to S1, False if there is none; the descriptors stay the sender's.
        operations_ready: S1 serves.
        changed: a worker changed.
        ring: the output ring of a worker.
        refused: an integration was not started, and why.
        spared: confined children of the supervisor that are no orphans of the launcher.
        remains: what every launcher is told first: what to remove when the supervisor is dead.
        egress_refused: a worker asked the egress process for what it may not have.
        calls_refused: an integration made system calls that its filter refuses: which, how often.
        hide: secrets that a worker is about to get are to be in no record.
        recall: a memfd of what an integration offered when it last ran, or None.
        pins: tells S1 what of an integration was approved, before it gets its server.
        adopted: an integration's new entry is in force: a server of it has taken the place.
        replacing: what becomes of a replacement: "begun", "done" or "failed".
        host: what the host gives; asked for when the first integration starts.
    """

    tell_operations: Callable[[Message, list[int]], bool]
    operations_ready: Callable[[], bool]
    changed: Callable[[restart.Changed], None]
    host: Callable[[], provision.Host]
    ring: Callable[[str], OutputRing]
    refused: Callable[[str, VsmError], None] = lambda _name, _error: None
    spared: Callable[[], frozenset[int]] = frozenset
    remains: Callable[[], Iterable[Order]] = tuple
    egress_refused: Refused = lambda _worker, _host, _reason: None
    calls_refused: Said = lambda _name, _calls: None
    pins: Callable[[str], None] = lambda _name: None
    hide: Callable[[Iterable[tuple[str, str]]], None] = lambda _secrets: None
    recall: Callable[[Integration], int | None] = lambda _integration: None
    adopted: Callable[[Integration], None] = lambda _entry: None
    replacing: Callable[[str, str, dict[str, Any]], None] = lambda _stage, _name, _detail: None
